"""Progress bars for long work, on stderr."""

from __future__ import annotations

from typing import NoReturn

from tqdm import tqdm


class ProgressBars:
    """Call it with (what, done, total); a new ``what`` starts a new bar. ``quiet`` shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet, self._what = quiet, ""
        self._bar: tqdm[NoReturn] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of ``what`` are finished."""
        if self._quiet:
            return
        if self._bar is None or what != self._what:
            self.close()
            self._what = what
            self._bar = tqdm(total=total, desc=what, disable=None, leave=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """End the bar that is shown, if any."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

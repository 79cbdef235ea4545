"""What was measured of a source, for as long as somebody holds it: one command may quantize it for several targets."""

from __future__ import annotations

from quantize.checkpoint import Checkpoint
from quantize.types import I64, Curvature


class Measured:
    """Of one ``source``. Remembers the curvature that was measured last."""

    def __init__(self, source: Checkpoint) -> None:
        self.source = source
        self._key: tuple[bytes, int] | None = None
        self._curvature: Curvature | None = None

    def curvature(self, tokens: I64, seed: int) -> Curvature:
        """``measure_curvature`` of I64[sequences, length]. Raises CalibrationError."""
        from quantize.source import measure_curvature

        key = tokens.tobytes(), seed
        if self._curvature is None or key != self._key:
            self._key, self._curvature = None, None
            self._curvature = measure_curvature(self.source, tokens, seed)
            self._key = key
        return self._curvature

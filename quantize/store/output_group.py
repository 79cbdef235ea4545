"""Files that are of use together only: all take their names, or none does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from quantize.errors import OutputError, asked
from quantize.store.output_place import place_of
from quantize.store.outputs import Foreign, Unfinished, check_file


@contextmanager
def new_files(outs: Sequence[Path], force: bool, foreign: Foreign) -> Iterator[list[BinaryIO]]:
    """Files that are named ``outs`` when the block ends well, the first of them last: whoever sees it finds the others.

    Nobody named these one by one, so ``force`` replaces only what is ours (``foreign`` says why it is not). Raises OutputError
    if what is there must not be replaced, or one cannot be written; then what was there is there still.
    """
    check_files(outs, force, foreign)
    with ExitStack() as places:
        unfinished = [places.enter_context(Unfinished(out, False, force, foreign if force else None)) for out in outs]
        with ExitStack() as opened:
            yield [opened.enter_context(each.path.open("wb")) for each in unfinished]
        _name(unfinished)


def check_files(outs: Sequence[Path], force: bool, foreign: Foreign) -> None:
    """Raises OutputError if new files must not take the place of ``outs``; removes what a killed run left beside them."""
    for out in outs:
        check_file(out, force)
        reason = foreign(out) if os.path.lexists(place_of(out)) else None
        if reason is not None:
            raise OutputError(f"{out}: {reason}, so {asked('force')} does not replace it; name another {asked('out')}")


def _name(unfinished: Sequence[Unfinished]) -> None:
    named = list[Unfinished]()
    try:
        for each in reversed(unfinished):
            reason = each.take_name()
            if reason is not None:
                raise OutputError(f"{each.out}: {reason}; it is left alone, and none of the {len(unfinished)} files is written")
            named.append(each)
    except BaseException:
        for each in reversed(named):
            each.give_back()
        raise

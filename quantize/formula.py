"""What compiled loops are told of a grid and of the weights that they round."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


class Words(NamedTuple):
    """The tuples of neighbouring codes that may be stored, where not all may: magnitudes from a book, and signs.

    ``book`` F32[length, n]: the magnitudes of n words, all positive; ``codes`` U8[length, n]: their codes, in which the bit
    ``minus`` says that a weight is negative. ``dims`` weights are encoded together, one word or two; ``even``: an even number
    of them is negative. Where ``minus`` is 0 the words are pairs that have their own signs.
    """

    book: F32
    codes: U8
    minus: np.uint8
    dims: int
    even: bool


class Formula(NamedTuple):
    """A grid's ``encode`` and ``decode`` for compiled loops.

    A code's value is ``(level - zero) * scale`` if ``centred``, else ``scale * level + zero``. ``levels``: F32[n], by code.
    ``table``: U8[512], the code of each half step from -128, for levels that are no code plus a constant; else U8[0].
    ``words``: None where each weight has its code by itself.
    """

    levels: F32
    table: U8
    centred: bool
    words: Words | None = None

    @property
    def dims(self) -> int:
        """Neighbouring weights that are encoded together."""
        return 1 if self.words is None else self.words.dims


class Channels(NamedTuple):
    """Some input channels in the order of their rounding; F32[n, OC] but where said.

    ``wanted``: what each would be without the others. ``mix`` F32[n, n]: how much of one's step (column) goes off a later one
    (row). ``held`` F32[n, OC] or F32[0, OC]: a step is from there to the value, or from what was wanted in the end. Written
    are ``codes`` U8[n, OC], ``values`` and ``steps``.
    """

    wanted: F32
    mix: F32
    held: F32
    scale: F32
    zero: F32
    codes: U8
    values: F32
    steps: F32

"""What a word on the command line stands for; a wrong one is said in argparse's one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from exporter.file_size import parse_size
from quantize import transforms
from quantize.plan import WHOLE_CHANNEL

MOST_BITS = 32


def group_size(word: str) -> int:
    """ "channel" or a whole number."""
    if word in ("channel", str(WHOLE_CHANNEL)):
        return WHOLE_CHANNEL
    return positive(word)


def transform_names(word: str) -> tuple[str, ...]:
    """ "none", "all", or names with commas between them."""
    return {"none": (), "all": transforms.NAMES}.get(word, tuple(word.split(",")))


def _number(minimum: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        if not word.isdecimal() or int(word) < minimum:
            raise argparse.ArgumentTypeError(f"{word!r} is no whole number of at least {minimum}")
        return int(word)

    return parse


positive, whole = _number(1), _number(0)


def sides(word: str) -> tuple[int, int]:
    """Input and output channels of a linear, as 576x1536."""
    k, _, n = word.partition("x")
    if not (k.isdecimal() and n.isdecimal() and int(k) and int(n)):
        raise argparse.ArgumentTypeError(f"{word!r} is no KxN, as 576x1536")
    return int(k), int(n)


def file_size(word: str) -> int:
    """Bytes, from 80MB and its like."""
    try:
        return parse_size(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def bits_per_weight(word: str) -> float:
    """A number of bits."""
    try:
        bits = float(word)
    except ValueError:
        bits = math.nan
    if not 0 < bits <= MOST_BITS:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of bits from 0 to {MOST_BITS}")
    return bits

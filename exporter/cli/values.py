"""What a word on the command line stands for; a wrong one is said in argparse's one line."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from exporter.file_size import parse_size
from quantize import transforms
from quantize.config import WHOLE_CHANNEL
from quantize.errors import ConfigError
from quantize.kinds import Wanted, folder_meant, foreign, mistaken

MOST_BITS = 32
BITS = (2, 3, 4, 5, 8)
T = TypeVar("T")


def file_path(word: str) -> Path:
    """A file or folder; ~ is the home folder, as it is to a shell where a word begins with it."""
    return Path(text_path(word))


def text_path(word: str) -> str:
    """The same as it is, or a name that stands for something else."""
    if not word or "\0" in word:
        raise argparse.ArgumentTypeError(f"{word!r} names no file")
    return os.path.expanduser(word)  # noqa: PTH111 - pathlib drops the ./ of ./~, which is no home folder


def check_whole(*paths: Path, wanted: tuple[Wanted, ...] = (Wanted.FILE,)) -> None:
    """Raises ConfigError for a file inside of a folder that is wanted as a whole, as DIR/model.onnx, and for other tools' things.

    A GGUF that is no language model is one of these, but not where anything that can be looked at is wanted, as a store.
    """
    from quantize.checkpoint.gguf_tensors import other_gguf

    for path in paths:
        meant = folder_meant(path, *wanted) or (mistaken(path, Wanted.FILE) if foreign(path) else None)
        if meant is None and Wanted.STORE not in wanted:
            meant = other_gguf(path)
        if meant is not None:
            raise ConfigError(meant)


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


def file_sizes(word: str) -> tuple[tuple[str, int], ...]:
    """As they are written and in bytes, from 80MB,92MB."""
    sizes = tuple((size.replace(" ", ""), file_size(size)) for size in word.split(","))
    return _no_two(sizes, [size for _, size in sizes], word)


def widths(word: str) -> tuple[float, ...]:
    """Bits of weights, from 3,4,5."""
    bits = tuple(_width(one) for one in word.split(","))
    if not all(_is_width(one) for one in bits):
        known = f"{', '.join(map(str, BITS))}, or a fraction as 2.5"
        raise argparse.ArgumentTypeError(f"{word!r}: choose among {known}, with commas between them")
    return _no_two(bits, bits, word)


def width(word: str) -> float:
    """Bits of weights: one of BITS, or a fraction."""
    bits = _width(word)
    if not _is_width(bits):
        raise argparse.ArgumentTypeError(f"choose one of {', '.join(map(str, BITS))}, or a fraction as 2.5, not {word!r}")
    return bits


def _width(word: str) -> float:
    """What is none becomes 0."""
    if re.fullmatch(r"\d{1,2}", word):
        return int(word)
    return float(word) if re.fullmatch(r"\d\.\d{1,6}", word) else 0


def _is_width(bits: float) -> bool:
    return bits in BITS or (bits != int(bits) and BITS[0] <= bits <= BITS[-1])


def _no_two(values: tuple[T, ...], alike: Sequence[object], word: str) -> tuple[T, ...]:
    if len(set(alike)) < len(values):
        raise argparse.ArgumentTypeError(f"{word!r} names one twice")
    return values


def bits_per_weight(word: str) -> float:
    """A number of bits."""
    try:
        bits = float(word)
    except ValueError:
        bits = math.nan
    if not 0 < bits <= MOST_BITS:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of bits from 0 to {MOST_BITS}")
    return bits

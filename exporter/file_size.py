"""How a person says a file's size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from quantize.types import TensorSpec

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_size(word: str) -> int:
    """Bytes of "80MB" (10**6), "76.3 MiB" (2**20) and the like. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\w+)", word.strip(), re.ASCII)
    if found is None or found[2] not in UNITS:
        raise ValueError(f"{word!r} is no size; give a number and one of {', '.join(UNITS)}, for example 80MB")
    return int(Decimal(found[1]) * UNITS[found[2]])


def at_least(nbytes: int) -> str:
    """A size as an option takes it, rounded up: "12.35MB"."""
    return f"{-(-nbytes // 10**4) / 100:.2f}MB"


def size_of_bits(specs: Mapping[str, TensorSpec], bits_per_weight: float) -> int:
    """Bytes of a file with that many bits for each weight of the model, whatever they are spent on."""
    return int(bits_per_weight * sum(spec.size for spec in specs.values()) / 8)

"""What one check says: a name, the tensor (or string, or file) it looked at, how far off it was and how far it may be."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

NOTE = "note: "


@dataclass(frozen=True)
class Check:
    """One comparison. ``error`` and ``tolerance`` share a unit that ``name`` implies; an exact check has tolerance 0."""

    name: str
    tensor: str
    error: float
    tolerance: float
    ok: bool

    def to_json(self) -> dict[str, Any]:
        """The five keys; an infinite error (JSON has none) becomes the largest float."""
        out = asdict(self)
        return out | {"error": min(self.error, 1.7976931348623157e308)}


def within(name: str, tensor: str, error: float, tolerance: float) -> Check:
    """A check that holds if ``error`` is at most ``tolerance``; a NaN error fails, as infinity."""
    error = math.inf if math.isnan(error) else float(error)
    return Check(name, tensor, error, tolerance, error <= tolerance)


def note(name: str, tensor: str) -> Check:
    """What a person should know and no file can be blamed for."""
    return Check(f"{NOTE}{name}", tensor, 0.0, 0.0, True)

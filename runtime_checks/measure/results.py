"""What one check says: a name, the tensor (or string, or file) it looked at, how far off it was and how far it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One comparison. ``error`` and ``tolerance`` share a unit that ``name`` implies; an exact check has tolerance 0."""

    name: str
    tensor: str
    error: float
    tolerance: float
    ok: bool
    note: str = ""  # why what differs is no miss: a limit of the runtime, or a fault of the source

    def to_json(self) -> dict[str, Any]:
        """The five keys, and a note if there is one; an infinite error (JSON has none) becomes the largest float."""
        out = asdict(self) | {"error": min(self.error, 1.7976931348623157e308)}
        return out if self.note else {key: value for key, value in out.items() if key != "note"}


def checks_report(checks: Sequence[Check]) -> dict[str, Any]:
    """The report of ``verify`` with its fixed keys."""
    return {"ok": bool(checks) and all(check.ok for check in checks), "checks": [check.to_json() for check in checks]}


def within(name: str, tensor: str, error: float, tolerance: float) -> Check:
    """A check that holds if ``error`` is at most ``tolerance``; a NaN error fails, as infinity."""
    error = math.inf if math.isnan(error) else float(error)
    return Check(name, tensor, error, tolerance, error <= tolerance)


def noted(name: str, tensor: str, error: float, note: str) -> Check:
    """A check that holds whatever ``error`` is, because of ``note``, which a person is told."""
    return Check(name, tensor, float(error), float(error), True, note)

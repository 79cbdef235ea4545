"""Where the names in a plot of points go: beside their points, inside the plot, and apart from one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from runtime_checks.report.charts import FONT_SIZE, Spec

LETTER, BOLD = 0.56, 1.1  # mean width of a letter, of its height, and of a bold one, of the other
LIMIT, WIDER = 0.55, 0.8  # of the plot's width, for a name and for the chosen one
DOT, RING = 7, 13  # pixels from the middle of a point
Box = tuple[float, float, float, float]  # left, top, right, bottom
_Side = tuple[str, int, int]  # of a point for its name: align, dx, dy
SIDES: list[_Side] = [
    *(("left", 8, -13), ("right", -8, 13), ("right", -11, 0), ("left", 11, 0)),
    *(("center", 0, 17), ("left", 8, 13), ("right", -8, -13), ("center", 0, -17)),
]
FAR: list[_Side] = [  # with a line to the point
    (align, sign * across, down)
    for down in (-30, 30, -46, 46, -62, 62, -78, 78, -94, 94)
    for align, sign in (("left", 1), ("right", -1))
    for across in (16, 40, 80)
]
CUT_COST = 4  # a name that is cut off is worse than one that is crossed
FAR_COST = 60.0  # square pixels of a name that may be covered before it goes away from its point


@dataclass(frozen=True)
class Plane:
    """A plot of ``width`` by ``height`` pixels over the domains ``x`` and ``y``; ``log``: of y."""

    x: Sequence[float]
    y: Sequence[float]
    log: bool
    width: int
    height: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        """In pixels from the upper left corner."""
        bend = np.log if self.log else float
        across = np.interp(x, self.x, [0, self.width])
        return float(across), float(np.interp(bend(y), [bend(end) for end in self.y], [self.height, 0]))


def place_names(values: Sequence[Spec], plane: Plane, line: float | None) -> list[Spec]:
    """For points with ``x``, ``y``, ``name``, ``front`` and ``chosen``, smallest first: ``align``, ``dx``, ``dy`` and ``limit``.

    A name gets the first place that is free, or the one least covered; the chosen one before the others. ``line``: a y that is
    drawn across. Further away than beside its point (``far``) a name takes a line to it. ``box``: where it lies.
    """
    taken = _taken(values, plane, line)
    out: list[Spec] = [{} for _ in values]
    for index in sorted(range(len(values)), key=lambda index: not values[index]["chosen"]):
        chosen, at = values[index]["chosen"], plane.at(values[index]["x"], values[index]["y"])
        limit = (WIDER if chosen else LIMIT) * plane.width
        width = min(LETTER * (BOLD if chosen else 1) * FONT_SIZE * len(values[index]["name"]), limit)
        beside = [*SIDES, *_shifted(at[0], width, plane)]
        sides = [*map(_outside, beside), *FAR] if chosen else [*beside, *FAR]
        boxes = [_box(at, width, side) for side in sides]
        costs = [_covered(box, taken, plane) + FAR_COST * (number >= len(beside)) for number, box in enumerate(boxes)]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        align, dx, dy = sides[best]
        out[index] = {"align": align, "dx": dx, "dy": dy, "limit": limit, "far": best >= len(beside), "box": boxes[best]}
    return out


def place_note(text: str, values: Sequence[Spec], plane: Plane, y: float) -> Spec:
    """Where a line's own words go: at its right or left end, below or above, where they cover least of what has its place."""
    taken = [*_taken(values, plane, None), *(value["box"] for value in values)]
    width, top = LETTER * (FONT_SIZE - 1) * len(text), plane.at(plane.x[0], y)[1]
    ends = [(align, at, dy) for dy in (11, -9) for align, at in (("right", plane.width - 4), ("left", 4))]
    boxes = [_box((at, top), width, (align, 0, dy)) for align, at, dy in ends]
    costs = [_covered(box, taken, plane) for box in boxes]
    align, at, dy = ends[costs.index(min(costs))]
    return {"text": text, "align": align, "at": at, "dy": dy}


def _taken(values: Iterable[Spec], plane: Plane, line: float | None) -> list[Box]:
    """By the points, the ring, the front's line and the one across."""
    points = [(plane.at(value["x"], value["y"]), value) for value in values]
    taken = [_around(place, RING if value["chosen"] else DOT) for place, value in points]
    for (left, top), (right, bottom) in pairwise(place for place, value in points if value["front"]):
        taken += [(left, top - 1, right, top + 1), (right - 1, top, right + 1, bottom)]
    if line is not None:
        top = plane.at(plane.x[0], line)[1]
        taken.append((0, top - 1, plane.width, top + 1))
    return taken


def _around(at: tuple[float, float], radius: int) -> Box:
    return at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius


def _shifted(across: float, width: float, plane: Plane) -> list[_Side]:
    """Places above and below a point, moved aside until the name is inside the plot."""
    dx = max(0.0, width / 2 - across) - max(0.0, across + width / 2 - plane.width)
    return [("center", round(dx), dy) for dy in (17, -17)] if abs(dx) < width / 2 else []


def _outside(side: _Side) -> _Side:
    """A place beside a point, beside its ring."""
    align, dx, dy = side
    more = RING - DOT
    if align == "center":
        return align, dx, dy + more * (1 if dy > 0 else -1)
    return align, dx + more * ((dx > 0) - (dx < 0)), dy + more * ((dy > 0) - (dy < 0))


def _box(at: tuple[float, float], width: float, side: _Side) -> Box:
    align, dx, dy = side
    start = at[0] + dx - {"left": 0.0, "center": width / 2, "right": width}[align]
    return start, at[1] + dy - FONT_SIZE / 2, start + width, at[1] + dy + FONT_SIZE / 2


def _covered(box: Box, taken: Sequence[Box], plane: Plane) -> float:
    """The area of ``box`` that is taken or, CUT_COST times, outside, in square pixels."""
    outside = max(0.0, -box[0]) + max(0.0, box[2] - plane.width) + max(0.0, -box[1]) + max(0.0, box[3] - plane.height)
    overlaps = (
        max(0.0, min(box[2], other[2]) - max(box[0], other[0])) * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    return CUT_COST * outside * FONT_SIZE + sum(overlaps)

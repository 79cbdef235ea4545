"""Charts as SVG, drawn by Vega in ``vl-convert`` when the page is made: no script of it travels in the page.

Colours are custom properties of page.css, so that a picture follows the page into the dark; a mark's description is what a
pointer, the arrow keys and a screen reader find there. The same arguments give the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from runtime_checks.report_page import Cell, Chart, Number, Picture, Table

Spec = dict[str, Any]
WIDE, NARROW = 1040, 344  # of the two shapes of a picture: what page.css gives them in a wide window, and on a phone of 360 px
FONT_SIZE = 13
LETTER = 0.56  # mean width of a letter, of its height
PARETO_HEIGHT = {WIDE: 400, NARROW: 340}
_Box = tuple[float, float, float, float]  # left, top, right, bottom
NOT_DRAWN = re.compile("[\0\ud800-\udfff]")
SIDES = [  # of a point for its name: align, dx, dy
    *(("left", 8, -13), ("right", -8, 13), ("right", -11, 0), ("left", 11, 0)),
    *(("center", 0, 17), ("left", 8, 13), ("right", -8, -13), ("center", 0, -17)),
]
CONFIG: Spec = {
    "background": None,
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--ink)",
        "titleFontWeight": 600,
        "labelFontSize": FONT_SIZE - 1,
        "titleFontSize": FONT_SIZE,
        "domainColor": "var(--edge)",
        "gridColor": "var(--rule)",
        "tickColor": "var(--edge)",
        "titlePadding": 8,
    },
}


def svg(spec: Spec, label: str) -> str:
    """A Vega specification as an SVG element that takes the width it is given."""
    import vl_convert

    drawn = vl_convert.vega_to_svg(_drawable({"config": CONFIG, **spec}), allowed_base_urls=[])
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert box is not None, drawn[:200]
    body = drawn[drawn.index(">") + 1 :]
    return f'<svg role="graphics-document" aria-label="{_escaped(label)}" viewBox="{box[1]}">{body}'


def both_shapes(spec: Callable[[int], Spec], label: str) -> list[Picture]:
    """The specification for WIDE and for NARROW as two pictures, of which a window shows one."""
    return [Picture(svg(spec(width), label), shape) for width, shape in ((WIDE, "wide"), (NARROW, "narrow"))]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


@dataclass(frozen=True)
class Point:
    """A file in the plane of size and quality. ``kld``: nats a token; ``reference``: another tool's, to compare with."""

    name: str
    size: int
    kld: float
    reference: bool = False


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Those than which no other is smaller and closer to the source at once, smallest first."""
    front = list[Point]()
    for point in sorted(points, key=lambda point: (point.size, point.kld)):
        if not front or point.kld < front[-1].kld:
            front.append(point)
    return front


def pareto_chart(points: Sequence[Point]) -> Chart:
    """Size against KL divergence from the source; the front as a line. ``points`` must not be empty."""
    front = pareto_front(points)
    title = "Size and distance to the source"
    names = ", ".join(f"{point.name} ({point.size / 1e6:,.1f} MB, {point.kld:.4f})" for point in front)
    summary = f"Further left is smaller, further down is closer. No other file is both smaller and closer than these: {names}."
    pictures = both_shapes(lambda width: _pareto_spec(points, front, width), title)
    rows = [_pareto_row(point, front) for point in sorted(points, key=lambda point: point.size)]
    legend = [("var(--ic)", "on the front"), ("var(--oc)", "off the front")]
    if any(point.reference for point in points):
        legend.append(("var(--reference)", "diamond: reference, made by another tool"))
    return Chart(title, summary, pictures, Table(title, ("file", "MB", "KL divergence", "on the front"), rows, True), legend)


def _pareto_row(point: Point, front: Sequence[Point]) -> list[Cell]:
    own = f"{point.name} (reference)" if point.reference else point.name
    return [own, Number(f"{point.size / 1e6:,.1f}"), Number(f"{point.kld:.4f}"), "yes" if point in front else "no"]


def _pareto_spec(points: Sequence[Point], front: Sequence[Point], width: int) -> Spec:
    height = PARETO_HEIGHT[width]
    plot = (width - 76, height - 62)
    x = _domain([point.size / 1e6 for point in points], log=False)
    log = min(point.kld for point in points) > 0
    y = _domain([point.kld for point in points], log=log)
    values = [_mark(point, point in front) for point in sorted(points, key=lambda point: (point.size, point.kld))]
    for value, label in zip(values, _labels(values, (x, y, log), plot), strict=True):
        value |= label
    scales = [
        {"name": "x", "type": "linear", "domain": x, "range": [0, plot[0]], "zero": False},
        {"name": "y", "type": "log" if log else "linear", "domain": y, "range": [plot[1], 0], "zero": False},
    ]
    ticks = max(3, plot[0] // 120)
    axes = [
        {"orient": "bottom", "scale": "x", "title": "size of the model file, MB", "grid": True, "tickCount": ticks},
        {"orient": "left", "scale": "y", "title": "KL divergence, nats a token", "grid": True, "tickCount": 5}
        | {"format": "~g", "minExtent": 44, "maxExtent": 44}
        | ({"values": _log_ticks(y)} if log else {}),
    ]
    line = [{"x": point.size / 1e6, "y": point.kld} for point in front]
    return {
        "width": plot[0],
        "height": plot[1],
        "padding": 4,
        "data": [{"name": "points", "values": values}, {"name": "front", "values": line}],
        "scales": scales,
        "axes": axes,
        "marks": _pareto_marks(),
    }


def _mark(point: Point, front: bool) -> Spec:
    tip = f"{point.name}: {point.size / 1e6:,.1f} MB, KL divergence {point.kld:.4f} nats a token"
    return {
        "x": point.size / 1e6,
        "y": point.kld,
        "name": point.name,
        "front": front,
        "shape": "diamond" if point.reference else "circle",
        "color": f"var(--{'ic' if front else 'reference' if point.reference else 'oc'})",
        "tip": f"{tip}, on the front" if front else tip,
    }


def _pareto_marks() -> list[Spec]:
    at = {"x": {"scale": "x", "field": "x"}, "y": {"scale": "y", "field": "y"}}
    line = {"interpolate": {"value": "step-after"}, "stroke": {"value": "var(--ic)"}, "strokeWidth": {"value": 1.5}}
    point = {
        "size": {"value": 110},
        "shape": {"field": "shape"},
        "fill": {"field": "color"},
        "stroke": {"value": "var(--page)"},
        "description": {"field": "tip"},
    }
    label = {
        "text": {"field": "name"},
        "dx": {"field": "dx"},
        "dy": {"field": "dy"},
        "align": {"field": "align"},
        "baseline": {"value": "middle"},
        "fontSize": {"value": FONT_SIZE},
        "fill": {"value": "var(--ink)"},
        "limit": {"field": "limit"},
    }
    return [
        {
            "type": "line",
            "from": {"data": "front"},
            "aria": False,
            "encode": {"enter": at | line | {"strokeDash": {"value": [5, 4]}}},
        },
        {"type": "symbol", "from": {"data": "points"}, "encode": {"enter": at | point}},
        {"type": "text", "from": {"data": "points"}, "aria": False, "encode": {"enter": at | label}},
    ]


def _domain(values: Sequence[float], log: bool) -> list[float]:
    """With a margin on both sides, also where all values are one."""
    low, high = min(values), max(values)
    if log:
        margin = max((high / low) ** 0.12, 1.15)
        return [low / margin, high * margin]
    margin = max((high - low) * 0.12, abs(high) * 0.02, 1e-9)
    return [low - margin, high + margin]


def _drawable(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Without the characters at which the library dies; names come from files."""
    if isinstance(value, str):
        return NOT_DRAWN.sub("\ufffd", value)
    if isinstance(value, dict):
        return {key: _drawable(item) for key, item in value.items()}
    return [_drawable(item) for item in value] if isinstance(value, list | tuple) else value


def _log_ticks(domain: Sequence[float]) -> list[float]:
    """1, 2 and 5 of each decade."""
    decades = range(math.floor(math.log10(domain[0])), math.ceil(math.log10(domain[1])))
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    return [tick for tick in ticks if domain[0] <= tick <= domain[1]]


def _labels(values: Sequence[Spec], scales: tuple[list[float], list[float], bool], plot: tuple[int, int]) -> list[Spec]:
    """Where each point's name goes: the first place beside it that is inside the plot and free, or the one least covered."""
    x, y, log = scales
    bend = np.log if log else np.asarray
    across = np.interp([value["x"] for value in values], x, [0, plot[0]])
    down = np.interp(bend([value["y"] for value in values]), bend(y), [plot[1], 0])
    taken = [(left - 7, top - 7, left + 7, top + 7) for left, top in zip(across, down, strict=True)]
    corners = [place for place, value in zip(zip(across, down, strict=True), values, strict=True) if value["front"]]
    for (left, top), (right, bottom) in pairwise(corners):  # the line
        taken += [(left, top - 1, right, top + 1), (right - 1, top, right + 1, bottom)]
    labels = []
    for value, left, top in zip(values, across, down, strict=True):
        width = min(LETTER * FONT_SIZE * len(value["name"]), 0.55 * plot[0])
        places = [_place(left, top, width, side) for side in SIDES]
        place = min(places, key=lambda box: _covered(box, taken, plot))
        taken.append(place)
        align, dx, dy = SIDES[places.index(place)]
        labels.append({"align": align, "dx": dx, "dy": dy, "limit": 0.55 * plot[0]})
    return labels


def _place(left: float, top: float, width: float, side: tuple[str, int, int]) -> _Box:
    align, dx, dy = side
    start = left + dx - {"left": 0.0, "center": width / 2, "right": width}[align]
    return start, top + dy - FONT_SIZE / 2, start + width, top + dy + FONT_SIZE / 2


def _covered(box: _Box, taken: Sequence[_Box], plot: tuple[int, int]) -> float:
    """The area of ``box`` that is taken or outside, in pixels."""
    outside = max(0.0, -box[0]) + max(0.0, box[2] - plot[0]) + max(0.0, -box[1]) + max(0.0, box[3] - plot[1])
    overlaps = (
        max(0.0, min(box[2], other[2]) - max(box[0], other[0])) * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    return outside * FONT_SIZE + sum(overlaps)

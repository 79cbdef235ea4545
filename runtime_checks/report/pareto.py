"""The plot of size and quality: a point for each file, the front, what counts as close, and the file that is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime_checks.report.advice import CLOSE
from runtime_checks.report.charts import FONT_SIZE, NARROW, WIDE, Spec, both_shapes
from runtime_checks.report.labels import Plane, place_names, place_note
from runtime_checks.report.page import Cell, Chart, Number, Table

HEIGHT = {WIDE: 330, NARROW: 330}
BOUND = "↓ close to the source"
NEAR = 4  # the bound is shown if it is that many times below or above the points, or among them


@dataclass(frozen=True)
class Point:
    """A file in the plane of size and quality. ``kld``: nats a token; ``reference``: another tool's, to compare with.

    ``badge``: what is said of the file that is chosen, in a few words, of which the first stands beside the point.
    """

    name: str
    size: int
    kld: float
    reference: bool = False
    badge: str = ""

    @property
    def label(self) -> str:
        """As it is written beside the point."""
        return f"{self.badge.split()[0]}: {self.name}" if self.badge else self.name


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
    whole = f"The dashed line joins the {len(front)} of {len(points)} files that no other beats in both."
    summary = f"Further left is smaller, further down is closer to the source. {whole}"
    pictures = both_shapes(lambda width: _spec(points, front, width), title)
    rows = [_row(point, front) for point in sorted(points, key=lambda point: point.size)]
    table = Table(title, ("file", "MB", "KL divergence", "on the front"), rows, True)
    return Chart(title, summary, pictures, table, _legend(points, front), headed=False)


def _legend(points: Sequence[Point], front: Sequence[Point]) -> list[tuple[str, str]]:
    legend = [("var(--ic)", "on the front")]
    if any(point not in front and not point.reference for point in points):
        legend.append(("var(--oc)", "off the front"))
    if any(point.reference for point in points):
        legend.append(("var(--reference)", "diamond: reference, made by another tool"))
    return legend


def _row(point: Point, front: Sequence[Point]) -> list[Cell]:
    own = f"{point.name} (reference)" if point.reference else f"{point.name} ({point.badge})" if point.badge else point.name
    return [own, Number(f"{point.size / 1e6:,.1f}"), Number(f"{point.kld:.4f}"), "yes" if point in front else "no"]


def _spec(points: Sequence[Point], front: Sequence[Point], width: int) -> Spec:
    klds = [point.kld for point in points]
    bound = CLOSE if min(klds) / NEAR <= CLOSE <= max(klds) * NEAR else None
    log = min(klds) > 0
    y = _domain(klds if bound is None else [*klds, bound], log)
    plane = Plane(_domain([point.size / 1e6 for point in points], False), y, log, width - 76, HEIGHT[width] - 62)
    values = [_mark(point, point in front) for point in sorted(points, key=lambda point: (point.size, point.kld))]
    for value, label in zip(values, place_names(values, plane, bound), strict=True):
        value |= label
    data = {
        "points": values,
        "front": [{"x": point.size / 1e6, "y": point.kld} for point in front],
        "far": [value for value in values if value["far"]],
        "chosen": [value for value in values if value["chosen"]],
        "bound": [] if bound is None else [{"y": bound} | place_note(BOUND, values, plane, bound)],
    }
    return {
        "width": plane.width,
        "height": plane.height,
        "padding": 4,
        "data": [{"name": name, "values": rows} for name, rows in data.items()],
        "scales": [
            {"name": "x", "type": "linear", "domain": plane.x, "range": [0, plane.width], "zero": False},
            {"name": "y", "type": "log" if log else "linear", "domain": y, "range": [plane.height, 0], "zero": False},
        ],
        "axes": _axes(plane),
        "marks": _marks(plane.width),
    }


def _axes(plane: Plane) -> list[Spec]:
    x = {"orient": "bottom", "scale": "x", "title": "size of the model file, MB", "grid": True}
    y = {"orient": "left", "scale": "y", "title": "KL divergence, nats a token", "grid": True, "tickCount": 5}
    ticks = {"values": _log_ticks(plane.y)} if plane.log else {}
    return [
        x | {"tickCount": max(3, plane.width // 120)},
        y | {"format": "~g", "minExtent": 44, "maxExtent": 44} | ticks,
    ]


def _mark(point: Point, front: bool) -> Spec:
    tip = f"{point.name}: {point.size / 1e6:,.1f} MB, KL divergence {point.kld:.4f} nats a token"
    more = [("reference", point.reference), ("on the front", front), (point.badge, point.badge)]
    return {
        "x": point.size / 1e6,
        "y": point.kld,
        "name": point.label,
        "front": front,
        "chosen": bool(point.badge),
        "fontWeight": 700 if point.badge else 400,
        "fill": "var(--good)" if point.badge else "var(--ink)",
        "shape": "diamond" if point.reference else "circle",
        "color": f"var(--{'ic' if front else 'reference' if point.reference else 'oc'})",
        "tip": ", ".join([tip, *(words for words, holds in more if holds)]),
    }


def _marks(width: int) -> list[Spec]:
    """From the back to the front; only the points themselves are for keys and ears."""
    at = {"x": {"scale": "x", "field": "x"}, "y": {"scale": "y", "field": "y"}}
    away = {f"{axis}2": {"scale": axis, "field": axis, "offset": {"field": f"d{axis}"}} for axis in "xy"}
    across = {"y": at["y"], "x": {"value": 0}, "x2": {"value": width}, **_stroke("good", 1, [2, 4])}
    note = {"y": at["y"], "x": {"field": "at"}, "fontSize": {"value": FONT_SIZE - 1}, "fill": {"value": "var(--soft)"}}
    words = {"text": {"field": "text"}, "align": {"field": "align"}, "dy": {"field": "dy"}, "baseline": {"value": "middle"}}
    dot = {"size": {"value": 110}, "shape": {"field": "shape"}, "fill": {"field": "color"}, **_stroke("page", 1)}
    label = {
        **{name: {"field": name} for name in ("dx", "dy", "align", "limit", "fontWeight", "fill")},
        "text": {"field": "name"},
        "baseline": {"value": "middle"},
        "fontSize": {"value": FONT_SIZE},
    }
    return [
        _silent("rule", "bound", across),
        _silent("text", "bound", note | words),
        _silent("line", "front", at | _stroke("ic", 1.5, [5, 4]) | {"interpolate": {"value": "step-after"}}),
        _silent("rule", "far", at | away | _stroke("muted", 1)),
        _silent("symbol", "chosen", at | _stroke("good", 3) | {"size": {"value": 420}, "fill": {"value": "transparent"}}),
        {"type": "symbol", "from": {"data": "points"}, "encode": {"enter": at | dot | {"description": {"field": "tip"}}}},
        _silent("text", "points", at | label),
    ]


def _stroke(colour: str, width: float, dash: Sequence[int] = ()) -> Spec:
    dashed = {"strokeDash": {"value": list(dash)}} if dash else {}
    return {"stroke": {"value": f"var(--{colour})"}, "strokeWidth": {"value": width}, **dashed}


def _silent(kind: str, data: str, enter: Spec) -> Spec:
    return {"type": kind, "from": {"data": data}, "aria": False, "interactive": False, "encode": {"enter": enter}}


def _domain(values: Sequence[float], log: bool) -> list[float]:
    """With a margin on both sides, also where all values are one."""
    low, high = min(values), max(values)
    if log:
        margin = max((high / low) ** 0.12, 1.15)
        return [low / margin, high * margin]
    margin = max((high - low) * 0.12, abs(high) * 0.02, 1e-9)
    return [low - margin, high + margin]


def _log_ticks(domain: Sequence[float]) -> list[float]:
    """1, 2 and 5 of each decade."""
    decades = range(math.floor(math.log10(domain[0])), math.ceil(math.log10(domain[1])))
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    return [tick for tick in ticks if domain[0] <= tick <= domain[1]]

"""The paper's picture of one layer: what comes in, what weights it meets, and where rounding errs with groups on each axis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from quantize.types import F32, Axis
from runtime_checks.report.charts import NARROW, WIDE, Spec, both_shapes, svg
from runtime_checks.report.outliers import Outliers
from runtime_checks.report.page import Cell, Chart, Number, Picture, Table

STEPS = 8  # of the palette "seq" in page.css
COMMON = 99.0  # percentile where the last step begins: one outlier must not leave all others in the first
CELL = (4, 5)  # pixels of a weight
LEFT = 50
LOUDEST = 8  # channels that are named
STRIP_HEIGHT = {WIDE: 200, NARROW: 190}
WORDS = {Axis.PER_OC: "per output channel", Axis.PER_IC: "per input channel"}


def outlier_charts(found: Outliers) -> list[Chart]:
    """The channels of the whole layer, then the slice around the loudest one."""
    charts = [] if found.inputs is None else [_strip(found, found.inputs, "root mean square of each input channel", "input")]
    return [
        *charts,
        _strip(found, found.columns, "largest |weight| of each input channel", "weights"),
        _weights(found),
        _errors(found),
    ]


def _strip(found: Outliers, sizes: F32, quantity: str, what: str) -> Chart:
    order = np.argsort(-sizes, kind="stable")[:LOUDEST]
    first, median = int(order[0]), float(np.median(sizes))
    title = f"{_layer(found)}: {quantity}"
    summary = (
        f"Channel {first} of {len(sizes)} is the largest with {sizes[first]:.3g}, "
        f"{sizes[first] / max(median, 1e-30):.1f} times the median of {median:.3g}."
    )
    pictures = both_shapes(lambda width: _strip_spec(sizes, order.tolist(), what, width), title)
    rows: list[list[Cell]] = [
        [str(index), Number(f"{sizes[index]:.4g}"), Number(f"{sizes[index] / max(median, 1e-30):.2f}")] for index in order
    ]
    return Chart(
        title, summary, pictures, Table(f"{title}, the {len(rows)} largest", ("channel", "size", "times the median"), rows, True)
    )


def _strip_spec(sizes: F32, loudest: Sequence[int], what: str, width: int) -> Spec:
    plot = (width - LEFT - 12, STRIP_HEIGHT[width] - 62)
    step = -(-len(sizes) // plot[0])  # no more bars than pixels: the largest of each few channels
    bars = np.maximum.reduceat(sizes, np.arange(0, len(sizes), step))
    data = [{"x": index * step, "y": float(size)} for index, size in enumerate(bars)]
    marks = [{"x": index, "y": float(sizes[index]), "tip": f"channel {index}: {sizes[index]:.3g}"} for index in sorted(loudest)]
    at = {"x": {"scale": "x", "field": "x"}, "y": {"scale": "y", "field": "y"}}
    bar = {
        "y2": {"scale": "y", "value": 0},
        "stroke": {"value": "var(--seq-5)"},
        "strokeWidth": {"value": max(1, plot[0] // (2 * len(bars)))},
    }
    dot = {"size": {"value": 45}, "fill": {"value": "var(--ic)"}, "description": {"field": "tip"}}
    return {
        "width": plot[0],
        "height": plot[1],
        "padding": 5,
        "data": [{"name": "bars", "values": data}, {"name": "marks", "values": marks}],
        "scales": [
            {"name": "x", "type": "linear", "domain": [0, len(sizes)], "range": [0, plot[0]]},
            {"name": "y", "type": "linear", "domain": [0, float(sizes.max()) * 1.08], "range": [plot[1], 0]},
        ],
        "axes": [
            {"orient": "bottom", "scale": "x", "title": "input channel", "tickCount": plot[0] // 90},
            {"orient": "left", "scale": "y", "title": what, "tickCount": 4, "grid": True, "minExtent": 34, "maxExtent": 34},
        ],
        "marks": [
            {"type": "rule", "from": {"data": "bars"}, "aria": False, "encode": {"enter": at | bar}},
            {"type": "symbol", "from": {"data": "marks"}, "encode": {"enter": at | dot}},
        ],
    }


def _weights(found: Outliers) -> Chart:
    panels: list[tuple[str, F32, Axis | None]] = [("|weight| in the source", found.before, None)]
    if found.after is not None:
        panels.append((f"|weight| as stored, {found.grid.bits} bits {WORDS[found.axis]}", found.after, found.axis))
    title = f"{_layer(found)}: a slice of the weights, before and after"
    folded = "" if found.after is not None else " The layer was rounded in another basis, so its stored weights are not these."
    summary = f"{_where(found)} Dashed lines part the groups that share a scale.{folded}"
    return _panels(found, title, summary, panels)


def _errors(found: Outliers) -> Chart:
    panels = [(f"|error| with groups {WORDS[axis]}", found.errors[axis], axis) for axis in Axis]
    title = f"{_layer(found)}: where rounding errs, by the axis of its groups"
    ratio = found.mse[Axis.PER_OC] / max(found.mse[Axis.PER_IC], 1e-300)
    summary = (
        f"{_where(found)} Rounded to the nearest value at {found.grid.bits} bits in groups of {found.grid.group_size}. "
        f"Over the whole layer the weights' mean squared error per output channel is {ratio:.2f} times that per input channel"
    )
    if found.output_mse is not None:
        ratio = found.output_mse[Axis.PER_OC] / max(found.output_mse[Axis.PER_IC], 1e-300)
        summary += f", and the output's, under the inputs above, {ratio:.2f} times"
    return _panels(found, title, f"{summary}. It is stored {WORDS[found.axis]}.", panels)


def _layer(found: Outliers) -> str:
    return found.name.removeprefix("model.").removesuffix(".weight")


def _where(found: Outliers) -> str:
    (row, col), (rows, cols) = found.corner, found.before.shape
    part = f"Output channels {row} to {row + rows - 1}, input channels {col} to {col + cols - 1}"
    return f"{part}, around input channel {found.channel}."


def _panels(found: Outliers, title: str, summary: str, panels: Sequence[tuple[str, F32, Axis | None]]) -> Chart:
    values = np.concatenate([panel.ravel() for _, panel, _ in panels])
    top = float(np.percentile(values, COMMON)) or 1.0
    edges = np.linspace(0, top, STEPS, dtype=np.float32)[1:]
    pictures = [
        Picture(svg(_panel_spec(found, panel, axis, edges), caption), "panel", caption) for caption, panel, axis in panels
    ]
    legend = [(f"var(--seq-{step})", f"to {edge:.2g}") for step, edge in enumerate(edges)]
    legend.append((f"var(--seq-{STEPS - 1})", f"to {values.max():.2g}"))
    rows: list[list[Cell]] = [
        [str(found.corner[1] + col), *(Number(f"{panel[:, col].mean():.3g}") for _, panel, _ in panels)]
        for col in range(found.before.shape[1])
    ]
    columns = ("input channel", *(f"mean {caption}" for caption, _, _ in panels))
    return Chart(title, summary, pictures, Table(f"{title}, by input channel", columns, rows, True), legend)


def _panel_spec(found: Outliers, panel: F32, axis: Axis | None, edges: F32) -> Spec:
    (row, col), (rows, cols) = found.corner, panel.shape
    size = (cols * CELL[0], rows * CELL[1])
    group = found.grid.group_size or max(found.before.shape)
    lines = []
    if axis is Axis.PER_OC:
        lines = [
            {"x": (at - col) * CELL[0], "y": 0, "x2": (at - col) * CELL[0], "y2": size[1]} for at in _edges(col, cols, group)
        ]
    elif axis is Axis.PER_IC:
        lines = [
            {"x": 0, "y": (at - row) * CELL[1], "x2": size[0], "y2": (at - row) * CELL[1]} for at in _edges(row, rows, group)
        ]
    scales = [
        {"name": "x", "type": "linear", "domain": [col, col + cols], "range": [0, size[0]], "zero": False},
        {"name": "y", "type": "linear", "domain": [row, row + rows], "range": [0, size[1]], "zero": False},
    ]
    ticks = {"format": "d", "tickCount": 5}
    axes = [
        {"orient": "bottom", "scale": "x", "title": "input channel", **ticks},
        {"orient": "left", "scale": "y", "title": "output channel", "minExtent": 34, "maxExtent": 34, **ticks},
    ]
    tips = [
        {"x": at * CELL[0], "tip": f"input channel {col + at}: mean {panel[:, at].mean():.3g}, largest {panel[:, at].max():.3g}"}
        for at in range(cols)
    ]
    return {
        "width": size[0],
        "height": size[1],
        "padding": 5,
        "data": [
            {"name": "runs", "values": _runs(panel, edges)},
            {"name": "lines", "values": lines},
            {"name": "tips", "values": tips},
        ],
        "scales": scales,
        "axes": axes,
        "marks": _panel_marks(size[1]),
    }


def _panel_marks(height: int) -> list[Spec]:
    box = {key: {"field": key} for key in ("x", "y", "width", "fill")} | {"height": {"value": CELL[1]}}
    line = {key: {"field": key} for key in ("x", "y", "x2", "y2")}
    dashes = {"stroke": {"value": "var(--ic)"}, "strokeDash": {"value": [3, 3]}}
    column = {"x": {"field": "x"}, "y": {"value": 0}, "width": {"value": CELL[0]}, "height": {"value": height}}
    hidden = {"fill": {"value": "transparent"}, "description": {"field": "tip"}}
    return [
        {"type": "rect", "from": {"data": "runs"}, "aria": False, "encode": {"enter": box}},
        {"type": "rule", "from": {"data": "lines"}, "aria": False, "encode": {"enter": line | dashes}},
        {"type": "rect", "from": {"data": "tips"}, "encode": {"enter": column | hidden}},
    ]


def _edges(start: int, length: int, group: int) -> range:
    """Where a group begins inside the slice, its own beginning left out."""
    return range(-(-(start + 1) // group) * group, start + length, group)


def _runs(panel: F32, edges: F32) -> list[dict[str, Any]]:
    """The slice as rectangles: neighbours in a row that share a step are one."""
    steps, out = np.searchsorted(edges, panel), list[dict[str, Any]]()
    for row, line in enumerate(steps):
        starts = [0, *(np.flatnonzero(np.diff(line)) + 1).tolist(), len(line)]
        for start, stop in pairwise(starts):
            out.append(
                {"x": start * CELL[0], "y": row * CELL[1], "width": (stop - start) * CELL[0], "fill": f"var(--seq-{line[start]})"}
            )
    return out

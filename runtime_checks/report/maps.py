"""A model's linears as a map of layers: the axis that loses less, the loss that is left, or the bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from quantize.gguf.names import to_source_name
from quantize.model_config import block_index, is_linear, weight_name
from quantize.types import Axis
from runtime_checks.report.charts import FONT_SIZE, NARROW, WIDE, Spec, both_shapes
from runtime_checks.report.page import Cell, Chart, Number, Table

Json = dict[str, Any]
STEPS = 8  # of the palette "seq" in page.css; "div" has one more than RATIOS
RATIOS = (1 / 2, 1 / 1.25, 1 / 1.05, 1.05, 1.25, 2)  # of losses per OC to losses per IC, between the steps of "div"
AXES = {Axis.PER_OC: "per OC", Axis.PER_IC: "per IC", None: "no axis"}
LEFT = 52  # pixels for the names of the rows
CELL = {WIDE: 30, NARROW: 20}  # its rows
SMALLEST_TEXT = 15  # pixels of a cell that can hold two letters


def layer_charts(report: Json, name: str) -> list[Chart]:
    """What is known of every linear in a report of ``exporter.inspect``: the better axis, the loss that is left, the bits."""
    tensors = report["tensors"]
    cells = [item | {"place": place, "bits": _bits(item, tensors)} for item in tensors if (place := _place(item)) is not None]
    if not cells:
        return []
    both = [item for item in cells if len(item.get("loss", {})) > 1]
    lost = [item for item in cells if _loss(item) is not None]
    charts = []
    if both:
        charts.append(_axis_map(cells, both, name))
    charts.append(_loss_map(cells, name) if lost else _bits_map(cells, name))
    return charts


def _place(item: Json) -> tuple[int, str] | None:
    """Layer and short name of a linear, whatever the file calls it."""
    hf_name = to_source_name(item["name"].replace(".weight_ic", ".weight"))
    index, part = block_index(hf_name), hf_name.removesuffix(".weight").rpartition(".")[2]
    return None if index is None or not is_linear(hf_name, item["shape"]) else (index, part.removesuffix("_proj"))


def _bits(item: Json, tensors: Sequence[Json]) -> float | None:
    """Of codes and floats of a linear, on average where its parts read some input channels each."""
    bits: float | None = item["bits"]
    if "reads" not in item or bits is None:
        return bits
    others = [part for part in tensors if part is not item and weight_name(part["name"]) == item["name"]]
    total = item["reads"] * bits + sum(part["shape"][1] * part["bits"] for part in others)
    return float(total / item["shape"][1])


def _loss(item: Json) -> float | None:
    """Of the axis that it is stored on, if that is more than nothing."""
    loss = item.get("loss", {}).get(item["axis"])
    return loss if loss else None


def _axis_map(cells: Sequence[Json], both: Sequence[Json], name: str) -> Chart:
    per_ic = sum(item["axis"] == Axis.PER_IC for item in cells)
    better = sum(item["loss"][Axis.PER_IC] < item["loss"][Axis.PER_OC] for item in both)
    best = max(both, key=_gain)
    layer, linear = best["place"]
    summary = (
        f"{per_ic} of {len(cells)} linears are stored per input channel. Of the {len(both)} for which both axes were tried, "
        f"{better} lose less that way; the most to gain is at layer {layer}, {linear}: "
        f"{_gain(best):.2f} times the loss if stored per output channel."
    )
    words = ("per OC: half the loss or less", "per OC", "per OC, slightly", "alike within 5 %")
    legend = [
        (f"var(--div-{step})", word) for step, word in enumerate([*words, *(word.replace("OC", "IC") for word in words[2::-1])])
    ]

    def shade(item: Json) -> str | None:
        return f"div-{sum(_gain(item) > ratio for ratio in RATIOS)}" if item in both else None

    def label(item: Json) -> str:
        return "IC" if item["axis"] == Axis.PER_IC else ""

    return _map(f"{name}: which axis loses less", summary, cells, (shade, label), legend)


def _gain(item: Json) -> float:
    """How many times its loss per IC the loss per OC is."""
    loss = item["loss"]
    return float(loss[Axis.PER_OC] / max(loss[Axis.PER_IC], 1e-300))


def _loss_map(cells: Sequence[Json], name: str) -> Chart:
    known = [(loss, item) for item in cells if (loss := _loss(item)) is not None]
    losses = [loss for loss, _ in known]
    (low, high), (_, worst) = (min(losses), max(losses)), max(known, key=lambda pair: pair[0])
    layer, linear = worst["place"]
    share = 100 * high / sum(losses)
    summary = (
        f"The loss of each linear as it is stored, from {low:.2g} to {high:.2g}; the number is its bits a weight. "
        f"The most is lost at layer {layer}, {linear}: {share:.1f} % of the sum of {sum(losses):.3g}."
    )
    edges = [low * (high / low) ** (step / STEPS) for step in range(1, STEPS)]
    words = [f"up to {edge:.1e}" for edge in edges] + [f"up to {high:.1e}"]
    legend = [(f"var(--seq-{step})", word) for step, word in enumerate(words)]

    def shade(item: Json) -> str | None:
        loss = _loss(item)
        return None if loss is None else f"seq-{sum(loss > edge for edge in edges)}"

    return _map(f"{name}: what each linear loses", summary, cells, (shade, bits_text), legend)


def _bits_map(cells: Sequence[Json], name: str) -> Chart:
    widths = {bits_text(item): bits_shade(item) for item in sorted(cells, key=lambda item: float(bits_text(item)))}
    counts = ", ".join(f"{sum(bits_text(item) == bits for item in cells)} at {bits} bits" for bits in widths)
    summary = f"The bits of the codes of each of {len(cells)} linears: {counts}. Their losses are not recorded here."
    legend = [(f"var(--{shade})", f"{bits} bits") for bits, shade in widths.items()]
    return _map(f"{name}: bits of each linear", summary, cells, (bits_shade, bits_text), legend)


def bits_text(item: Json) -> str:
    """The width of a tensor's codes or floats; of a type that is none of ours, what its bytes come to."""
    return f"{item['bits'] or 8 * item['bytes'] / max(1, math.prod(item['shape'])):.3g}"


def bits_shade(item: Json) -> str:
    """The colour of 2 bits to 8, each its own; what is wider takes the last."""
    return f"seq-{min(max(round(float(bits_text(item))) - 2, 0), STEPS - 1)}"


def _map(
    title: str,
    summary: str,
    cells: Sequence[Json],
    shown: tuple[Callable[[Json], str | None], Callable[[Json], str]],
    legend: Sequence[tuple[str, str]],
) -> Chart:
    shade, label = shown
    values = []
    for item in cells:
        (layer, linear), colour = item["place"], shade(item)
        fill = "var(--card)" if colour is None else f"var(--{colour})"
        ink = "var(--ink)" if colour is None else f"var(--{colour}-ink)"
        values.append({"layer": layer, "linear": linear, "fill": fill, "ink": ink, "label": label(item), "tip": _tip(item)})
    pictures = both_shapes(lambda width: _map_spec(values, width), title)
    rows = [_row(item) for item in cells]
    columns = ("tensor", "axis", "grid", "bits", "group", "loss per OC", "loss per IC")
    return Chart(title, summary, pictures, Table(title, columns, rows, True), legend)


def _row(item: Json) -> list[Cell]:
    loss = item.get("loss", {})
    losses = [Number(f"{loss[axis]:.3g}") if axis in loss else "" for axis in Axis]
    group = "" if item["group_size"] is None else Number(item["group_size"])
    return [item["name"], AXES[item["axis"]], item["grid"], Number(bits_text(item)), group, *losses]


def _tip(item: Json) -> str:
    layer, linear = item["place"]
    losses = ", ".join(f"{AXES[axis]} {loss:.3g}" for axis, loss in item.get("loss", {}).items())
    group = "" if item["group_size"] is None else f" in groups of {item['group_size']}"
    stored = f"{AXES[item['axis']]}, {item['grid']}, {bits_text(item)} bits{group}"
    return f"layer {layer}, {linear}: {stored}" + (f", loss {losses}" if losses else "")


def _map_spec(values: Sequence[Json], width: int) -> Spec:
    """Layers across where there is room, down on a phone."""
    layers = sorted({value["layer"] for value in values})
    linears = list(dict.fromkeys(value["linear"] for value in values))
    across, down = (layers, linears) if width == WIDE else (linears, layers)
    x_field, y_field = ("layer", "linear") if width == WIDE else ("linear", "layer")
    plot, height = width - LEFT - 8, CELL[width] * len(down)
    fits = plot / len(across) >= SMALLEST_TEXT
    step = max(1, math.ceil(len(across) * 2 * FONT_SIZE / plot))
    scales = [
        {"name": "x", "type": "band", "domain": across, "range": [0, plot], "padding": 0.08, "round": True},
        {"name": "y", "type": "band", "domain": down, "range": [0, height], "padding": 0.08, "round": True},
    ]
    bare = {"domain": False, "ticks": False}
    axes = [
        {"orient": "bottom", "scale": "x", "title": x_field, "values": across[::step], "labelPadding": 4, **bare},
        {"orient": "left", "scale": "y", "title": "" if width == WIDE else "layer", "minExtent": 36, "maxExtent": 36, **bare},
    ]
    return {
        "width": plot,
        "height": height,
        "padding": 4,
        "data": [{"name": "cells", "values": list(values)}],
        "scales": scales,
        "axes": axes,
        "marks": _map_marks(x_field, y_field, fits),
    }


def _map_marks(x_field: str, y_field: str, fits: bool) -> list[Spec]:
    band = {
        "x": {"scale": "x", "field": x_field},
        "width": {"scale": "x", "band": 1},
        "y": {"scale": "y", "field": y_field},
        "height": {"scale": "y", "band": 1},
    }
    cell = {"fill": {"field": "fill"}, "description": {"field": "tip"}}
    middle = {
        "x": {"scale": "x", "field": x_field, "band": 0.5},
        "y": {"scale": "y", "field": y_field, "band": 0.5},
        "text": {"field": "label"},
        "fill": {"field": "ink"},
        "align": {"value": "center"},
        "baseline": {"value": "middle"},
        "fontSize": {"value": FONT_SIZE - 2},
    }
    cells: Spec = {"type": "rect", "from": {"data": "cells"}, "encode": {"enter": band | cell}}
    texts: Spec = {"type": "text", "from": {"data": "cells"}, "aria": False, "interactive": False, "encode": {"enter": middle}}
    return [cells, texts] if fits else [cells]

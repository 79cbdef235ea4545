"""Where a file's bytes went: a treemap of its tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from quantize.gguf.names import to_source_name
from quantize.model_config import block_index
from runtime_checks.report.charts import FONT_SIZE, NARROW, WIDE, Spec, both_shapes
from runtime_checks.report.maps import bits_shade, bits_text
from runtime_checks.report.page import Chart, Number, Table

Json = dict[str, Any]
HEIGHT = {WIDE: 460, NARROW: 480}
ROOT = "/"  # no tensor's name
TITLE = 16  # pixels above a layer's tensors for its name


def tree_chart(report: Json, name: str) -> Chart:
    """Every tensor of a report of ``exporter.inspect`` as large as its bytes, coloured by its bits."""
    tensors = sorted(report["tensors"], key=lambda item: -item["bytes"])
    total = sum(item["bytes"] for item in tensors)
    largest = tensors[0]
    spent = defaultdict[str, int](int)
    for item in tensors:
        spent[bits_text(item)] += item["bytes"]
    shares = ", ".join(
        f"{100 * size / total:.1f} % at {bits} bits" for bits, size in sorted(spent.items(), key=lambda pair: -pair[1])
    )
    summary = (
        f"{total / 1e6:,.1f} MB in {len(tensors)} tensors. The largest is {largest['name']} with "
        f"{100 * largest['bytes'] / total:.0f} % of it. {shares}."
    )
    title = f"{name}: bytes by tensor"
    pictures = both_shapes(lambda width: _spec(tensors, width), title)
    rows = [
        [item["name"], "×".join(map(str, item["shape"])), item["grid"], Number(bits_text(item)), Number(f"{item['bytes']:,}")]
        for item in tensors
    ]
    shades = {bits_text(item): bits_shade(item) for item in sorted(tensors, key=lambda item: float(bits_text(item)))}
    legend = [(f"var(--{shade})", f"{bits} bits") for bits, shade in shades.items()]
    return Chart(title, summary, pictures, Table(title, ("tensor", "shape", "grid", "bits", "bytes"), rows, True), legend)


def _spec(tensors: Sequence[Json], width: int) -> Spec:
    root: Json = {"id": ROOT}
    indices = sorted({index for item in tensors if (index := _layer(item)) is not None})
    layers = [{"id": index, "parent": ROOT, "title": f"layer {index}"} for index in indices]
    leaves = [
        {
            "id": item["name"],
            "parent": ROOT if _layer(item) is None else _layer(item),
            "bytes": item["bytes"],
            "fill": f"var(--{bits_shade(item)})",
            "ink": f"var(--{bits_shade(item)}-ink)",
            "label": _short(item["name"]),
            "tip": f"{item['name']}: {item['bytes']:,} bytes, {item['grid']}, {bits_text(item)} bits",
        }
        for item in tensors
    ]
    tree = [
        {"type": "stratify", "key": "id", "parentKey": "parent"},
        {"type": "treemap", "field": "bytes", "size": [width, HEIGHT[width]], "paddingOuter": 1, "paddingInner": 1}
        | {"paddingTop": TITLE, "round": True},
    ]
    return {
        "width": width,
        "height": HEIGHT[width],
        "padding": 0,
        "data": [
            {"name": "tree", "values": [root, *leaves[:1], *layers, *leaves[1:]], "transform": tree},
            {"name": "layers", "source": "tree", "transform": [{"type": "filter", "expr": "isValid(datum.title)"}]},
            {"name": "leaves", "source": "tree", "transform": [{"type": "filter", "expr": "isValid(datum.label)"}]},
        ],
        "marks": [_tiles(), _names("leaves", "label", "ink", 14), _names("layers", "title", None, 12)],
    }


def _tiles() -> Spec:
    box = {edge: {"field": field} for edge, field in (("x", "x0"), ("x2", "x1"), ("y", "y0"), ("y2", "y1"))}
    return {
        "type": "rect",
        "from": {"data": "leaves"},
        "encode": {"enter": box | {"fill": {"field": "fill"}, "description": {"field": "tip"}}},
    }


def _names(data: str, text: str, ink: str | None, height: int) -> Spec:
    """Texts at the tiles' upper left corners, where a tile can hold one."""
    fits = f"datum.x1 - datum.x0 > 7 * length(datum.{text}) && datum.y1 - datum.y0 > {height}"
    shown = {
        "x": {"field": "x0", "offset": 3},
        "y": {"field": "y0", "offset": 2},
        "baseline": {"value": "top"},
        "fontSize": {"value": FONT_SIZE - 2},
        "fill": {"value": "var(--soft)"} if ink is None else {"field": ink},
        "text": {"signal": f"{fits} ? datum.{text} : ''"},
    }
    return {"type": "text", "from": {"data": data}, "aria": False, "encode": {"enter": shown}}


def _layer(item: Json) -> int | None:
    return block_index(to_source_name(item["name"].replace(".weight_ic", ".weight")))


def _short(name: str) -> str:
    """The last word of a tensor's name, or the one before ".weight"."""
    return to_source_name(name.replace(".weight_ic", ".weight")).removesuffix(".weight").rpartition(".")[2]

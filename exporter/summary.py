"""What a person is told when a command is done: true bits, axes, nodes, decode time, and whatever was not as asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from exporter.targets import TARGETS
from quantize.model_config import LINEARS
from quantize.store import QuantizedStore, TensorRecord
from quantize.types import Axis

Row = tuple[str, str]


def store_summary(store: QuantizedStore) -> str:
    """Several lines about a finished store."""
    records = [record for record in store.records.values() if record.name.removesuffix(".weight").endswith(LINEARS)]
    linears = [record for record in records if record.grid is not None]
    header = store.header
    rows = [("target", f"{store.target}, method {header['config']['method']}")]
    rows += _calibration_rows(header.get("calibration") or {})
    if linears:
        rows += _linear_rows(linears, store.target)
    rows += [
        (name, _storage(store.records[name])) for name in ("model.embed_tokens.weight", "lm_head.weight") if name in store.records
    ]
    if store.tied:
        rows.append(("lm_head.weight", "tied to the embedding"))
    return table(str(store.path), rows + [("note", note) for note in header.get("notes", ())])


def table(title: str, rows: Iterable[Row]) -> str:
    """A title and indented rows of a name and a text."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in rows)])


def inspect_summary(report: dict[str, Any], title: str) -> str:
    """The report of ``exporter.inspect`` as a table."""
    totals = report["totals"]
    rows = [
        (item["name"], f"{item['grid']:8} {item['bits']} bits, group {item['group_size']}, {item['axis']}, {item['shape']}")
        for item in report["tensors"]
    ]
    rows += [
        (key.replace("_", " "), f"{value:,.3f}" if isinstance(value, float) else f"{value:,}") for key, value in totals.items()
    ]
    return table(title, rows)


def _calibration_rows(calibration: dict[str, Any]) -> list[Row]:
    if not calibration:
        return []
    poor = calibration.get("rank_poor", [])
    rows = [("calibration", f"{calibration['text']}, {calibration['tokens']:,} tokens")]
    return rows + [("rank-poor", site) for site in poor]


def _linear_rows(linears: list[TensorRecord], target_name: str) -> list[Row]:
    target = TARGETS[target_name]
    weights = bits = nodes = seconds = 0.0
    plain_nodes = plain_seconds = 0.0
    for record in linears:
        shape = (record.shape[0], record.shape[1])
        assert record.grid is not None
        weights += shape[0] * shape[1]
        bits += target.stored_bits(record.grid, record.axis) * shape[0] * shape[1]
        nodes += target.nodes(record.grid, record.axis, shape)
        seconds += target.decode_cost(record.grid, record.axis, shape)
        plain_nodes += target.nodes(record.grid, Axis.PER_OC, shape)
        plain_seconds += target.decode_cost(record.grid, Axis.PER_OC, shape)
    axes = Counter(str(record.axis) for record in linears)
    grids = Counter(_grid_name(record) for record in linears)
    return [
        ("linears", f"{len(linears)} tensors, {weights:,.0f} weights at {bits / weights:.3f} bits a weight"),
        ("grids", ", ".join(f"{count} {grid}" for grid, count in sorted(grids.items()))),
        ("axes", ", ".join(f"{count} {axis}" for axis, count in sorted(axes.items()))),
        ("nodes", f"{nodes:,.0f} for the linears ({plain_nodes:,.0f} if all were per_oc)"),
        (
            "decode",
            f"linears about {seconds * 1e3:.2f} ms a token ({plain_seconds * 1e3:.2f} ms if all were per_oc), by a cost model",
        ),
    ]


def _grid_name(record: TensorRecord) -> str:
    assert record.grid is not None
    if record.grid.name != "int":
        return record.grid.name
    return f"int{record.grid.bits} group {record.grid.group_size}{' symmetric' if record.grid.symmetric else ''}"


def _storage(record: TensorRecord) -> str:
    return record.dtype if record.grid is None else f"{_grid_name(record)}, {record.grid.bits_per_weight:.3f} bits a weight"

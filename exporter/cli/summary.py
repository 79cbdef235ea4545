"""What a person is told when a command is done: true bits, axes, nodes, decode time, and whatever was not as asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod
from statistics import median
from typing import Any, NamedTuple

from exporter.targets import TARGETS
from quantize.grids import grid_from_json
from quantize.grids.int_affine import SCALE_DTYPES, IntAffine
from quantize.model_config import EMBEDDING, HEAD, is_linear, weight_name
from quantize.rounding.exact import EXACT
from quantize.store.tensors import QuantizedStore
from quantize.types import Axis, Grid

Row = tuple[str, str]
SHOWN_MISSES = 20


class LinearCost(NamedTuple):
    """A quantized linear layer as far as its cost goes."""

    grid: Grid
    axis: Axis
    shape: tuple[int, ...]


def table(title: str, rows: Iterable[Row]) -> str:
    """A title and indented rows of a name and a text."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in rows)])


def store_summary(store: QuantizedStore, title: str | None = None) -> str:
    """Several lines about a store, or one that is planned."""
    header = store.header
    rows = [("target", f"{store.target}, method {header['config']['method']}"), *_budget_rows(header.get("budget"))]
    rows += calibration_rows(header.get("calibration"), header.get("imatrix"))
    linears = [
        LinearCost(record.grid, record.axis, record.shape)
        for record in store.records.values()
        if record.grid is not None and is_linear(weight_name(record.name), record.shape)
    ]
    rows += _linear_rows(linears, store, _beside_bytes(store)) + _loss_rows(store) + _activation_rows(store)
    rows += _exact_rows(store)
    rows += _transform_rows({name: digits.count("1") for name, digits in header.get("transforms", {}).items()})
    for name in (EMBEDDING, HEAD):
        if name in store.records:
            grid = store.records[name].grid
            rows.append((name, store.records[name].dtype if grid is None else _grid_name(grid)))
    if store.tied:
        rows.append((HEAD, "tied to the embedding"))
    return table(title or str(store.path), rows + [("note", note) for note in header.get("notes", ())])


def _exact_rows(store: QuantizedStore) -> list[Row]:
    count = sum(record.rounder == EXACT for record in store.records.values())
    return [("exact", f"{count} tensors lie on their grid already: codes carried over, nothing rounded")] if count else []


def inspect_summary(report: dict[str, Any], title: str) -> str:
    """The report of ``exporter.inspect`` as a table, totals last."""
    return table(title, [*((item["name"], _tensor_text(item)) for item in report["tensors"]), *totals_rows(report)])


def totals_rows(report: dict[str, Any]) -> list[Row]:
    """The totals of a report of ``exporter.inspect``."""
    totals = report["totals"]
    rows = [] if report.get("imatrix") is None else [_imatrix_row(report["imatrix"])]
    rows += [
        ("bytes", f"{totals['bytes']:,}"),
        ("weights", f"{totals['weights']:,}"),
        ("linears", f"{totals['bits_per_weight']:.3f} bits a weight"),
    ]
    if "nodes" in report:
        rows.append(("graph", f"{report['nodes']:,} nodes"))
    rows += _transform_rows(report.get("transforms", {}))
    if "target" in report:
        items = [
            item for item in report["tensors"] if item["axis"] is not None and is_linear(weight_name(item["name"]), item["shape"])
        ]
        rows += _cost_rows([_cost_of(item) for item in items], report["target"])
    return rows


def _cost_of(item: dict[str, Any]) -> LinearCost:
    shape = (*item["shape"][:-1], item.get("reads", item["shape"][-1]))
    return LinearCost(grid_from_json(item), Axis(item["axis"]), shape)


def checks_summary(report: dict[str, Any], title: str) -> str:
    """What missed of a report of ``verify``, and how many checks hold."""
    checks = report["checks"]
    misses = [check for check in checks if not check["ok"]]
    lines = [
        f"MISS {miss['name']}: {miss['tensor']}: {miss['error']:.6g}, allowed {miss['tolerance']:.6g}"
        for miss in misses[:SHOWN_MISSES]
    ]
    if len(misses) > SHOWN_MISSES:
        lines.append(f"... and {len(misses) - SHOWN_MISSES} more misses")
    notes = [check for check in checks if check.get("note")]
    lines += [f"WARNING {check['name']}: {check['tensor']}: {check['note']}" for check in notes[:SHOWN_MISSES]]
    if len(notes) > SHOWN_MISSES:
        lines.append(f"... and {len(notes) - SHOWN_MISSES} more warnings")
    verdict = "ok" if report["ok"] else "NOT ok"
    return "\n".join([*lines, f"{title}: {verdict}, {len(checks) - len(misses)} of {len(checks)} checks hold"])


def _imatrix_row(imatrix: dict[str, Any]) -> Row:
    texts = ", ".join(imatrix["datasets"]) or "an unnamed text"
    return "imatrix", f"{imatrix['name']} (sha256 {imatrix['sha256'][:16]}), {imatrix['chunks']:,} chunks of {texts}"


def _transform_rows(layers: dict[str, int]) -> list[Row]:
    return [("transforms", ", ".join(f"{name} in {count} layers" for name, count in layers.items()))] if layers else []


def _budget_rows(budget: dict[str, Any] | None) -> list[Row]:
    if budget is None:
        return []
    asked, size = budget["target_bytes"], budget["bytes"]
    return [
        ("file size", f"{size:,} bytes, {100 * (asked - size) / asked:.2f} % below the {asked:,} asked for"),
        ("predicted", f"KL divergence {budget['predicted_kl']:.4g} nats a token by round-to-nearest"),
    ]


def calibration_rows(calibration: dict[str, Any] | None, imatrix: dict[str, Any] | None = None) -> list[Row]:
    """The text that was run over, or the importance matrix that stood in for it."""
    if imatrix is not None:
        return [_imatrix_row(imatrix)]
    if calibration is None:
        return [("calibration", "none needed")]
    poor = [("rank-poor", site) for site in calibration["rank_poor"]]
    return [("calibration", f"{calibration['text']}, {calibration['tokens']:,} tokens"), *poor]


def _beside_bytes(store: QuantizedStore) -> int:
    """Of input channels in float16."""
    return sum(2 * prod(record.shape) for record in store.records.values() if record.inputs and record.grid is None)


def _linear_rows(linears: Sequence[LinearCost], store: QuantizedStore, beside: int) -> list[Row]:
    if not linears:
        return [("linears", "none quantized")]
    target_name, target = store.target, TARGETS[store.target]
    wholes = [
        record.whole_shape for name, record in store.records.items() if record.grid is not None and is_linear(name, record.shape)
    ]
    weights = sum(map(prod, wholes))
    bits = 8 * (beside + sum(target.stored_bytes(*linear) for linear in linears)) / weights
    rows = [
        ("linears", f"{len(wholes)} tensors, {weights:,} weights at {bits:.3f} bits a weight"),
        ("grids", _counts(_grid_name(linear.grid) for linear in linears)),
        ("axes", _counts(str(linear.axis) for linear in linears)),
    ]
    if len(linears) > len(wholes):
        rows.append(("parts", f"{len(linears)}, of other input channels each; these are what grids and axes count"))
    if beside:
        rows.append(("float16", f"input channels in {beside:,} bytes of it, whose nodes are not in the estimates below"))
    if target_name == "onnxruntime" and any(linear.grid.bits == 3 for linear in linears):
        rows.append(("note", "3-bit codes ride in 4-bit nodes: MatMulNBits has no 3 bits"))
    if target.writer == "onnx" and any(linear.grid.bits < 4 and len(linear.shape) > 2 for linear in linears):
        rows.append(("note", "codes of experts ride in 4-bit nodes: QMoE has no fewer that are exact"))
    return rows + _cost_rows(linears, target_name)


def _cost_rows(linears: Sequence[LinearCost], target_name: str) -> list[Row]:
    """Nodes and decode time of the linears beside what they were if all were per-OC."""
    target = TARGETS[target_name]
    as_chosen = [(target.nodes(*linear), target.decode_cost(*linear)) for linear in linears]
    all_per_oc = [
        (target.nodes(grid, Axis.PER_OC, shape), target.decode_cost(grid, Axis.PER_OC, shape)) for grid, _, shape in linears
    ]
    nodes, plain_nodes = (sum(node for node, _ in costs) for costs in (as_chosen, all_per_oc))
    time, plain_time = (1e3 * sum(seconds for _, seconds in costs) for costs in (as_chosen, all_per_oc))
    return [
        ("nodes", f"{nodes:,} for the linears, {plain_nodes:,} if all were per_oc"),
        ("decode", f"about {time:.2f} ms a token for the linears, {plain_time:.2f} ms if all were per_oc (cost model)"),
    ]


def _loss_rows(store: QuantizedStore) -> list[Row]:
    """What rounding and tuning left, where losses are nats a token."""
    config, tuning = store.header["config"], store.header.get("tuning")
    losses = [
        record.loss.get(record.axis)
        for name, record in store.records.items()
        if record.grid is not None and is_linear(name, record.shape)
    ]
    rows = list[Row]()
    if store.header.get("imatrix") is None and config["token_weight"] == "gradient" and config["selection"] == "hessian":
        known = [loss for loss in losses if loss is not None]
        if known and len(known) == len(losses):
            rows.append(
                ("rounding", f"KL divergence {sum(known):.4g} nats a token predicted for the linears as they are rounded")
            )
    blocks = store.header.get("blocks")
    if blocks is not None:
        text = f"{blocks['steps']} steps a layer: its output's error times {_left(blocks):.3f} (median) on text that no step saw"
        rows.append(("blocks", text))
    norms = store.header.get("norms")
    if norms is not None:
        apart, lost = (_left(norms[key]) for key in ("distance", "loss"))
        text = f"statistics' distance times {apart:.3f}, output's error times {lost:.3f} (medians) on text that no step saw"
        rows.append(("norms", text))
    if tuning is not None:
        change = f"{tuning['before']:.4g} to {tuning['after']:.4g}"
        rows.append(("tuning", f"{tuning['steps']} steps: KL divergence {change} nats a token on held-out calibration text"))
    return rows


def _left(changes: dict[str, list[float]]) -> float:
    """Of what was before, as much as is left in the median layer; what was nothing is left whole."""
    return median(after / before if before else 1.0 for before, after in zip(changes["before"], changes["after"], strict=True))


def _activation_rows(store: QuantizedStore) -> list[Row]:
    """What rounds inputs of linears, where the file says it, and what it is predicted to cost."""
    held = [(one.activation.name, one.activation_loss) for one in store.records.values() if one.activation is not None]
    if not held:
        return []
    rows = [("activations", _counts(word for word, _ in held))]
    if store.header["config"]["token_weight"] == "gradient" and all(word in loss for word, loss in held):
        total = sum(loss[word] for word, loss in held)
        rows.append(("their rounding", f"KL divergence {total:.4g} nats a token predicted for the inputs as they are rounded"))
    return rows


def _grid_name(grid: Grid) -> str:
    if not isinstance(grid, IntAffine):
        return grid.name
    scales = "" if grid.scale_dtype == SCALE_DTYPES[0] else f", {grid.scale_dtype} scales"
    return f"int{grid.bits} group {grid.group_size}{' symmetric' if grid.symmetric else ''}{scales}"


def _tensor_text(item: dict[str, Any]) -> str:
    shape = "x".join(map(str, item["shape"]))
    if item["axis"] is None:
        return f"{shape}  {item['grid']}  {item['bytes']:,} bytes"
    loss = "".join(f"  {axis} {value:.3g}" for axis, value in item.get("loss", {}).items())
    grid = f"{item['grid']} {item['bits']} bits group {item['group_size']}"
    return f"{shape}  {grid}  {item['axis']}  {item['bytes']:,} bytes{'  loss' if loss else ''}{loss}"


def _counts(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(Counter(words).items()))

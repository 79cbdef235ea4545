"""Input channels in float16 beside the codes: what they hold, what they save, who refuses them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from exporter.bundle.card import _quantized
from exporter.gguf.file import write_gguf
from exporter.inspect import inspect
from exporter.onnx.file import onnx_size, write_onnx
from exporter.targets import TARGETS
from quantize import Around, DataSpec, GridSpec, QuantizeConfig, dequantize, open_checkpoint, quantize_checkpoint
from quantize.block import Block, Kit
from quantize.checkpoint.row_order import RowOrders
from quantize.errors import ConfigError, StoreError
from quantize.fold import Basis, Fold
from quantize.grids import make_grid
from quantize.loss import output_loss
from quantize.methods import ROUNDERS
from quantize.model_config import is_linear, part_name, weight_name
from quantize.planning.columns import may_keep
from quantize.planning.plan import ModelPlan, build_plan
from quantize.run.pipeline import planned_store
from quantize.steps.columns import FloatColumns
from quantize.store.record import TensorRecord
from quantize.store.tensors import QuantizedStore
from quantize.store.writer import StoreWriter
from quantize.types import Axis, InputStats, PlainTensor, RowOrder, TensorPlan
from quantize.weight import Part, weight_of
from runtime_checks.checks.verify import verify
from runtime_checks.report.maps import layer_charts
from runtime_checks.report.outliers import find_outliers
from tests.cases import AXES, config_of, stats_of
from tests.cases import weight_of as a_weight
from tests.stores import reseal, unseal
from tests.tiny import make_tiny_model

DOWN = "model.layers.1.mlp.down_proj.weight"
GRID = make_grid("int", 3, 16)
KEPT = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("columns") / "m", layers=2))


@pytest.fixture(scope="module")
def kit(source):
    return Kit(TARGETS["onnxruntime"], RowOrders(source.config, RowOrder.HF), ROUNDERS, 1.5)


def block_of(axis: Axis = Axis.PER_OC, rounder: str = "gptq", rows: int | None = 48) -> Block:
    """Two linears that share an input of 64 channels, and one that keeps all of its own."""
    shared, alone = stats_of(64, rows=rows), stats_of(32, rows=rows)
    tensors = {"a": a_weight((48, 64)), "b": a_weight((48, 64), 1), "c": a_weight((48, 32), 2)}
    counts = {"a": KEPT, "b": KEPT, "c": 0}
    plans = {
        name: TensorPlan(name, value.shape, {axis: GRID}, rounder, float_columns=counts[name]) for name, value in tensors.items()
    }
    return Block(plans, tensors, {"a": shared, "b": shared, "c": alone}, (("a", "b"), ("c",)))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("rounder", ["rtn", "gptq"])
@pytest.mark.parametrize("rows", [None, 48])
def test_the_columns_are_those_that_lose_least(kit, axis, rounder, rows):
    """However the rest is rounded, no other columns give a lower loss; and that loss is what the rounder was told."""
    block = block_of(axis, rounder, rows)
    kept = FloatColumns()(block, list(block.plans), kit)
    assert kept.tensors["c"] is block.tensors["c"] and "c" not in kept.beside
    for name in ("a", "b"):
        stats, weight = block.stats[name], block.tensors[name]
        rounded = ROUNDERS[rounder](name, kept.tensors[name], GRID, axis, kept.stats[name])
        stored = kept.stored(name, rounded)
        loss = output_loss(weight, stored.dense(), stats)
        told = output_loss(kept.tensors[name], dequantize(rounded), kept.stats[name])
        assert loss == pytest.approx(told, rel=0.02)
        alone = output_loss(weight, dequantize(ROUNDERS[rounder](name, weight, GRID, axis, stats)), stats)
        assert loss < alone
        columns = stored.parts[1].reads
        rng = np.random.default_rng(0)
        for _ in range(5):
            other = stored.dense()
            other[:, columns] += 0.03 * np.abs(weight).max() * rng.standard_normal((len(weight), KEPT), dtype=np.float32)
            assert output_loss(weight, other, stats) > loss


def test_linears_of_one_input_keep_the_same_channels_and_one_hessian(kit):
    kept = FloatColumns()(block_of(), ["a", "b", "c"], kit)
    assert kept.beside["a"].columns is kept.beside["b"].columns
    assert kept.stats["a"].hessian is kept.stats["b"].hessian and kept.stats["a"].visit is None


def test_the_loudest_channels_are_kept(kit):
    block = block_of()
    loud = [5, 40, 41]
    hessian = block.stats["a"].hessian.copy()
    hessian[loud, loud] += 1e4 * np.diag(hessian).max()
    stats = {**block.stats, **{name: InputStats(hessian, 99, block.stats[name].row_weight) for name in ("a", "b")}}
    stats["b"] = InputStats(stats["a"].hessian, 99, stats["b"].row_weight)
    kept = FloatColumns()(Block(block.plans, block.tensors, stats, block.sites), ["a", "b"], kit)
    assert kept.beside["a"].columns.tolist() == loud
    assert not kept.tensors["a"][:, loud].any() and not kept.stats["a"].hessian[loud].any()


def test_names_of_parts():
    assert part_name(DOWN, 2) == "model.layers.1.mlp.down_proj.part2.weight"
    assert weight_name(part_name(DOWN, 12)) == DOWN == weight_name(DOWN)


def made(source, out: Path, target: str = "onnxruntime", **options) -> QuantizedStore:
    config = config_of(**{"method": "gptq-oc", "bits": 3, "group_size": 16, "calibration_tokens": 1024, **options})
    return quantize_checkpoint(source, out, config, TARGETS[target])


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime+adadim"])
@pytest.mark.parametrize(("method", "options"), [("gptq-oc", {}), ("rtn-ic", {}), ("search-ada", {"selection": "scope"})])
def test_the_file_is_what_the_store_holds_and_as_large_as_planned(source, tmp_path, target, method, options):
    asked = {"method": method, "float_columns": KEPT, "transforms": ("ffn-order",), **options}
    store = made(source, tmp_path / "s", target, **asked)
    folder = write_onnx(store, tmp_path / "onnx")
    assert not [check for check in verify(folder, source, store) if not check.ok]
    config = config_of(bits=3, group_size=16, calibration_tokens=1024, **asked)
    plan = ModelPlan(config, TARGETS[target], build_plan(source.specs, config, TARGETS[target]))
    if "ada" not in method:  # whose notes tell of axes that were chosen
        with planned_store(source, plan) as planned:
            assert planned.records.keys() == store.records.keys()
            assert onnx_size(planned) == onnx_size(store)
    wider = source.specs[DOWN].shape[1] // source.config.hidden_size
    assert store.records[part_name(DOWN, 1)].shape == (source.config.hidden_size, KEPT * max(1, wider))


def test_none_are_kept_unless_asked_for(source, tmp_path):
    plain, asked = made(source, tmp_path / "a"), made(source, tmp_path / "b", float_columns=0)
    assert (plain.path / "plan.json").read_bytes() == (asked.path / "plan.json").read_bytes()
    assert not [record for record in plain.records.values() if record.inputs]


def test_weights_are_nearer_to_the_source(source, tmp_path):
    """Of weights with outliers among their inputs; by the statistics that they were rounded with."""
    stores = [made(source, tmp_path / str(n), float_columns=n) for n in (0, KEPT, 4 * KEPT)]
    losses = [sum(record.loss.get(str(record.axis), 0.0) for record in store.records.values()) for store in stores]
    assert losses[0] > losses[1] > losses[2]


def damaged_reads(store: QuantizedStore, name: str, reads: np.ndarray) -> None:
    from safetensors.numpy import load_file, save_file

    path = store.path / "tensors" / f"{name}.00000.safetensors"
    save_file({**load_file(path), "reads": reads}, path)
    unseal(store.path / "plan.json")


@pytest.mark.parametrize(
    ("reads", "words"),
    [
        (np.array([0, 1], np.int32), "not 3 rising numbers below 64"),
        (np.array([2, 1, 3], np.int32), "not 3 rising numbers"),
        (np.array([1, 1, 3], np.int32), "not 3 rising numbers"),
        (np.array([-1, 1, 3], np.int32), "not 3 rising numbers"),
        (np.array([0, 1, 64], np.int32), "not 3 rising numbers"),
        (np.array([0, 1, 2], np.int16), "reads is int16"),
    ],
)
def test_channels_that_are_none_are_refused(source, tmp_path, reads, words):
    store, name = made(source, tmp_path / "s", float_columns=KEPT), part_name("model.layers.0.self_attn.q_proj.weight", 1)
    damaged_reads(store, name, reads)
    with pytest.raises(StoreError, match=words):
        QuantizedStore(store.path).reads(name)


def test_a_part_needs_the_weight_that_it_is_of(source, tmp_path):
    store = made(source, tmp_path / "s", float_columns=KEPT)
    plan = store.path / "plan.json"
    text = plan.read_text()
    for old, new in ((f'"{part_name(DOWN, 1)}"', '"model.layers.7.part1.weight"'), ('"inputs": 64', '"inputs": 63')):
        assert old in text
        plan.write_text(text.replace(old, new))
        reseal(plan)
        with pytest.raises(StoreError, match="is a part of"):
            QuantizedStore(store.path)


@pytest.mark.parametrize(
    ("name", "shape", "inputs"),
    [("model.embed_tokens", (320, 2), 64), ("model.norm", (64, 2), 64), ("model.layers.0.self_attn.q_proj.part1", (64, 2), 3)],
)
def test_only_a_linear_has_parts(source, tmp_path, name, shape, inputs):
    """Of a store that another tool may have made."""
    store = made(source, tmp_path / "s", float_columns=KEPT)
    beside = PlainTensor(f"{name}.part1.weight", np.ones(shape, np.float16), "F16")
    with StoreWriter(tmp_path / "t") as writer:
        for record in store.records.values():
            writer.append(Part(store.read(record.name), store.reads(record.name)), record.uncut())
        writer.append(Part(beside, np.array([0, 1])), TensorRecord(beside.name, shape, dtype="F16", inputs=inputs))
        writer.finish({key: value for key, value in store.header.items() if key != "format"}, source.assets())
    with pytest.raises(StoreError, match=r"part1\.weight is a part of \d+ input channels beside"):
        QuantizedStore(tmp_path / "t")


def test_the_loss_that_is_recorded_knows_what_float16_rounds(kit):
    """Of a channel so loud that half a unit of float16's last place costs more than 8 bits do elsewhere."""
    block = block_of(rows=None)
    hessian = block.stats["a"].hessian.copy()
    hessian[5] *= 1e4
    hessian[:, 5] *= 1e4
    loud = InputStats(hessian, 99)
    kept = FloatColumns()(Block(block.plans, block.tensors, {"a": loud, "b": loud}, (("a", "b"),)), ["a", "b"], kit)
    rounded = ROUNDERS["rtn"]("a", kept.tensors["a"], make_grid("int", 8, 16), Axis.PER_OC, kept.stats["a"])
    told = output_loss(kept.tensors["a"], dequantize(rounded), kept.stats["a"])
    assert kept.beside["a"].loss(kept.stored("a", rounded).dense()) > 2 * told


def test_a_basis_is_not_changed_under_columns(kit):
    kept = FloatColumns()(block_of(), ["a", "b", "c"], kit)
    with pytest.raises(AssertionError, match="before columns are kept"):
        kept.folded(Fold(read={next(iter(kept.beside)): Basis.scaled(np.ones(1, np.float32))}))


def test_everything_that_is_asked_for_is_in_the_header():
    """A run goes on with what another left if their configs are one JSON: all but what changes no byte."""
    asked = {item.name for kind in (GridSpec, DataSpec, Around, QuantizeConfig) for item in fields(kind)}
    told = config_of("finequant", float_columns=1, rounder="gptq").to_json().keys()
    renamed = {"name": "grid", "text": "calibration", "tokens": "calibration_tokens"}
    assert {renamed.get(name, name) for name in asked - {"data", "around", "max_memory"}} == told


@pytest.mark.parametrize("key", ["grid", "data", "around"])
def test_a_word_is_no_spec(key):
    with pytest.raises(ConfigError, match=rf"{key}='q4_0': is not a \w+, which holds what it is made of"):
        QuantizeConfig(**{key: "q4_0"})


def test_reports_and_cards_count_weights_and_draw_them_whole(source, tmp_path):
    store = made(source, tmp_path / "s", float_columns=KEPT)
    folder = write_onnx(store, tmp_path / "onnx")
    linears = [name for name, record in store.records.items() if is_linear(name, record.shape)]
    report = inspect(folder)
    assert report["totals"]["weights"] == sum(spec.size for spec in source.specs.values())
    assert report["totals"]["bits_per_weight"] > 3 + 2 * 16 * KEPT / 96  # bytes of parts count
    charts = [chart for each in (report, inspect(store.path)) for chart in layer_charts(each, "x")]
    assert charts and not [chart for chart in charts if "part1" in str(chart) or f"{2 * len(linears)} linears" in str(chart)]
    card = _quantized({**report, "target": "onnxruntime", **report["totals"]})
    assert card["linear layers"].startswith(f"{len(linears)}, at") and "f16" not in card["grids"]
    assert card["input channels kept in float16"] == f"{len(linears) * KEPT}, of all linears together"
    outliers = find_outliers(store, source, None, linears[0])
    rows, cols = outliers.corner
    window = outliers.before.shape
    whole = store.weight(linears[0]).dense()[rows : rows + window[0], cols : cols + window[1]]
    np.testing.assert_array_equal(outliers.after, np.abs(whole))


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("llama.cpp", {"float_columns": 1}, "float_columns=1: target llama.cpp stores a weight as one tensor"),
        ("gguf-adadim", {"float_columns": 1}, "float_columns=1: target gguf-adadim stores"),
        ("onnxruntime", {"float_columns": 64}, "has 64 input channels, 64 of which would be kept; keep fewer"),
        ("onnxruntime", {"float_columns": -1}, "float_columns=-1: must not be negative"),
        (
            "onnxruntime",
            {"float_columns": 1, "tune_steps": 2},
            "float_columns=1: goes with nothing that moves .* give tune_steps=0, or drop float",
        ),
        ("onnxruntime", {"float_columns": 1, "block_steps": 2}, "give block_steps=0, or drop float_columns"),
        (
            "onnxruntime",
            {"float_columns": 1, "transforms": ("ffn-order", "norm-gains"), "tune_steps": 1},
            r"give tune_steps=0, transforms=\('ffn-order',\), or",
        ),
        ("onnxruntime", {"float_columns": 1, "imatrix": Path("i.gguf")}, "float_columns: need the source run over a text"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(source, tmp_path, target, options, words):
    with pytest.raises(ConfigError, match=words):
        made(source, tmp_path / "s", target, **{"group_size": None, "bits": 4, **options})
    assert not list(tmp_path.iterdir())


def test_no_gguf_is_written_of_parts(source, tmp_path):
    """Of a store that another tool may have made."""
    store = made(source, tmp_path / "s", "gguf-adadim", method="rtn-oc", group_size=None, bits=4)
    beside = PlainTensor(part_name(DOWN, 1), np.ones((64, 2), np.float16), "F16")
    with StoreWriter(tmp_path / "t") as writer:
        for name, record in store.records.items():
            writer.append(Part(store.read(name)), record.uncut())
        writer.append(
            Part(beside, np.array([1, 3])), TensorRecord(beside.name, (64, 2), dtype="F16", inputs=source.specs[DOWN].shape[1])
        )
        writer.finish({key: value for key, value in store.header.items() if key != "format"}, source.assets())
    with pytest.raises(StoreError, match="stores a weight as one tensor, to which nothing is added"):
        write_gguf(QuantizedStore(tmp_path / "t"), tmp_path / "m.gguf")


def test_a_store_gives_whole_weights(source, tmp_path):
    store = made(source, tmp_path / "s", float_columns=KEPT)
    whole, (part,) = store.weight(DOWN), store.beside(DOWN)
    expected = dequantize(store.read(DOWN)).copy()
    expected[:, store.reads(part.name)] += weight_of(store.read(part.name))
    np.testing.assert_array_equal(whole.dense(), expected)
    assert store.reads(DOWN) is None and store.beside("model.norm.weight") == []


@pytest.mark.parametrize(
    ("config", "may"),
    [
        (config_of("gptq-oc"), True),
        (config_of("rtn-oc"), True),
        (config_of("gptq-oc", float_columns=0), False),
        (config_of("gptq-oc", tune_steps=1), False),
        (config_of("omniquant"), False),
        (config_of("smoothquant"), False),
        (config_of("higgs"), False),
        (replace(config_of("rtn-oc"), data=DataSpec(imatrix=Path("i.gguf"))), False),
    ],
)
def test_a_target_size_may_keep_columns_where_nothing_moves_weights_afterwards(config, may):
    assert may_keep(config) is may

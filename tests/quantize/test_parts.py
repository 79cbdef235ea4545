"""Weights in parts, each of other input channels: how they are rounded, what a file holds of them, who refuses them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from exporter.bundle.card import _quantized
from exporter.cli.main import main
from exporter.cli.summary import inspect_summary, store_summary
from exporter.inspect import inspect
from exporter.onnx.file import onnx_size, write_onnx
from exporter.targets import TARGETS
from quantize import open_checkpoint, quantize_checkpoint
from quantize.block import Block, Kit
from quantize.blocks import dequantize
from quantize.checkpoint.row_order import RowOrders
from quantize.errors import ConfigError, FileFormatError, StoreError
from quantize.grids import make_grid
from quantize.loss import output_loss
from quantize.methods import METHODS, ROUNDERS
from quantize.model_config import is_linear, part_name, weight_name
from quantize.planning.plan import ModelPlan, build_plan
from quantize.rounding import Rounder, gptq
from quantize.run.pipeline import planned_store
from quantize.steps import columns
from quantize.steps.round_parts import RoundParts, _sites
from quantize.store.tensors import QuantizedStore
from quantize.types import Axis, Need, PartPlan, RowOrder, TensorPlan, Visit
from quantize.workers import Once
from runtime_checks.checks.verify import verify
from runtime_checks.reference.decode import DamagedFileError
from runtime_checks.report.maps import layer_charts
from runtime_checks.runtimes.exported import open_exported
from tests.cases import AXES, config_of, stats_of, weight_of
from tests.stores import reseal, unseal
from tests.tiny import TEXT, make_tiny_model

GRID, WIDER = make_grid("int", 3, 16), make_grid("int", 4, 16)
Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
SYSTEMS = {"quik": {"bits": 3, "float_columns": 3}, "cmpq": {"bits": 2.6}, "cmpq with floats": {"bits": 3, "float_columns": 1}}
ONNX = ("onnxruntime", "onnxruntime+adadim")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("parts") / "m", layers=2))


@pytest.fixture(scope="module")
def kit(source):
    return Kit(TARGETS["onnxruntime"], RowOrders(source.config, RowOrder.HF), ROUNDERS, 1.5)


def block_of(parts: tuple[PartPlan, ...], axis: Axis = Axis.PER_OC, channels: int = 64) -> Block:
    """Two linears that share an input, of that many channels."""
    stats, tensors = stats_of(channels, rows=48), {"a": weight_of((48, channels)), "b": weight_of((48, channels), 1)}
    plans = {name: TensorPlan(name, value.shape, {axis: GRID}, parts=parts) for name, value in tensors.items()}
    return Block(plans, tensors, {"a": stats, "b": stats}, (("a", "b"),))


def rounded(block: Block, step: RoundParts, kit: Kit) -> Block:
    return step(block, list(block.plans), kit)


def dense(block: Block, name: str) -> np.ndarray:
    (one,) = block.tried[name].values()
    return block.stored(name, one.tensor).dense()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("rounder", ["rtn", "gptq"])
def test_one_part_of_all_channels_is_rounded_as_a_whole_weight(kit, axis, rounder):
    """To the last bit, whether the plan says so or not."""
    for parts in ((), (PartPlan(64, GRID),)):
        block = block_of(parts, axis)
        made = rounded(block, RoundParts(ROUNDERS[rounder]), kit)
        for name, weight in block.tensors.items():
            plain = ROUNDERS[rounder](name, weight, GRID, axis, block.stats[name])
            np.testing.assert_array_equal(dense(made, name), dequantize(plain))


def quietest_first(hessian: np.ndarray) -> Visit:
    """As GPTQ has it, written out: the upper Cholesky factor of the inverse, in that order."""
    order = np.argsort(hessian.diagonal(), kind="stable")
    damped = hessian[np.ix_(order, order)].astype(np.float64) + gptq.DAMPING * hessian.diagonal().mean() * np.eye(len(order))
    return Visit(order, np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32))


def test_quik_without_columns_is_gptq_from_the_quietest_on(kit, source):
    specs, config = source.specs, config_of("quik", bits=3, float_columns=0)
    plans = {plan.name: plan for plan in build_plan(specs, config, TARGETS["onnxruntime"]) if plan.candidates}
    assert not any(plan.parts or plan.float_columns for plan in plans.values())
    assert plans[DOWN].candidates[Axis.PER_OC].bits == 4 and plans[Q].candidates[Axis.PER_OC].bits == 3
    block, (step,) = block_of(()), METHODS["quik"].until_rounded
    made = rounded(block, step, kit)
    for name, weight in block.tensors.items():
        stats = replace(block.stats[name], visit=Once(lambda: quietest_first(stats_of(64).hessian)))
        expected = ROUNDERS["gptq"](name, weight, GRID, Axis.PER_OC, stats)
        assert np.mean(dense(made, name) == dequantize(expected)) > 0.99
        falling = ROUNDERS["gptq"](name, weight, GRID, Axis.PER_OC, block.stats[name])
        assert np.mean(dense(made, name) == dequantize(falling)) < 0.97


def test_two_parts_on_one_grid_are_gptq_over_all_channels(kit, monkeypatch):
    """Of groups inside a channel, which nothing else says before its turn; with next to no damping, which is not alike."""
    for module in (gptq, columns):
        monkeypatch.setattr(module, "DAMPING", 1e-7)
    plain = Rounder("gptq", Need.HESSIAN, (gptq.gptq,))
    block = block_of((PartPlan(64, GRID), PartPlan(64, GRID)), Axis.PER_IC, 128)
    step = RoundParts(plain, quiet_first=True)
    (site,) = _sites(block, ["a", "b"])
    (held,) = step._swept([site], [{"a": [], "b": []}])
    for name, weight in block.tensors.items():
        stats = replace(
            block.stats[name],
            visit=Once(lambda: gptq.visit_of(stats_of(128).hessian, order=np.argsort(stats_of(128).importance))),
        )
        whole = dequantize(plain(name, weight, GRID, Axis.PER_IC, stats))
        parts = np.zeros_like(weight)
        for made in held[name]:
            parts[:, made.part.reads] = dequantize(made.part.weight)
        assert np.abs(parts - whole).max() < 1e-3 * np.abs(whole).max()


PARTS = (PartPlan(40, GRID), PartPlan(20, WIDER), PartPlan(4, None))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("rounder", ["rtn", "gptq"])
def test_parts_make_up_for_one_another(kit, axis, rounder):
    """Less is lost than by parts that know of none but themselves, and no other floats lose less."""
    block = block_of(PARTS, axis)
    made = rounded(block, RoundParts(ROUNDERS[rounder]), kit)
    for name, weight in block.tensors.items():
        stats, (one,) = block.stats[name], made.tried[name].values()
        stored = made.stored(name, one.tensor)
        assert one.loss == made.beside[name].loss(stored.dense()) == output_loss(weight, stored.dense(), stats)
        alone = np.empty_like(weight)
        for part, plan in zip(stored.parts, PARTS, strict=True):
            own = replace(stats, hessian=stats.hessian[np.ix_(part.reads, part.reads)])
            columns_ = np.ascontiguousarray(weight[:, part.reads])
            plain = columns_ if plan.grid is None else dequantize(ROUNDERS[rounder](name, columns_, plan.grid, axis, own))
            alone[:, part.reads] = plain
        assert one.loss < 0.97 * output_loss(weight, alone, stats)
        rng = np.random.default_rng(0)
        for _ in range(5):
            other = stored.dense()
            other[:, stored.parts[2].reads] += 0.03 * np.abs(weight).max() * rng.standard_normal((48, 4), dtype=np.float32)
            assert output_loss(weight, other, stats) > one.loss


def test_loud_channels_are_the_wide_ones_and_those_of_one_input_are_alike(kit):
    made = rounded(block_of(PARTS), RoundParts(ROUNDERS["rtn"]), kit)
    stored = {name: made.stored(name, next(iter(made.tried[name].values())).tensor) for name in ("a", "b")}
    sizes = made.stats["a"].importance
    quiet, wide, loud = (part.reads for part in stored["a"].parts)
    assert sizes[quiet].max() <= sizes[wide].min() and sizes[wide].max() <= sizes[loud].min()
    for one, other in zip(stored["a"].parts, stored["b"].parts, strict=True):
        np.testing.assert_array_equal(one.reads, other.reads)
        assert (np.diff(one.reads) > 0).all()


def made(source, out, method: str, target: str = "onnxruntime", **options) -> QuantizedStore:
    config = config_of(**{"method": method, "group_size": 16, "calibration_tokens": 1024, **options})
    return quantize_checkpoint(source, out, config, TARGETS[target])


@pytest.fixture(scope="module")
def stores(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {
        (word, target): made(source, folder / f"{word}-{target}", word.partition(" ")[0], target, **options)
        for word, options in SYSTEMS.items()
        for target in ONNX
    }


@pytest.mark.parametrize("target", ONNX)
@pytest.mark.parametrize("word", SYSTEMS)
def test_the_file_is_what_the_store_holds_and_as_large_as_planned(source, stores, tmp_path, word, target):
    store = stores[word, target]
    folder = write_onnx(store, tmp_path / "onnx")
    checks = verify(folder, source, store)
    assert not [check for check in checks if not check.ok]
    assert {"onnxruntime = reference, all parts", "input channels = store's"} <= {check.name for check in checks}
    config = config_of(word.partition(" ")[0], group_size=16, calibration_tokens=1024, **SYSTEMS[word])
    plan = ModelPlan(config, TARGETS[target], build_plan(source.specs, config, TARGETS[target]))
    with planned_store(source, plan) as planned:
        assert planned.records.keys() == store.records.keys()
        assert onnx_size(planned) == onnx_size(store) == sum(item.stat().st_size for item in folder.glob("model.onnx*"))


@pytest.mark.parametrize("bits", [2, 2.05, 2.5, 2.99, 3, 3.6, 4])
@pytest.mark.parametrize("columns_", [None, 0, 1])
def test_bits_are_an_average_but_for_a_bit_of_one_channel(bits, columns_):
    """Of every linear, floats paid for; of a thousand channels five are floats where nobody says."""
    model = {"q_proj": (64, 576), "down_proj": (64, 1536)}
    specs = {
        "model.embed_tokens.weight": spec_of("model.embed_tokens.weight", (8, 576)),
        **{f"model.layers.0.mlp.{name}.weight": spec_of(f"model.layers.0.mlp.{name}.weight", s) for name, s in model.items()},
    }
    config = config_of("cmpq", bits=bits, float_columns=columns_)
    if bits == 2 and columns_:
        with pytest.raises(ConfigError, match=r"2 bits a weight pay for 0 of 576 input channels in float16, not for 1"):
            build_plan(specs, config, TARGETS["onnxruntime"])
        return
    for plan in build_plan(specs, config, TARGETS["onnxruntime"])[1:]:
        parts = plan.parts or (PartPlan(plan.shape[1], plan.candidates[Axis.PER_OC]),)
        assert sum(part.count for part in parts) == plan.shape[1]
        total = sum(part.count * (16 if part.grid is None else part.grid.bits) for part in parts)
        assert 0 <= bits * plan.shape[1] - total < 1
        floats = sum(part.count for part in parts if part.grid is None)
        if columns_ is not None:
            assert floats == columns_ * (plan.shape[1] // 576)
        elif bits > 2.1:
            assert floats == round(0.005 * plan.shape[1])


def spec_of(name: str, shape: tuple[int, int]):
    from quantize.types import TensorSpec

    return TensorSpec(name, "F32", shape)


def loss_of(store: QuantizedStore, apart: str = "") -> float:
    return sum(
        record.loss[record.axis]
        for name, record in store.records.items()
        if record.grid and is_linear(name, record.shape) and not (apart and apart in name)
    )


def test_two_and_a_half_bits_lie_between_two_and_three(source, tmp_path):
    losses = [
        loss_of(made(source, tmp_path / f"{bits}", method, bits=bits))
        for method, bits in (("gptq-oc", 2), ("cmpq", 2.5), ("gptq-oc", 3))
    ]
    assert losses[0] > 1.3 * losses[1] > 1.3**2 * losses[2]


def test_quik_loses_less_than_gptq_at_the_same_bits(source, tmp_path, stores):
    """Down, which has more bits, left out."""
    plain = made(source, tmp_path / "plain", "gptq-oc", bits=3)
    assert loss_of(stores["quik", "onnxruntime"], "down_proj") < 0.95 * loss_of(plain, "down_proj")
    record = stores["quik", "onnxruntime"].records
    assert {record[name].grid.bits for name in record if "down_proj.weight" in name} == {4}
    assert {record[name].grid.bits for name in record if "gate_proj.weight" in name} == {3}


def test_a_sum_that_runs_is_evaluated(source, stores, tmp_path, capsys):
    folder = write_onnx(stores["cmpq with floats", "onnxruntime"], tmp_path / "onnx")
    (tmp_path / "text").write_text(TEXT * 3)
    measured = ("--source", source.path, "--text", tmp_path / "text", "--context", 32, "--chunks", 2, "--quiet")
    said = []
    for more in ((), ("--weights-only",)):
        assert main([*map(str, ("eval", folder, *measured, *more))]) == 0
        said.append(float(capsys.readouterr().out.partition("kld")[2].split()[0]))
    assert said[0] == pytest.approx(said[1], rel=0.2) and 0 < said[1] < 3


def put_initializers(folder, values: dict[str, np.ndarray]) -> None:
    """In place of those of that name, in the graph itself."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(np.int32), tensor.name))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def reads_of(store: QuantizedStore, name: str) -> dict[str, np.ndarray]:
    return {f"{part}.reads": store.reads(part) for part in (name, *(record.name for record in store.beside(name)))}


@pytest.fixture
def halves(source, tmp_path):
    """A store of parts of the same size, and its folder."""
    store = made(source, tmp_path / "s", "cmpq", bits=2.5)
    return store, write_onnx(store, tmp_path / "onnx")


def test_two_parts_that_change_places_are_seen(source, halves):
    store, folder = halves
    one, two = reads_of(store, Q).items()
    put_initializers(folder, {one[0]: two[1], two[0]: one[1]})
    missed = {(check.name, check.tensor) for check in verify(folder, source, store) if not check.ok}
    assert {("input channels = store's", Q), ("input channels = store's", part_name(Q, 1))} <= missed


@pytest.mark.parametrize("number", [0, 1])
def test_channels_that_are_read_twice_or_not_at_all_are_refused(halves, number):
    store, folder = halves
    (name, reads), (_, others) = list(reads_of(store, Q).items())[:: 1 - 2 * number]
    changed = np.sort(np.append(reads[1:], others[0]))
    put_initializers(folder, {name: changed})
    with pytest.raises((FileFormatError, DamagedFileError), match="do not read each of 64 input channels once"):
        open_exported(folder).weights(store.config).part(Q)
    path = store.path / "tensors" / f"{name.removesuffix('.reads')}.00000.safetensors"
    save_file({**load_file(path), "reads": changed.astype(np.int32)}, path)
    unseal(store.path / "plan.json")
    for read in (
        lambda: QuantizedStore(store.path).weight(Q),
        lambda: write_onnx(QuantizedStore(store.path), folder.parent / "n"),
    ):
        with pytest.raises(StoreError, match=r"q_proj\.weight: its parts do not read each of 64 input channels once"):
            read()
    assert not (folder.parent / "n").exists()


def test_parts_that_are_not_all_are_refused_by_the_plan(halves, tmp_path):
    store, _ = halves
    shutil.copytree(store.path, tmp_path / "t")
    plan = tmp_path / "t" / "plan.json"
    text = plan.read_text()
    start = text.index(f'"{part_name(Q, 1)}"')
    begin, end = text.rindex("  {", 0, start), text.index("  },", start) + len("  },\n")
    plan.write_text(text[:begin] + text[end:])
    reseal(plan)
    with pytest.raises(StoreError, match=r"q_proj\.weight reads 32 of 64 input channels, with its parts"):
        QuantizedStore(tmp_path / "t")


def test_a_first_part_that_reads_all_is_no_part(halves):
    """Its Gather is taken out: onnxruntime would multiply by channels that there are not."""
    store, folder = halves
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    (gather,) = [node for node in model.graph.node if node.name == f"{Q.removesuffix('.weight')}/Gather"]
    readers = [node for node in model.graph.node if gather.output[0] in node.input]
    for node in readers:
        node.input[0] = gather.input[0]
    model.graph.node.remove(gather)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert open_exported(folder).weights(store.config).shapes[Q] == (64, 32)


def test_reports_cards_and_summaries_count_each_weight_once(source, stores, tmp_path):
    store = stores["cmpq with floats", "onnxruntime+adadim"]
    mixed = [str(layer_charts(inspect(stores["cmpq", target].path), "x")) for target in ONNX]
    assert all("part1" not in text and "2.59" in text for text in mixed)  # of (2 * 26 + 3 * 38) / 64
    folder = write_onnx(store, tmp_path / "onnx")
    linears = [name for name, record in store.records.items() if is_linear(name, record.shape)]
    for report in (inspect(folder), inspect(store.path)):
        assert report["totals"]["weights"] == sum(spec.size for spec in source.specs.values())
        items = {item["name"]: item for item in report["tensors"]}
        assert items[Q]["shape"] == [64, 64] and items[Q]["reads"] == store.records[Q].shape[1]
        assert "42 for the linears" not in inspect_summary(report, "x") and "28 for the linears" in inspect_summary(report, "x")
    told = store_summary(store)
    assert f"{len(linears)} tensors, {sum(source.specs[name].size for name in linears):,} weights" in told
    assert "28, of other input channels each" in told
    card = _quantized({**report, "target": "onnxruntime", **report["totals"]})
    assert card["linear layers"].startswith(f"{len(linears)}, at") and card["grids"].count("14 int") == 2
    assert card["input channels kept in float16"] == f"{len(linears)}, of all linears together"
    assert {weight_name(name) for name in store.records if ".part" in name} == set(linears)


@pytest.mark.parametrize(
    ("method", "target", "options", "words"),
    [
        ("quik", "llama.cpp", {"float_columns": 1}, r"method='quik': .*target llama\.cpp stores a weight as one tensor"),
        ("cmpq", "gguf-adadim", {"bits": 2.5}, "method='cmpq': .*target gguf-adadim stores a weight as one tensor"),
        ("gptq-oc", "onnxruntime", {"bits": 2.5}, "bits=2.5: only cmpq mixes widths; give whole bits, or method='cmpq'"),
        ("quik", "onnxruntime", {"bits": 2.5}, "bits=2.5: only cmpq mixes widths"),
        ("cmpq", "onnxruntime", {"bits": 1.5}, "bits=1.5: .*: widths are mixed from 2 to 4 bits a weight"),
        ("cmpq", "onnxruntime", {"bits": 8}, "bits=8: .*: widths are mixed from 2 to 4 bits a weight"),
        ("cmpq", "onnxruntime", {"bits": float("nan")}, "bits=nan: no weight takes so many"),
        ("cmpq", "onnxruntime", {"bits": 2.1, "float_columns": 9}, "2.1 bits a weight pay for 0 of 64 .* not for 9; keep fewer"),
        ("quik", "onnxruntime", {"float_columns": 64}, "has 64 input channels, 64 of which would be kept; keep fewer"),
        (
            "cmpq",
            "onnxruntime",
            {"block_steps": 2},
            "method='cmpq': goes with nothing that moves .* give block_steps=0, or choose",
        ),
        ("quik", "onnxruntime", {"tune_steps": 2, "float_columns": 0}, "method='quik': goes with nothing .* give tune_steps=0"),
        ("cmpq", "onnxruntime", {"transforms": ("norm-gains",)}, r"method='cmpq': goes with nothing .* give transforms=\(\)"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(source, tmp_path, method, target, options, words):
    with pytest.raises(ConfigError, match=words):
        made(source, tmp_path / "s", method, target, **{"group_size": None, **options})
    assert not list(tmp_path.iterdir())


def test_the_command_takes_a_fraction_and_other_methods_do_not(source, tmp_path, capsys):
    def run(*words: object) -> int:
        capsys.readouterr()
        given = ("quantize", source.path, "--target", "onnxruntime", "--calibration-tokens", 512, "--quiet", *words)
        return main([*map(str, given)])

    assert run("--out", tmp_path / "s", "--method", "cmpq", "--bits", "2.5") == 0
    assert QuantizedStore(tmp_path / "s").header["config"]["bits"] == 2.5
    assert run("--out", tmp_path / "t", "--method", "gptq-oc", "--bits", "2.5") == 2
    assert capsys.readouterr().err.endswith("--bits 2.5: only cmpq mixes widths; give whole bits, or --method cmpq\n")
    for bits in ("6", "1.5", "nan", "9.5", "2,5"):
        with pytest.raises(SystemExit):
            run("--out", tmp_path / "t", "--method", "cmpq", "--bits", bits)
        assert "choose one of 2, 3, 4, 5, 8, or a fraction as 2.5" in capsys.readouterr().err


def test_a_rule_may_mix_widths_of_some_linears(source, tmp_path):
    (tmp_path / "r.toml").write_text('[[rule]]\nmatch = "*.down_proj"\nmethod = "cmpq"\nbits = 2.5\n')
    store = made(source, tmp_path / "s", "gptq-oc", bits=4, recipe=tmp_path / "r.toml")
    assert {weight_name(name) for name in store.records if ".part" in name} == {n for n in store.records if "down_proj.w" in n}
    assert store.records[Q].grid.bits == 4 and store.records[DOWN].grid.bits == 2


def test_a_size_chooses_no_parts(source, tmp_path, capsys):
    given = ("quantize", source.path, "--out", tmp_path / "s", "--method", "cmpq", "--target", "onnxruntime")
    assert main([*map(str, (*given, "--target-size", "1MB", "--quiet"))]) == 2
    assert "--method cmpq: chooses the grid of every linear, as a target size does" in capsys.readouterr().err


def test_the_same_inputs_give_the_same_bytes(source, stores, tmp_path):
    again = made(source, tmp_path / "s", "quik", **SYSTEMS["quik"])
    first = stores["quik", "onnxruntime"]
    for path in sorted(first.path.rglob("*")):
        if path.is_file():
            assert (again.path / path.relative_to(first.path)).read_bytes() == path.read_bytes()

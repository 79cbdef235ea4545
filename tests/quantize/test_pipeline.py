"""From a source to a store, every method and target: what is chosen, what is kept, and that it repeats byte for byte."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from exporter.cli.methods import methods_report
from exporter.cli.summary import store_summary
from exporter.gguf.file import write_gguf
from exporter.targets import TARGETS
from quantize import Axis, dequantize, open_checkpoint, quantize_checkpoint
from quantize import source as source_model
from quantize.block import Block, Kit
from quantize.checkpoint.row_order import ggml_row_index
from quantize.errors import CalibrationError, CheckpointError, OutputError, PlanError
from quantize.gguf.container import parse_header
from quantize.grids import make_grid
from quantize.loss import output_loss
from quantize.methods import ROUNDERS, read_word
from quantize.model_config import EMBEDDING, HEAD, weight_name
from quantize.planning.plan import ModelPlan, build_plan
from quantize.run import pipeline
from quantize.run.pipeline import quantize_planned
from quantize.statistics.calibration import load_text
from quantize.statistics.measured import Measured
from quantize.steps.axis import ChooseAxis
from quantize.steps.round import Round
from quantize.store.writer import StoreWriter
from quantize.types import InputStats, PlainTensor, QuantizedTensor, TensorPlan
from tests.cases import config_of
from tests.tiny import Sizes, make_tiny_model, tiny_weights, write_weights

QUICK = {"calibration_tokens": 1024}
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("tiny"), dtype="F16"))


def run(source, out, target, **config):
    return quantize_checkpoint(source, out, config_of(**QUICK | config), TARGETS[target])


HELD = [
    (target, row["name"])
    for target in ("gguf-adadim", "onnxruntime", "onnxruntime+adadim")
    for row in methods_report()["methods"]
    if target in row["targets"]
]


@pytest.mark.parametrize(("target", "method"), HELD)
def test_every_method_on_every_target_that_holds_both_axes(source, tmp_path, target, method):
    system = read_word(method).method
    more = {"calibration_tokens": 8192, "block_steps": 2 * bool(system.block_steps)} if system.learns else {}
    store = run(source, tmp_path / "s", target, method=method, max_slowdown=1e9, **more)
    assert {weight_name(name) for name in store.records} == set(source.specs) and store.tied
    axes = {record.axis for name, record in store.records.items() if record.grid is not None and name.startswith("model.layers")}
    if method.endswith("-ic"):
        assert axes <= {Axis.PER_IC}
    for name, record in store.records.items():
        tensor = store.read(name)
        if isinstance(tensor, PlainTensor):
            moved = (system.learns or system.folds) and len(record.shape) == 1
            assert moved or record.inputs or np.array_equal(tensor.values, source.read(name))
            continue
        assert tensor.shape == record.shape
        assert (len(record.loss) == 2) == (method.endswith("-ada") and name.startswith("model.layers"))
        if len(record.loss) == 2:
            assert record.loss[record.axis] == min(record.loss.values())


def test_weights_come_close_and_q_and_k_are_in_the_targets_row_order(source, tmp_path):
    for target, permuted in (("llama.cpp", True), ("onnxruntime", False)):
        store = run(source, tmp_path / target, target, method="rtn-oc", bits=8)
        weight = source.read(Q)
        weight = weight[ggml_row_index(64, 4)] if permuted else weight
        tensor = store.read(Q)
        assert isinstance(tensor, QuantizedTensor)
        assert np.abs(dequantize(tensor) - weight).max() < 0.02 * np.abs(weight).max()


@pytest.mark.parametrize("selection", ["scope", "hessian"])
def test_selection_in_ggml_row_order_judges_the_same_layer(source, tmp_path, selection):
    """The order of q's rows must not change the losses of per-OC candidates."""
    ggml = run(source, tmp_path / "a", "gguf-adadim", method="rtn-ada", grid="q4_0", selection=selection)
    hf = run(source, tmp_path / "b", "onnxruntime", method="rtn-ada", symmetric=True, group_size=32, selection=selection)
    for name in (Q, Q.replace("q_proj", "v_proj")):
        assert ggml.records[name].loss["per_oc"] == pytest.approx(hf.records[name].loss["per_oc"], rel=0.02)


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_runs_give_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        run(source, tmp_path / name, "onnxruntime")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_the_header_says_what_was_done(source, tmp_path):
    store = run(source, tmp_path / "s", "llama.cpp")
    assert store.header["calibration"]["tokens"] == 1024
    assert store.header["calibration"]["sha256"] and store.header["source"]["sha256"] == source.sha256
    assert store.header["config"]["method"] == "gptq-ada"
    assert any("means gptq-oc here" in note for note in store.header["notes"])


def test_a_slowdown_of_one_leaves_no_split_layer(source, tmp_path):
    store = run(source, tmp_path / "s", "onnxruntime", method="rtn-ada", max_slowdown=1.0)
    assert all(record.axis is Axis.PER_OC for record in store.records.values())
    lower = [r for r in store.records.values() if len(r.loss) == 2 and r.loss["per_ic"] < r.loss["per_oc"]]
    assert lower and f"the bound on slowdown, 1, keeps {len(lower)} tensors per_oc" in store.header["notes"][-1]


def test_rtn_without_calibration_never_imports_torch(source, tmp_path):
    code = (
        "import sys; from pathlib import Path; from exporter.targets import TARGETS; from quantize import *\n"
        f"quantize_checkpoint(open_checkpoint(Path({str(source.path)!r})), Path({str(tmp_path / 's')!r}), "
        "QuantizeConfig(method='rtn-oc'), TARGETS['llama.cpp'])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_tokenizer_is_named_before_the_slow_part(tmp_path):
    folder = make_tiny_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CalibrationError, match=r"no tokenizer\.json.*rtn-oc"):
        run(open_checkpoint(folder), tmp_path / "s", "onnxruntime")
    assert not (tmp_path / "s").exists()


def test_weights_beyond_float16_need_float32_scales(tmp_path):
    folder, sizes = make_tiny_model(tmp_path / "m"), Sizes(64, 4, 2, 16, 96, 2, 320)
    weights = tiny_weights(sizes, "llama", True, 0)
    weights[Q][0, 0] = 1e7
    write_weights(folder, weights)
    for target, param in (("llama.cpp", "d of grid q4_0"), ("onnxruntime", "scale of grid int")):
        message = rf"q_proj\.weight: its weights overflow the float16 {param}; take an ONNX target and scale_dtype='float32'"
        with pytest.raises(PlanError, match=message):
            run(open_checkpoint(folder), tmp_path / "s", target, method="rtn-oc")
    store = run(open_checkpoint(folder), tmp_path / "t", "onnxruntime", method="rtn-oc", scale_dtype="float32")
    assert {"scale_dtype": "float32"}.items() <= store.records[Q].to_json().items()


@pytest.mark.parametrize("method", ["rtn-oc", "rtn-ada"])
def test_weights_beyond_float32s_range_are_refused_by_name_and_without_warnings(tmp_path, method, recwarn):
    folder, sizes = make_tiny_model(tmp_path / "m"), Sizes(64, 4, 2, 16, 96, 2, 320)
    weights = tiny_weights(sizes, "llama", True, 0)
    weights[Q][0, :2] = 3e38, -3e38
    write_weights(folder, weights)
    with pytest.raises((PlanError, CalibrationError), match=r"layers\.0\.self_attn\.[qo]_proj.* overflow"):
        run(open_checkpoint(folder), tmp_path / "s", "onnxruntime", method=method)
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


@pytest.mark.parametrize("token_weight", ["unit", "none"])
def test_activations_that_overflow_are_refused_at_their_site(tmp_path, token_weight):
    folder, sizes = make_tiny_model(tmp_path / "m"), Sizes(64, 4, 2, 16, 96, 2, 320)
    weights = tiny_weights(sizes, "llama", True, 0)
    weights["model.layers.0.mlp.up_proj.weight"] *= 1e25
    write_weights(folder, weights)
    with pytest.raises(CalibrationError, match=r"model\.layers\.0\.mlp\.down_proj: its inputs on the calibration text overflow"):
        run(open_checkpoint(folder), tmp_path / "s", "onnxruntime", token_weight=token_weight)


def test_a_damaged_tokenizer_is_refused_before_anything_is_written(tmp_path):
    folder = make_tiny_model(tmp_path / "m")
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: not JSON"):
        run(open_checkpoint(folder), tmp_path / "s", "llama.cpp", method="rtn-oc")


def test_a_context_that_a_window_cuts_is_noted(tmp_path):
    folder = make_tiny_model(tmp_path / "m", "mistral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 32}))
    store = run(open_checkpoint(folder), tmp_path / "s", "llama.cpp", method="rtn-oc")
    assert any("context cut from 512 to the sliding window of 32" in note for note in store.header["notes"])
    header = parse_header(write_gguf(store, tmp_path / "m.gguf").read_bytes())
    assert header.metadata["llama.context_length"].decode() == 32


def told(record):
    """A record without the digest of its bytes."""
    return {key: value for key, value in record.to_json().items() if key != "sha256"}


@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime+adadim"])
def test_tuned_stores_differ_in_floats_alone(source, tmp_path, target):
    plain, tuned = (
        run(
            source,
            tmp_path / str(steps),
            target,
            bits=4,
            embedding="int4" if "onnx" in target else "q4_0",
            tune_steps=steps,
            calibration_tokens=6144,
        )
        for steps in (0, 3)
    )
    report = tuned.header["tuning"]
    assert plain.header["tuning"] is None
    assert report["steps"] == 3
    assert report["after"] <= report["before"]
    left = sum(record.loss[record.axis] for record in tuned.records.values() if record.loss)
    assert f"KL divergence {left:.4g} nats a token predicted" in store_summary(tuned)
    change = f"3 steps: KL divergence {report['before']:.4g} to {report['after']:.4g} nats"
    assert change in store_summary(tuned) and "3 steps" not in store_summary(plain)
    for name, record in tuned.records.items():
        one, other = plain.read(name), tuned.read(name)
        assert told(record) == told(plain.records[name]) | {"chunks": 1}
        if record.grid is not None:
            assert np.array_equal(one.codes, other.codes)


@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime+adadim"])
def test_learned_stores_differ_in_linears_alone_and_lose_less_in_every_layer(source, tmp_path, target):
    options = {"bits": 4, "embedding": "int4" if "onnx" in target else "q4_0", "calibration_tokens": 8192}
    plain, learned, again = (
        run(source, tmp_path / name, target, block_steps=steps, transforms=("norm-gains", "ffn-order"), **options)
        for name, steps in (("plain", 0), ("learned", 10), ("again", 10))
    )
    report = learned.header["blocks"]
    assert plain.header["blocks"] is None
    assert report["steps"] == 10
    assert len(report["before"]) == source.config.num_layers
    assert all(after <= before for before, after in zip(report["before"], report["after"], strict=True))
    assert report["after"][0] < report["before"][0]
    assert "10 steps a layer: its output's error times 0." in store_summary(learned)
    assert "steps a layer" not in store_summary(plain)
    moved = set()
    for name, record in learned.records.items():
        one, other = plain.read(name), learned.read(name)
        assert told(record) == told(plain.records[name])
        if record.grid is None:
            assert np.array_equal(one.values, other.values)
        elif not np.array_equal(one.codes, other.codes):
            moved.add(name)
    assert moved and all(name.startswith("model.layers.") for name in moved)
    assert digest(learned.path) == digest(again.path)


def test_a_text_too_short_to_tune_on_is_refused_before_any_work(source, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "open_statistics", None)
    text = tmp_path / "short.txt"
    text.write_text(load_text("builtin").text[:5000])
    with pytest.raises(CalibrationError, match=r"7 sequences, but tune_steps needs 8 to judge by and 2 to learn from"):
        run(source, tmp_path / "s", "llama.cpp", tune_steps=1, calibration_tokens=2048, calibration=str(text))
    assert not (tmp_path / "s").exists()


def test_ada_keeps_the_axis_on_which_the_planned_rounder_loses_less():
    """Not the one on which round-to-nearest would: on these weights the two differ."""
    grid = make_grid("int", 3, 32)
    differ = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = (rng.standard_normal((256, 64)) * np.exp(rng.standard_normal(64))) @ rng.standard_normal((64, 64))
        stats = InputStats((x.T @ x / 256).astype(np.float32), 256)
        weight = rng.standard_normal((96, 64)).astype(np.float32)
        plan = TensorPlan("w", weight.shape, dict.fromkeys(Axis, grid), "gptq")
        kit = Kit(TARGETS["onnxruntime+adadim"], None, ROUNDERS, 3.0)
        block = Block({"w": plan}, {"w": weight}, {"w": stats})
        block = ChooseAxis()(Round(ROUNDERS["gptq"])(block, ["w"], kit), ["w"], kit)
        tensor, choice = block.rounded["w"].tensor, block.choices["w"]
        loss = {
            rounder: {
                axis: output_loss(weight, dequantize(ROUNDERS[rounder]("w", weight, grid, axis, stats)), stats) for axis in Axis
            }
            for rounder in ("rtn", "gptq")
        }
        assert choice.loss == pytest.approx(loss["gptq"])
        assert tensor.axis is choice.axis is min(loss["gptq"], key=loss["gptq"].__getitem__)
        differ += min(loss["rtn"], key=loss["rtn"].__getitem__) is not tensor.axis
    assert differ


def planned(source, target, **options) -> ModelPlan:
    config = config_of(**QUICK | options)
    return ModelPlan(config, TARGETS[target], build_plan(source.specs, config, TARGETS[target]))


def test_stores_that_are_made_together_walk_once_and_are_those_that_are_made_alone(source, tmp_path, monkeypatch):
    """Those whose rounding changes what later layers see walk alone; a head split off the embedding is one part more."""
    wanted = {
        "ggml": planned(source, "llama.cpp"),
        "onnx": planned(source, "onnxruntime", bits=3),
        "head": planned(source, "llama.cpp", bits=5, head="q4_0"),
        "unit": planned(source, "onnxruntime", token_weight="unit"),
        "scope": planned(source, "onnxruntime", selection="scope"),
        "taught": planned(source, "llama.cpp", block_steps=2, calibration_tokens=12 * 512),
        "tuned": planned(source, "llama.cpp", tune_steps=1),
        "none": planned(source, "llama.cpp", method="rtn-oc"),
    }
    alone = {name: quantize_planned(Measured(source), {tmp_path / "alone" / name: plan})[0] for name, plan in wanted.items()}
    walks = list[str]()
    walked = source_model.walk_blocks
    monkeypatch.setattr(source_model, "walk_blocks", lambda *args: walks.append(args[2]) or walked(*args))
    stores = quantize_planned(Measured(source), {tmp_path / "together" / name: plan for name, plan in wanted.items()})
    assert len(walks) == 5  # ggml, onnx and head share one
    for (name, expected), store in zip(alone.items(), stores, strict=True):
        assert store.path.name == name
        assert digest(store.path) == digest(expected.path), name


def test_one_that_fails_leaves_none_of_them(source, tmp_path, monkeypatch):
    def full(self: StoreWriter, *_: object) -> None:
        raise OutputError(f"{self.path}: full")

    monkeypatch.setattr(StoreWriter, "finish", full)
    with pytest.raises(OutputError, match="full"):
        quantize_planned(Measured(source), {tmp_path / name: planned(source, "llama.cpp", method="rtn-oc") for name in "ab"})
    assert not list(tmp_path.iterdir())


def test_an_embedding_apart_from_its_head_is_rounded_by_its_look_ups(tmp_path):
    """Of which a diagonal is known: no two channels go together."""
    source = open_checkpoint(make_tiny_model(tmp_path / "model", tied=False))
    config = config_of("gptq-oc", grid="q4_0", embedding="q4_0", token_weight="gradient", calibration_tokens=1024)
    records = quantize_checkpoint(source, tmp_path / "store", config, TARGETS["llama.cpp"]).records
    assert records[EMBEDDING].grid.name == records[HEAD].grid.name == "q4_0"

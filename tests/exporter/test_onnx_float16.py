"""A graph that computes in float16: it verifies, runs in genai, and is refused where float16 does not do."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.bundle.facts import read_facts
from exporter.bundle.folder import BundleOptions, write_bundle
from exporter.cli.main import main
from exporter.inspect import inspect
from exporter.onnx.file import onnx_size, write_onnx
from exporter.onnx.float16 import in_float16, narrowed, retyped
from exporter.onnx.graph import Decoder
from exporter.targets import TARGETS
from quantize.checkpoint import open_checkpoint
from quantize.errors import ExportError
from quantize.run.pipeline import quantize_checkpoint
from quantize.statistics.calibration import CalibrationText
from quantize.store.tensors import QuantizedStore
from runtime_checks.checks.model_check import HALF_TOLERANCE, LOGITS_TOLERANCE
from runtime_checks.checks.verify import verify
from runtime_checks.measure.compare import compare_files
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from runtime_checks.runtimes.onnx_runner import OnnxRunner
from tests.cases import config_of
from tests.stores import rtn_store
from tests.tiny import TEXT, make_tiny_model

ONNX = TARGETS["onnxruntime"]
TOKENS = np.random.default_rng(0).integers(3, 300, 60)
FORMS = {  # method and options: each way a weight is held
    "per OC": ("rtn-oc", {"group_size": 32}),
    "per IC": ("rtn-ic", {"bits": 3, "group_size": 32}),
    "8 bits, scales of float32": ("rtn-oc", {"bits": 8, "group_size": 64, "scale_dtype": "float32"}),
    "per IC, scales of float32": ("rtn-ic", {"group_size": 32, "scale_dtype": "float32"}),
    "2 bits and a head": ("rtn-oc", {"bits": 2, "group_size": 16, "head": "int4"}),
    "floats in tables": ("rtn-oc", {"group_size": 32, "embedding": "source", "head": "source"}),
    "float columns": ("rtn-oc", {"group_size": 32, "float_columns": 2}),
    "float columns per IC": ("rtn-ic", {"group_size": 32, "float_columns": 2}),
    "float columns apart": ("quik", {"group_size": 32, "float_columns": 2, "calibration_tokens": 512}),
    "columns of two widths": ("cmpq", {"bits": 2.5, "group_size": 32, "calibration_tokens": 512}),
}


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def source(request, kept, tmp_path_factory):
    """One of a family, and one that is a template."""
    if request.param == "llama":
        return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("llama") / "model", dtype="BF16"))
    return open_checkpoint(kept.onnx(request.param), kept.model(request.param))


def made(source, path: Path, form: str, **more: object) -> QuantizedStore:
    method, options = FORMS[form]
    return quantize_checkpoint(source, path / "store", config_of(method, token_weight="unit", **options, **more), ONNX)


def apart(left: Path, right: Path, level: int | None) -> float:
    """The largest difference of a logit over the largest logit."""
    one, two = (OnnxRunner(folder, level).logits(TOKENS) for folder in (left, right))
    return float(np.abs(one - two).max() / np.abs(one).max())


@pytest.mark.parametrize("form", FORMS)
def test_it_verifies_and_is_smaller(source, tmp_path, form):
    store = made(source, tmp_path, form)
    whole, half = write_onnx(store, tmp_path / "whole"), write_onnx(store, tmp_path / "half", onnx_dtype="float16")
    checks = verify(half, source, store)
    assert not [check for check in checks if not check.ok]
    assert {"logits at accuracy level 0 = torch", "genai's tokens = onnxruntime's, as shipped"} <= {
        check.name for check in checks
    }
    assert LOGITS_TOLERANCE < apart(whole, half, 0) < HALF_TOLERANCE / 2
    size = sum(path.stat().st_size for path in half.glob("model.onnx*"))
    assert size == onnx_size(store, onnx_dtype="float16") < onnx_size(store)
    again = write_onnx(store, tmp_path / "again", onnx_dtype="float16")
    assert all((again / item.name).read_bytes() == item.read_bytes() for item in half.iterdir())
    named = write_onnx(store, tmp_path / "named", onnx_dtype="float32")
    assert all((named / item.name).read_bytes() == item.read_bytes() for item in whole.iterdir())


def test_what_goes_in_and_out_and_lies_in_it_is_float16(source, tmp_path):
    store = made(source, tmp_path, "8 bits, scales of float32")
    half = write_onnx(store, tmp_path / "half", onnx_dtype="float16")
    graph = onnx.load(half / "model.onnx", load_external_data=False).graph
    ids = {"input_ids", "attention_mask", "position_ids"}
    kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output) if value.name not in ids}
    assert kinds == {TensorProto.FLOAT16}
    assert not [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert not [node.name for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT]
    assert {item["scale_dtype"] for item in inspect(half)["tensors"] if "scale_dtype" in item} == {"float16"}
    with pytest.raises(ExportError, match=r"half: computes in float16, and onnxruntime-objc has no such tensors"):
        write_bundle(half, tmp_path / "bundle", BundleOptions("ios"))
    whole = write_onnx(store, tmp_path / "whole")
    assert read_facts(half).kv_bytes * 2 == read_facts(whole).kv_bytes


def test_the_file_s_scales_are_the_store_s_rounded(tmp_path):
    """By literal bytes: the layout is that of float32, each number half as wide."""
    store = rtn_store(make_tiny_model(tmp_path / "m"), tmp_path / "s", "onnxruntime", scale_dtype="float32", group_size=32)
    half = write_onnx(store, tmp_path / "half", onnx_dtype="float16")
    name = "model.layers.0.mlp.down_proj.weight"
    held = {tensor.name: tensor for tensor in onnx.load(half / "model.onnx").graph.initializer}
    scales, norm = store.read(name).params["scale"], store.read("model.norm.weight").values
    assert scales.dtype == norm.dtype == np.float32
    assert held[f"{name}.scale"].raw_data == scales.astype("<f2").tobytes()
    assert held["model.norm.weight"].raw_data == norm.astype("<f2").tobytes()


def test_eval_and_compare_run_it(source, tmp_path):
    store = made(source, tmp_path, "per OC")
    half = write_onnx(store, tmp_path / "half", onnx_dtype="float16")
    text = CalibrationText("text", TEXT, hashlib.sha256(TEXT.encode()).hexdigest())
    report = compare_files([half, write_onnx(store, tmp_path / "whole")], source, text, EvalOptions(64))
    one, two = (row["kld"] for row in report["files"])
    assert one == pytest.approx(two, rel=0.1)
    assert evaluate(half, source, TEXT, EvalOptions(64))["kld"] == pytest.approx(one, rel=1e-6)


def test_a_size_is_planned_for_it(tmp_path):
    words = ["run", str(make_tiny_model(tmp_path / "m")), "--target", "onnxruntime", "--method", "rtn-oc", "--quiet"]
    words += ["--calibration-tokens", "256", "--target-size", "105kB"]
    for dtype in ("float32", "float16"):
        assert main([*words, "--onnx-dtype", dtype, "--out", str(tmp_path / dtype)]) == 0
    sizes, bits = [], []
    for dtype in ("float32", "float16"):
        out = tmp_path / dtype / "onnxruntime" / "onnx"
        sizes.append(sum(path.stat().st_size for path in out.glob("model.onnx*")))
        bits.append(inspect(out)["totals"]["bits_per_weight"])
    assert max(sizes) <= 105_000 and bits[1] > bits[0]


LARGE = "and float16 ends at 65504; leave onnx_dtype out"
UNFIT = {  # a tensor, what is done to its values, what is told
    "a large scale": ("down_proj", lambda values: values * np.float32(1e7), rf"the scale [\de.+]+, {LARGE}"),
    "a small scale": ("down_proj", lambda values: values * np.float32(1e-9), r"the scale [\de.-]+, which float16 takes for 0"),
    "a norm": ("input_layernorm", lambda values: values * np.float32(1e6), rf"the value [\de.+]+, {LARGE}"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_number_that_float16_does_not_hold_is_named_before_anything_is_written(tmp_path, case):
    from safetensors.numpy import load_file, save_file

    part, change, words = UNFIT[case]
    model = make_tiny_model(tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if part in name)
    save_file(weights | {name: change(weights[name])}, model / "model.safetensors", {"format": "pt"})
    store = rtn_store(model, tmp_path / "s", "onnxruntime", scale_dtype="float32", group_size=32)
    with pytest.raises(ExportError, match=f"s: {re.escape(name)} has {words}") as told:
        write_onnx(store, tmp_path / "out", onnx_dtype="float16")
    assert "\n" not in str(told.value) and not list(tmp_path.glob("*out*"))
    write_onnx(store, tmp_path / "out")


def test_activations_that_overflow_are_a_miss(tmp_path, capsys):
    """What only a run can tell: here a norm's gains make values of 10**5, as the sums of some models are."""
    from safetensors.numpy import load_file, save_file

    model = make_tiny_model(tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.post_attention_layernorm.weight"] *= 3000
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    store = rtn_store(model, tmp_path / "s", "onnxruntime", group_size=32)
    misses = {}
    for dtype in ("float32", "float16"):
        out = write_onnx(store, tmp_path / dtype, onnx_dtype=dtype, accuracy_level=0)
        misses[dtype] = [check.tensor for check in verify(out, open_checkpoint(model), store) if not check.ok]
    assert misses["float32"] == [] and len(misses["float16"]) == 1
    told = r"float16: its activations overflow float16, after \d+ tokens its logits are no numbers; export it without {}$"
    assert re.search(told.format("onnx_dtype"), misses["float16"][0])
    assert main(["eval", str(tmp_path / "float16"), "--source", str(model), "--quiet"]) == 2
    assert re.search(told.format("--onnx-dtype"), (err := capsys.readouterr().err).rstrip()) and err.count("\n") == 1


def test_the_scale_of_a_group_of_zeros_may_be_any(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = make_tiny_model(tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][3] = 0
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    store = rtn_store(model, tmp_path / "s", "onnxruntime", scale_dtype="float32", group_size=32)
    assert 0 < store.read(name).params["scale"][3].max() < 2.0**-26
    half = write_onnx(store, tmp_path / "out", onnx_dtype="float16")
    assert not [check for check in verify(half, open_checkpoint(model), store) if not check.ok]


@pytest.mark.parametrize("options", [{"scale_dtype": "float32", "group_size": 32}, {"grid": "lm3"}, {"grid": "hg2"}], ids=str)
def test_our_own_operators_take_halves(tmp_path, options):
    model = make_tiny_model(tmp_path / "m")
    store = rtn_store(model, tmp_path / "s", "onnxruntime+adadim", **options)
    half = write_onnx(store, tmp_path / "out", onnx_dtype="float16")
    assert not [check for check in verify(half, open_checkpoint(model), store) if not check.ok]


def test_a_gguf_computes_in_what_its_runtime_likes(tmp_path, capsys):
    model = make_tiny_model(tmp_path / "m")
    words = ["run", str(model), "--out", str(tmp_path / "out"), "--onnx-dtype", "float16", "--target", "llama.cpp"]
    assert main(words) == 2
    assert "--onnx-dtype: is for ONNX folders, and none is made" in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def graph_of(*nodes: onnx.NodeProto) -> Decoder:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    graph = helper.make_graph(nodes, "g", [x, ids], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    return Decoder(model, frozenset(), {"low": np.array(np.finfo(np.float32).min), "two": np.array(2, np.int64)})


@pytest.mark.parametrize("op", ["Pow", "Cos"])
def test_an_operator_that_float16_is_too_coarse_for_is_refused(op):
    inputs = ["x", "two"][: 2 if op == "Pow" else 1]
    decoder = graph_of(helper.make_node(op, inputs, ["y"], "here"))
    with pytest.raises(ExportError, match=rf"^m: its graph computes {op} of floats \(here\), for which float16 is too coarse"):
        in_float16(decoder, "m")


def test_whole_numbers_may_be_added_up():
    """Of a mask that is no float: what CumSum makes of it is made a float behind it."""
    sums = helper.make_node("CumSum", ["ids", "two"], ["sums"], "here")
    cast = helper.make_node("Cast", ["sums"], ["y"], "cast", to=TensorProto.FLOAT)
    out = in_float16(graph_of(sums, cast), "m")
    assert out.model.graph.node[1].attribute[0].i == TensorProto.FLOAT16
    assert out.constants["low"] == np.float16(-65504) and out.constants["two"].dtype == np.int64


def test_constants_in_nodes_are_halves():
    values = {"value_float": 0.1, "value": numpy_helper.from_array(np.full(3, 0.1, np.float32)), "value_floats": [0.1, 1e9]}
    nodes = [helper.make_node("Constant", [], [key], **{key: value}) for key, value in values.items()]
    made = retyped(graph_of(*nodes).model)
    held = [numpy_helper.to_array(node.attribute[0].t) for node in made.graph.node]
    assert [value.dtype for value in held] == [np.float16] * 3
    assert held[0] == np.float16(0.1) and held[2].tolist() == [np.float16(0.1), 65504]
    assert narrowed(np.array([True])).dtype == bool

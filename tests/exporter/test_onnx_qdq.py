"""Linears between QuantizeLinear and DequantizeLinear: their bytes, what onnxruntime makes of them, and what verify sees."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.cli.main import main
from exporter.inspect import inspect
from exporter.onnx.file import onnx_size, write_onnx
from exporter.onnx.qdq import Inputs, static_linear
from exporter.onnx.sums import Summand
from exporter.onnx.tensors import Wire
from exporter.targets import TARGETS
from quantize import QuantizedStore, build_plan, open_checkpoint, quantize_checkpoint
from quantize.activations import Activation
from quantize.errors import ConfigError, ExportError, FileFormatError, StoreError
from quantize.grids import make_grid
from quantize.onnx.session import open_session
from quantize.store.record import TensorRecord
from quantize.types import Axis, QuantizedTensor
from runtime_checks.checks.verify import steps_of, verify
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from runtime_checks.reference.decode import DamagedFileError
from runtime_checks.reference.onnx import read_onnx
from tests.cases import config_of, weight_of
from tests.stores import rtn_store, unseal
from tests.tiny import TEXT, make_tiny_model

TARGET = TARGETS["onnxruntime-w8a8"]
LEVELS = ort.GraphOptimizationLevel
CONFIG = config_of("rtn-oc", calibration_tokens=512, max_slowdown=1.0)
LAYER = "model.layers.0."
GRID = make_grid("int", 8, 16, symmetric=True)
STATIC = Activation("a8-tensor", 0.02, 120)


def record_of(oc: int, ic: int) -> TensorRecord:
    return TensorRecord("a.b.weight", (oc, ic), make_grid("int", 8, 1 << ic.bit_length(), True), activation=STATIC)


def tensor_of(record: TensorRecord, codes: np.ndarray, scale: np.ndarray) -> QuantizedTensor:
    params = {"scale": scale[:, None], "zero_point": np.full((len(codes), 1), 128, np.uint8)}
    return QuantizedTensor(record.name, codes, Axis.PER_OC, record.grid, params)


def poured(form, *chunks: tuple[int, QuantizedTensor]) -> dict[str, bytes]:
    data = {planned.name: bytearray(planned.nbytes) for planned in form.planned}
    for first, chunk in chunks:
        for name, offset, piece in form.pour(first, chunk):
            data[name][offset : offset + len(piece)] = piece
    return {name: bytes(held) for name, held in data.items()}


def test_the_bytes():
    """Output channels lie side by side; scales are float32, whatever the store has."""
    record = TensorRecord("a.b.weight", (3, 2), GRID, activation=STATIC)
    codes, scale = np.array([[1, 2], [3, 4], [0, 255]], np.uint8), np.array([1, -2, 0.5], np.float16)
    form, whole = static_linear(record, Wire("x", "y")), tensor_of(record, codes, scale)
    expected = {
        "a.b.weight.codes": bytes([1, 3, 0, 2, 4, 255]),
        "a.b.weight.scale": bytes.fromhex("0000803f 000000c0 0000003f"),
    }
    assert poured(form, (0, whole)) == expected
    halves = [(0, tensor_of(record, codes[:2], scale[:2])), (2, tensor_of(record, codes[2:], scale[2:]))]
    assert poured(form, *halves) == expected
    assert [(one.op_type, one.name, list(one.input)) for one in form.nodes] == [
        ("DequantizeLinear", "a.b/DequantizeLinear", ["a.b.weight.codes", "a.b.weight.scale", "adadim.middle_3"]),
        ("MatMul", "a.b/MatMul", ["x", "a.b.weight.values"]),
    ]
    assert form.constants["adadim.middle_3"].tobytes() == bytes([128] * 3)


def alone(record: TensorRecord, tensor: QuantizedTensor) -> onnx.ModelProto:
    """The linear and what rounds its input, in a graph of their own."""
    inputs, wire = Inputs(), Wire("x", "y")
    part, rounding = inputs.before(Summand(record, wire, "x"))
    form = static_linear(record, part.wire)
    data = poured(form, (0, tensor))
    tensors = [helper.make_tensor(p.name, p.data_type, p.shape, data[p.name], raw=True) for p in form.planned]
    constants = {**form.constants, **inputs.constants}
    tensors += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", None]) for name in "xy"]
    graph = helper.make_graph([*rounding, *form.nodes], "one", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


@pytest.mark.parametrize(("level", "tolerance"), [(LEVELS.ORT_DISABLE_ALL, 2e-5), (LEVELS.ORT_ENABLE_ALL, 4e-7)])
@pytest.mark.parametrize(("oc", "ic"), [(64, 96), (40, 50), (1, 33), (7, 576)])
def test_full_range_codes_are_multiplied_exactly(oc, ic, level, tolerance, tmp_path):
    """All codes of both, extremes together: 8-bit products that saturate would be off by a fifth."""
    rng, record = np.random.default_rng(ic), record_of(oc, ic)
    codes, scale = rng.integers(0, 256, (oc, ic)).astype(np.uint8), rng.uniform(-0.01, 0.01, oc).astype(np.float16)
    codes[0] = 255
    x = np.concatenate([weight_of((7, ic)), np.full((1, ic), 9.0)]).astype(np.float32)[None]
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    options.optimized_model_filepath = str(tmp_path / "ran.onnx")
    session = ort.InferenceSession(alone(record, tensor_of(record, codes, scale)).SerializeToString(), options)
    (y,) = session.run(None, {"x": x})
    left = np.clip(np.rint(x[0] / np.float32(STATIC.scale)) + STATIC.zero_point, 0, 255) - STATIC.zero_point
    whole = left.astype(np.int32) @ (codes.astype(np.int32) - 128).T
    expected = whole * (np.float64(np.float32(STATIC.scale)) * scale.astype(np.float64))
    terms = np.abs(left) @ np.abs(codes.astype(np.float64) - 128).T * STATIC.scale * np.abs(scale.astype(np.float64))
    size = np.abs(expected) if level == LEVELS.ORT_ENABLE_ALL else terms
    assert (np.abs(y[0] - expected) <= tolerance * size).all()
    ran = [one.op_type for one in onnx.load(tmp_path / "ran.onnx").graph.node]
    assert ("MatMulIntegerToFloat" in ran) == (level == LEVELS.ORT_ENABLE_ALL)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Biases on q, k and v, no length a power of two, and one of which MatMulNBits would make blocks of 64."""
    folder = tmp_path_factory.mktemp("qdq") / "m"
    return open_checkpoint(make_tiny_model(folder, "qwen2", layers=2, hidden=96, heads=3, kv_heads=1, head_dim=32, ffn=192))


@pytest.fixture(scope="module")
def store(source, tmp_path_factory):
    return quantize_checkpoint(source, tmp_path_factory.mktemp("qdq") / "store", CONFIG, TARGET)


@pytest.fixture(scope="module")
def written(store, tmp_path_factory):
    return write_onnx(store, tmp_path_factory.mktemp("qdq") / "onnx")


def loaded(folder) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def static_names(store: QuantizedStore) -> list[str]:
    found = [name for name, one in store.records.items() if one.activation is not None and one.activation.grid.static]
    assert len(found) >= 2 * 6
    return found


def test_each_input_is_rounded_once(store, written):
    model = loaded(written)
    rounding = [node.name for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert [name for name in rounding if name.startswith(LAYER)] == [
        f"{LAYER}{name}.rounded/QuantizeLinear"
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    ]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if ".rounded." in tensor.name}
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj"):
        activation = store.records[f"{LAYER}{name}.weight"].activation
        assert held[f"{LAYER}{name}.rounded.scale"] == np.float32(activation.scale)
        assert held[f"{LAYER}{name}.rounded.zero_point"] == activation.zero_point
    size = sum(path.stat().st_size for path in written.iterdir() if path.name.startswith("model.onnx"))
    assert onnx_size(store) == size


def test_onnxruntime_multiplies_integers(store, written, tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "ran.onnx"), 3
    ort.InferenceSession(str(written / "model.onnx"), options)
    ran = Counter(one.op_type for one in onnx.load(tmp_path / "ran.onnx", load_external_data=False).graph.node)
    assert ran["MatMulIntegerToFloat"] == len(static_names(store))
    assert (ran["DequantizeLinear"], ran["MatMul"]) == (0, 0)


def test_node_by_node_nothing_is_fused(written):
    for fused, level in ((True, LEVELS.ORT_ENABLE_ALL), (False, LEVELS.ORT_DISABLE_ALL)):
        session = open_session(written / "model.onnx", written, fused=fused)
        assert session.get_session_options().graph_optimization_level == level


def test_what_is_written_verifies(source, store, written):
    checks = verify(written, source, store)
    assert not [check for check in checks if not check.ok]
    names = {check.name for check in checks}
    assert {"input = store's", "onnxruntime = reference, rounded", "onnxruntime = integers' product"} <= names
    assert {"node by node = simulation", "logits at accuracy level 0 = torch", "codes = store's"} <= names
    assert {"mean KL to torch, as shipped, beyond 1.5 times node by node's", "inputs that no codes are behind"} <= names
    assert evaluate(written, source, TEXT, EvalOptions(64))["kld"] < 0.05
    told = {item["name"]: item for item in inspect(written)["tensors"]}
    assert told[f"{LAYER}mlp.up_proj.weight"]["bits"] == 8


def test_the_reference_reads_what_the_store_has(store, written):
    held = read_onnx(written)
    for name in static_names(store):
        given, wanted = held[name].input(), store.records[name].activation
        assert (held[name].form, given.scale, given.zero_point) == ("qdq", np.float32(wanted.scale), wanted.zero_point)
        x = weight_of((3, 50)) * 3
        assert np.array_equal(given.round(x), wanted.round(x))
        np.testing.assert_array_equal(held[name].decode(), store.weight(name).dense())


def node_of(model, name):
    return next(node for node in model.graph.node if node.name == f"{LAYER}{name}")


def constant_of(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == f"{LAYER}{name}")


def put(tensor, value):
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def move_a_scale(model):
    tensor = constant_of(model, "mlp.gate_proj.rounded.scale")
    put(tensor, np.nextafter(numpy_helper.to_array(tensor), np.float32(1)))


def move_a_zero_point(model):
    tensor = constant_of(model, "self_attn.o_proj.rounded.zero_point")
    put(tensor, np.uint8(numpy_helper.to_array(tensor) + 1))


def exchange_two_scales(model):
    names = ("self_attn.q_proj.rounded", "mlp.gate_proj.rounded")
    for part in ("scale", "zero_point"):
        one, other = (constant_of(model, f"{name}.{part}") for name in names)
        first, second = numpy_helper.to_array(one), numpy_helper.to_array(other)
        put(one, second)
        put(other, first)


def exchange_two_inputs(model):
    """gate and up read what o reads: the right weights of another input."""
    other = node_of(model, "self_attn.o_proj.rounded/QuantizeLinear").input
    own = node_of(model, "mlp.gate_proj.rounded/QuantizeLinear").input
    own[1], own[2] = other[1], other[2]
    own = node_of(model, "mlp.gate_proj.rounded/DequantizeLinear").input
    own[1], own[2] = other[1], other[2]


def claim_blocks(model):
    for entry in model.metadata_props:
        if entry.key == "adadim.tensors":
            entry.value = entry.value.replace('"activation": "a8-tensor"', '"activation": "a8-block32"', 1)


def add_a_step(model):
    """The codes are right and read rightly, but what rounds goes on to change the sign."""
    last = node_of(model, "self_attn.o_proj.rounded/DequantizeLinear")
    last.output[0] += ".plus"
    at = list(model.graph.node).index(last) + 1
    stem = f"{LAYER}self_attn.o_proj.rounded"
    model.graph.node.insert(at, helper.make_node("Identity", [f"{stem}.plus"], [stem], name=f"{stem}/Identity"))


CHANGES = {
    move_a_scale: {"input = store's"},
    move_a_zero_point: {"input = store's"},
    exchange_two_scales: {"input = store's"},
    exchange_two_inputs: {"input = store's"},
    claim_blocks: {"metadata = store's"},
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(source, store, written, tmp_path, change):
    folder = shutil.copytree(written, tmp_path / "onnx")
    model = loaded(folder)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    checks = [check for step in ("claims", "tensors") for check in steps_of(folder)[step](folder, source, store)]
    assert CHANGES[change] <= {check.name for check in checks if not check.ok}


def read_past(model):
    """up reads what is not rounded."""
    node_of(model, "mlp.up_proj/MatMul").input[0] = node_of(model, "mlp.gate_proj.rounded/QuantizeLinear").input[0]


def two_scales(model):
    node_of(model, "mlp.gate_proj.rounded/DequantizeLinear").input[1] = f"{LAYER}self_attn.o_proj.rounded.scale"


def another_axis(model):
    node_of(model, "mlp.up_proj/DequantizeLinear").attribute[0].i = 0


def no_scale(model):
    put(constant_of(model, "mlp.gate_proj.rounded.scale"), np.float32(0))


def signed_zero_point(model):
    put(constant_of(model, "mlp.gate_proj.rounded.zero_point"), np.int8(3))


DAMAGE = {
    read_past: "which integers multiply, is not rounded",
    add_a_step: "which integers multiply, is not rounded",
    two_scales: "have different scales",
    another_axis: r"up_proj/DequantizeLinear has 3 inputs and the attributes {'axis': 0}, not 3 and {'axis': 1}",
    no_scale: "has the scale 0",
    signed_zero_point: "zero_point is of type 3",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_refused(source, written, tmp_path, damage):
    folder = shutil.copytree(written, tmp_path / "onnx")
    model = loaded(folder)
    damage(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises((DamagedFileError, FileFormatError), match=DAMAGE[damage]):
        steps_of(folder)["tensors"](folder, source, None)


def activations(plans) -> dict[str, tuple[str, ...]]:
    return {plan.name.removeprefix(LAYER): plan.activations for plan in plans if plan.candidates}


def test_plans(source, tmp_path):
    plans = build_plan(source.specs, CONFIG, TARGET)
    found = activations(plans)
    assert found["mlp.up_proj.weight"] == TARGET.activations == ("a8-tensor", "a8-block32")
    assert found["model.embed_tokens.weight"] == ()
    grids = {plan.candidates[Axis.PER_OC] for plan in plans if plan.activations}
    assert grids == {make_grid("int", 8, size, symmetric=True) for size in (128, 256)}
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "*.mlp.*"\nbits = 4\n[[rule]]\nmatch = "*.o_proj"\ngroup_size = 32\n')
    found = activations(build_plan(source.specs, config_of("rtn-oc", recipe=recipe), TARGET))
    assert found["mlp.up_proj.weight"] == found["self_attn.o_proj.weight"] == ()
    assert found["self_attn.q_proj.weight"] == TARGET.activations
    for name in ("onnxruntime", "onnxruntime+adadim"):
        config = config_of("rtn-oc", bits=8, group_size=0, symmetric=True)
        assert set(activations(build_plan(source.specs, config, TARGETS[name])).values()) == {()}


def test_other_grids_are_as_on_onnxruntime(source, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "*.mlp.*"\nbits = 4\n')
    store = quantize_checkpoint(
        source, tmp_path / "s", config_of("gptq-oc", recipe=recipe, calibration_tokens=512, max_slowdown=1.0), TARGET
    )
    folder = write_onnx(store, tmp_path / "onnx")
    forms = {name.removeprefix(LAYER): tensor.form for name, tensor in read_onnx(folder).items()}
    assert (forms["mlp.up_proj.weight"], forms["self_attn.q_proj.weight"]) == ("matmulnbits", "qdq")
    assert not [check for check in verify(folder, source, store) if not check.ok]


def test_the_commands_in_one(source, tmp_path):
    command = ["run", str(source.path), "--target", TARGET.name, "--calibration-tokens", "512", "--quiet"]
    assert main([*command, "--effort", "fast", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / TARGET.name / "verify.json").read_text())
    assert report["ok"] is True


def test_per_ic_is_lacking(source):
    with pytest.raises(ConfigError, match="cannot hold per-IC groups: its products have one scale an output channel"):
        build_plan(source.specs, config_of("rtn-ic"), TARGET)


def test_an_imatrix_is_refused(source, tmp_path, capsys):
    command = ["quantize", str(source.path), "--target", TARGET.name, "--imatrix", str(tmp_path / "i.gguf")]
    assert main([*command, "--out", str(tmp_path / "s"), "--method", "rtn-oc"]) == 2
    assert "a scale of its input has to be found, for which the source must run" in capsys.readouterr().err


def test_float16_is_refused(store, tmp_path):
    with pytest.raises(ExportError, match=r"q_proj.weight: its input is rounded by a scale that is written for float32 alone"):
        write_onnx(store, tmp_path / "onnx", onnx_dtype="float16")


def plain_store(source, out: Path) -> QuantizedStore:
    return rtn_store(source.path, out, "onnxruntime", bits=8, group_size=0, symmetric=True)


@pytest.mark.parametrize(
    ("target", "name", "told"),
    [
        ("onnxruntime", "a8-tensor", "target onnxruntime rounds the input of no such weight to a8-tensor"),
        (TARGET.name, "a4-token", "target onnxruntime-w8a8 rounds the input of no such weight to a4-token"),
    ],
)
def test_a_store_that_says_otherwise(source, tmp_path, target, name, told):
    store = plain_store(source, tmp_path / "s")
    plan = store.path / "plan.json"
    unseal(plan)
    held = json.loads(plan.read_text()) | {"target": target}
    own = next(one for one in held["tensors"] if one["name"].endswith("q_proj.weight"))
    own["activation"] = {"name": name, "scale": 0.5, "zero_point": 3}
    plan.write_text(json.dumps(held))
    with pytest.raises(StoreError, match=told):
        write_onnx(QuantizedStore(store.path), tmp_path / "onnx")

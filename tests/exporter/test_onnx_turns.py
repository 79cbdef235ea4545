"""RotateAdaDim: its body in onnxruntime, where it stands in a graph, what it takes, and what verify sees of changes to it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.cli.main import main
from exporter.inspect import inspect
from exporter.onnx.file import onnx_size, write_onnx
from exporter.onnx.library import add_library
from exporter.onnx.turns import DOMAIN, OP_TYPE, rotate_function
from exporter.targets import TARGETS
from quantize import build_plan, open_checkpoint, quantize_checkpoint
from quantize.planning.plan import ModelPlan
from quantize.run.pipeline import planned_store
from quantize.turn import Rotation
from runtime_checks.checks.verify import steps_of, verify
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from runtime_checks.reference.onnx import read_onnx
from runtime_checks.reference.onnx_sum import whole_weights
from tests.cases import config_of, weight_of
from tests.tiny import TEXT, make_tiny_model

ADADIM = TARGETS["onnxruntime+adadim"]
LEVELS = ort.GraphOptimizationLevel
SUM = {np.float32: 1e-6, np.float16: 2e-3}  # of sums over a run, against the largest value
CONFIG = config_of("higgs", grid="int", symmetric=True)
LAYER = "model.layers.0."


@pytest.mark.parametrize("level", [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("channels", "size"), [(576, 576), (96, 96), (100, 20), (48, 16)])
def test_the_body_turns(channels, size, dtype, level):
    turn, kind = Rotation(size, 1), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = {"signs": turn.signs(channels), "left": turn.left, "right": turn.right}
    graph = helper.make_graph(
        [helper.make_node(OP_TYPE, ["x", *constants], ["y"], domain=DOMAIN)],
        "one",
        [helper.make_tensor_value_info("x", kind, ["batch", "tokens", channels])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[rotate_function()], opset_imports=opsets, ir_version=11)
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    x = weight_of((6, channels)).reshape(2, 3, channels).astype(dtype)
    (y,) = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
    expected = turn.apply(x.astype(np.float32))
    assert (y.shape, y.dtype) == (x.shape, dtype)
    np.testing.assert_allclose(y.astype(np.float32), expected, atol=SUM[dtype] * np.abs(expected).max())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """ffn 160 = 8 * 20: two factors of different orders."""
    folder = tmp_path_factory.mktemp("turns") / "m"
    return open_checkpoint(make_tiny_model(folder, layers=1, hidden=96, heads=3, kv_heads=1, head_dim=32, ffn=160))


@pytest.fixture(scope="module")
def store(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("turns") / "store"
    return quantize_checkpoint(source, out, CONFIG, ADADIM)


@pytest.fixture(scope="module")
def written(store, tmp_path_factory):
    return write_onnx(store, tmp_path_factory.mktemp("turns") / "onnx")


def turning(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node if node.op_type == OP_TYPE}


def loaded(folder) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def test_each_input_is_turned_once(source, store, written):
    model = loaded(written)
    readers = {node.name.rpartition("/")[0]: node.input[0] for node in model.graph.node if node.op_type == "MatMulAdaDim"}
    names = {"self_attn.q_proj": "qkv", "self_attn.o_proj": "o", "mlp.gate_proj": "gate up", "mlp.down_proj": "down"}
    assert list(turning(model)) == [f"{LAYER}{name}.turned/{OP_TYPE}" for name in names]
    assert len(set(readers.values())) == 4 and len(readers) == 7
    constants = {name for node in turning(model).values() for name in node.input[1:]}
    assert constants == {
        *("adadim.signs_96_96_0", "adadim.signs_160_160_0"),
        *("adadim.hadamard_8", "adadim.hadamard_12", "adadim.hadamard_20"),
    }
    assert [function.name for function in model.functions] == ["MatMulAdaDim", OP_TYPE]
    size = sum(path.stat().st_size for path in written.iterdir() if path.name.startswith("model.onnx"))
    assert onnx_size(store) == size
    with planned_store(source, ModelPlan(CONFIG, ADADIM, build_plan(source.specs, CONFIG, ADADIM))) as planned:
        assert onnx_size(planned) == size


def test_what_is_written_verifies(source, store, written):
    checks = verify(written, source, store)
    assert not [check for check in checks if not check.ok]
    names = {check.name for check in checks}
    assert {"turn = store's", "onnxruntime = reference, turned", "metadata = the turn's signs", "codes = store's"} <= names
    assert {"logits at accuracy level 0 = torch", "turns that no codes are behind"} <= names
    assert evaluate(written, source, TEXT, EvalOptions(64))["kld"] < 0.2
    told = {item["name"]: item for item in inspect(written)["tensors"]}
    assert told[f"{LAYER}mlp.down_proj.weight"]["grid"] == "int"


def test_the_reference_leads_weights_back(store, written):
    for name, weight in whole_weights(read_onnx(written)).items():
        if weight.first.read_turn is not None:
            dense = store.weight(name).dense()
            np.testing.assert_allclose(weight.whole(weight.first.decode()), dense, atol=1e-6 * np.abs(dense).max() * 10)


def test_with_the_native_library(source, store, written, tmp_path):
    """By its kernel as by its body."""
    folder = shutil.copytree(written, tmp_path / "onnx")
    add_library(folder)
    checks = [check for step in ("tensors", "model") for check in steps_of(folder)[step](folder, source, store)]
    assert checks and not [check for check in checks if not check.ok]


def test_some_of_a_site_and_both_axes(source, tmp_path):
    """k reads its input turned, q and v as it is, in groups of the other axis."""
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "*.k_proj"\nmethod = "higgs"\ngrid = "int"\n')
    store = quantize_checkpoint(source, tmp_path / "s", config_of("rtn-ic", recipe=recipe), ADADIM)
    folder = write_onnx(store, tmp_path / "onnx")
    assert list(turning(loaded(folder))) == [f"{LAYER}self_attn.k_proj.turned/{OP_TYPE}"]
    checks = verify(folder, source, store)
    assert not [check for check in checks if not check.ok]


def node_of(model, name):
    return next(node for node in model.graph.node if node.name == f"{LAYER}{name}")


def signs_of(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def flip_a_sign(model):
    tensor = signs_of(model, "adadim.signs_96_96_0")
    values = numpy_helper.to_array(tensor).copy()
    values[7] *= -1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def another_seed(model):
    signs = signs_of(model, "adadim.signs_160_160_0")
    signs.CopyFrom(numpy_helper.from_array(Rotation(160, 1).signs(160), signs.name))


def swap_factors(model):
    inputs = node_of(model, f"mlp.down_proj.turned/{OP_TYPE}").input
    inputs[2], inputs[3] = inputs[3], inputs[2]


def claim_another_seed(model):
    for entry in model.metadata_props:
        if entry.key == "adadim.tensors":
            tensors = json.loads(entry.value)
            next(item for item in tensors if item["name"].endswith("down_proj.weight"))["turn"]["seed"] = 1
            entry.value = json.dumps(tensors)


def claim_none(model):
    for entry in model.metadata_props:
        if entry.key == "adadim.tensors":
            tensors = json.loads(entry.value)
            del next(item for item in tensors if item["name"].endswith("down_proj.weight"))["turn"]
            entry.value = json.dumps(tensors)


def claim_one_too_many(model):
    for entry in model.metadata_props:
        if entry.key == "adadim.tensors":
            entry.value = entry.value.replace('"seed": 0}', '"seed": 0, "more": "\\u001b"}').replace('"size": 160', '"size": 7')


def pass_by(model):
    """up reads what is not turned."""
    turned = node_of(model, f"mlp.gate_proj.turned/{OP_TYPE}")
    node_of(model, "mlp.up_proj/MatMulAdaDim").input[0] = turned.input[0]


CHANGES = {
    flip_a_sign: {"turn = store's", "metadata = the turn's signs"},
    another_seed: {"turn = store's", "metadata = the turn's signs"},
    swap_factors: {"turn = store's", "metadata = the turn's signs"},
    claim_another_seed: {"metadata = the turn's signs", "metadata = store's"},
    claim_none: {"metadata = the turn's signs", "metadata = store's"},
    claim_one_too_many: {"metadata = the turn's signs", "metadata = store's"},
    pass_by: {"turn = store's", "metadata = the turn's signs"},
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(source, store, written, tmp_path, change):
    """With the store, and of what does not only contradict it by the file alone."""
    folder = shutil.copytree(written, tmp_path / "onnx")
    model = loaded(folder)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    missed = {known: set() for known in (True, False)}
    for known, names in missed.items():
        for step in ("claims", "tensors"):
            checks = steps_of(folder)[step](folder, source, store if known else None)
            names.update(check.name for check in checks if not check.ok)
    assert CHANGES[change] <= missed[True]
    assert missed[False] == CHANGES[change] - {"turn = store's", "metadata = store's"}


DAMAGE = {
    "signs of another length": lambda model: signs_of(model, "adadim.signs_96_96_0").CopyFrom(
        numpy_helper.from_array(np.ones(95, np.int8), "adadim.signs_96_96_0")
    ),
    "a sign that is none": lambda model: signs_of(model, "adadim.signs_96_96_0").CopyFrom(
        numpy_helper.from_array(np.full(96, 2, np.int8), "adadim.signs_96_96_0")
    ),
    "signs of another type": lambda model: signs_of(model, "adadim.signs_96_96_0").CopyFrom(
        numpy_helper.from_array(np.ones(96, np.float32), "adadim.signs_96_96_0")
    ),
    "a factor that is no square": lambda model: signs_of(model, "adadim.hadamard_8").CopyFrom(
        numpy_helper.from_array(np.ones((8, 4), np.int8), "adadim.hadamard_8")
    ),
    "an input less": lambda model: node_of(model, f"mlp.down_proj.turned/{OP_TYPE}").input.pop(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line(source, written, tmp_path, damage, capsys):
    folder = shutil.copytree(written, tmp_path / "onnx")
    model = loaded(folder)
    DAMAGE[damage](model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert main(["verify", str(folder), "--source", str(source.path), "--quiet"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_template_is_turned_too(kept, tmp_path):
    """Its q, k and v share an input, whatever they are called there."""
    source = open_checkpoint(kept.onnx("gpt2"), kept.model("gpt2"))
    config = config_of("higgs", grid="int", rounder="gptq", calibration_tokens=1024)
    store = quantize_checkpoint(source, tmp_path / "s", config, ADADIM)
    folder = write_onnx(store, tmp_path / "onnx")
    checks = verify(folder, source, store)
    assert not [check for check in checks if not check.ok]
    assert {"nodes = source's", "reads and makes what the source's does", "turn = store's"} <= {check.name for check in checks}
    nodes = turning(loaded(folder))
    assert (len(nodes), sum(record.turn is not None for record in store.records.values())) == (8, 12)
    first = next(iter(nodes.values()))
    assert {TensorProto.INT8} == {tensor.data_type for tensor in loaded(folder).graph.initializer if tensor.name in first.input}

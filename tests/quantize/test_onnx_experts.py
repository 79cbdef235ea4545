"""Experts of an ONNX template as stacks: rounded by what each sees, written as one QMoE, and read back by the reference and by
onnxruntime's own kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exporter.bundle.folder import BundleOptions, write_bundle
from exporter.inspect import inspect
from exporter.onnx.file import onnx_size, write_onnx
from exporter.targets import TARGETS
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.onnx_template import OnnxTemplate
from quantize.errors import PlanError
from quantize.run.pipeline import quantize_checkpoint
from quantize.statistics.by_template import template_blocks
from quantize.store.tensors import QuantizedStore
from quantize.template import onnx_convert
from quantize.template.onnx_convert import OF_EXPERTS, PRODUCERS, convert_onnx
from runtime_checks.checks.verify import verify
from runtime_checks.reference.onnx import read_onnx
from runtime_checks.report.outliers import find_outliers
from tests.any_model import make_model
from tests.cases import config_of

ONNX = TARGETS["onnxruntime"]
TOKENS = np.random.default_rng(0).integers(3, 400, (2, 96))
UP, DOWN = (f"model.layers.1.mlp.experts.{name}_proj.weight" for name in ("gate_up", "down"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> OnnxTemplate:
    """Biases, a bound, and a router with a bias; 4 experts of 96 channels, 2 for a token."""
    return _template(tmp_path_factory.mktemp("gpt_oss"), "gpt_oss")


def _template(folder: Path, model_type: str, **more) -> OnnxTemplate:
    model = make_model(folder / "model", model_type, **more)
    assert convert_onnx(model, folder / "onnx").by == PRODUCERS[OF_EXPERTS]
    found = open_checkpoint(folder / "onnx", model)
    assert isinstance(found, OnnxTemplate)
    return found


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory) -> tuple[QuantizedStore, Path]:
    folder = tmp_path_factory.mktemp("exported")
    config = config_of("gptq-oc", bits=4, group_size=64, token_weight="unit", calibration_tokens=2048)
    store = quantize_checkpoint(source, folder / "store", config, ONNX)
    return store, write_onnx(store, folder / "onnx")


def test_a_stack_is_told_from_what_stays_floats(source):
    assert source.specs[UP].shape == (4, 192, 64) and source.specs[DOWN].shape == (4, 64, 96)
    assert (source.specs[UP].partner, source.specs[DOWN].partner) == (DOWN, UP)
    assert {source.specs[name].kept for name in (UP, DOWN)} == {""} and source.specs[UP].dtype == "BF16"
    kept = {name.rpartition("layers.1.")[2]: spec.kept for name, spec in source.specs.items() if spec.kept and "layers.1" in name}
    biases = "biases, a row of them for each expert"
    assert kept == {
        "mlp.gate.weight": "a router",
        "mlp.experts.gate_up_proj.bias": biases,
        "mlp.experts.down_proj.bias": biases,
    }


def test_one_node_holds_the_experts_of_a_layer(source, exported):
    """Every check: the reference and onnxruntime's kernel on every expert, the whole model at both levels, genai's tokens."""
    store, out = exported
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QMoE") == 2 and "MoE" not in kinds
    assert {record.rounder for name, record in store.records.items() if name in (UP, DOWN)} == {"gptq"}
    assert store.header["calibration"]["rank_poor"] == []
    checks = verify(out, source, store)
    assert not [check for check in checks if not check.ok]
    names = {(check.name, check.tensor) for check in checks}
    assert {(f"{what} = store's", name) for what in ("codes", "scales", "zero points") for name in (UP, DOWN)} <= names
    assert {("onnxruntime = reference", name) for name in (UP, DOWN)} <= names
    assert "genai's tokens = onnxruntime's, as shipped" in {name for name, _ in names}
    assert onnx_size(store) == sum((out / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    items = {item["name"]: item for item in inspect(out)["tensors"]}
    assert (items[UP]["shape"], items[UP]["bits"], items[UP]["group_size"]) == ([4, 192, 64], 4, 64)


def test_the_report_shows_a_linear_that_is_one_matrix(source, exported):
    found = find_outliers(exported[0], source, None, None)
    assert len(source.specs[found.name].shape) == 2


def test_a_bundle_asks_for_a_runtime_that_multiplies_them(exported, tmp_path):
    manifest = write_bundle(exported[1], tmp_path / "out", BundleOptions("android"))
    assert manifest["runtime"]["minimum_version"] == "1.32.0"


def test_a_changed_byte_of_one_expert_is_seen(source, exported, tmp_path):
    """Of codes, scales and zero points alike, whatever the seals say."""
    store, out = exported
    for part in ("codes", "scale", "zero_point"):
        copy = Path(shutil.copytree(out, tmp_path / part))
        place = {entry.key: entry.value for entry in _initializer(copy, f"{DOWN}.{part}").external_data}
        data = bytearray((copy / "model.onnx.data").read_bytes())
        data[int(place["offset"]) + int(place["length"]) - 2] ^= 1  # of the last expert
        (copy / "model.onnx.data").write_bytes(data)
        missed = {(check.name, check.tensor) for check in verify(copy, source, store) if not check.ok}
        what = {"codes": "codes", "scale": "scales", "zero_point": "zero points"}[part]
        assert (f"{what} = store's", DOWN) in missed


def _initializer(folder: Path, name: str) -> onnx.TensorProto:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def _exchange(node: onnx.NodeProto, one: int, other: int) -> None:
    node.input[one], node.input[other] = node.input[other], node.input[one]


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(item for item in node.attribute if item.name == name)


@pytest.mark.parametrize(
    "change",
    [
        lambda node: _exchange(node, 4, 7),
        lambda node: _exchange(node, 0, 1),
        lambda node: _exchange(node, 11, 12),
        lambda node: setattr(_attribute(node, "k"), "i", 1),
        lambda node: setattr(_attribute(node, "swiglu_limit"), "f", 70.0),
        lambda node: node.attribute.remove(_attribute(node, "activation_beta")),
    ],
)
def test_verify_sees_another_node(source, exported, tmp_path, change):
    store, out = exported
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    change(next(node for node in model.graph.node if node.op_type == "QMoE"))
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    missed = {check.name for check in verify(copy, source, store) if not check.ok}
    assert "experts read and are told what the source's are" in missed


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, True), (8, False)])
def test_other_widths(source, tmp_path, bits, symmetric):
    """2 and 3 bits ride in 4; at 8 bits the kernel rounds activations at every accuracy level, but not where it is checked."""
    config = config_of("rtn-oc", bits=bits, group_size=32, symmetric=symmetric, scale_dtype="float32" if symmetric else "float16")
    store = quantize_checkpoint(source, tmp_path / "store", config, ONNX)
    out = write_onnx(store, tmp_path / "onnx")
    assert not [check for check in verify(out, source, store) if not check.ok]
    node = next(node for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node if node.op_type == "QMoE")
    assert _attribute(node, "expert_weight_bits").i == max(4, bits)
    assert (len(node.input) > 11) == (not symmetric or bits < 4)


def test_shares_that_are_not_one_together(tmp_path):
    """Those of OLMoE are of the softmax of all; one width for two stacks of different ones, and one block."""
    source = _template(tmp_path, "olmoe")
    (tmp_path / "recipe.toml").write_text("[[rule]]\nmatch = '*down_proj'\nbits = 8\ngroup_size = 16\n")
    config = config_of("rtn-oc", bits=3, group_size=64, recipe=tmp_path / "recipe.toml")
    store = quantize_checkpoint(source, tmp_path / "store", config, TARGETS["onnxruntime+adadim"])
    out = write_onnx(store, tmp_path / "out")
    node = next(node for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node if node.op_type == "QMoE")
    assert node.input[14] == f"{node.input[2].removesuffix('.weight.codes')}.shares"
    assert (_attribute(node, "expert_weight_bits").i, _attribute(node, "block_size").i) == (8, 16)
    assert not [check for check in verify(out, source, store) if not check.ok]


def test_what_does_not_fit_stays_floats_with_its_partner(tmp_path):
    source = _template(tmp_path, "mixtral", intermediate_size=72)
    config = config_of("rtn-oc", bits=4)
    with pytest.raises(PlanError, match=r"down_proj\.weight 256x72: per_oc shape .4, 64, 72.: .*; 72 is no multiple of that"):
        quantize_checkpoint(source, tmp_path / "store", config, ONNX)
    store = quantize_checkpoint(source, tmp_path / "store", config_of("rtn-oc", bits=4, allow_fallback=True), ONNX)
    assert {store.records[name].dtype for name in (UP, DOWN) if store.records[name].grid is None} == {"BF16"}
    assert f"{UP}: {DOWN} stays floats; kept as BF16" in store.header["notes"]
    out = write_onnx(store, tmp_path / "out")
    assert [node.op_type for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node].count("MoE") == 2
    assert not [check for check in verify(out, source, store) if not check.ok]


def test_without_torch_s_model_experts_are_rounded_and_it_is_said(source, tmp_path):
    alone = open_checkpoint(source.path)
    config = config_of("gptq-oc", bits=4, token_weight="unit", calibration_tokens=512)
    store = quantize_checkpoint(alone, tmp_path / "store", config, ONNX)
    poor = store.header["calibration"]["rank_poor"]
    assert [line for line in poor if line.startswith(f"{DOWN}: 4 of 4 experts")] and store.records[DOWN].grid is not None


def test_a_graph_that_computes_every_expert_is_known_by_what_each_sees(kept, tmp_path, monkeypatch):
    """As makers write it that know no MoE: a matrix for each expert, seen by all tokens."""
    model = kept.model("granitemoe")
    with monkeypatch.context() as without:
        without.setattr(onnx_convert, "PRODUCERS", {"mobius-gqa": PRODUCERS["mobius-gqa"]})
        convert_onnx(model, tmp_path / "dense")
    dense, stacks = (open_checkpoint(path, model) for path in (tmp_path / "dense", kept.onnx("granitemoe")))
    for one, two in zip(template_blocks(dense, TOKENS, "unit"), template_blocks(stacks, TOKENS, "unit"), strict=True):
        known = one.stats[DOWN.replace("experts", "experts.3").replace("layers.1", f"layers.{one.index}")]
        stack = two.experts[DOWN.replace("layers.1", f"layers.{one.index}")]
        assert known.n_tokens == stack.tokens[3] < TOKENS.size
        np.testing.assert_array_equal(known.hessian, stack.of(3).hessian)


def test_the_reference_reads_bytes_as_the_runtime_does(exported):
    """Low bits first; and the whole node in numpy, its biases and its bound too."""
    _, out = exported
    held = read_onnx(out)[UP]
    codes = held.codes(slice(0, 1))
    raw = np.memmap(out / "model.onnx.data", np.uint8, "r")
    place = {entry.key: int(entry.value) for entry in _initializer(out, f"{UP}.codes").external_data if entry.key == "offset"}
    assert codes.codes[0, :2].tolist() == [raw[place["offset"]] & 15, raw[place["offset"]] >> 4]
    weights = {name: read_onnx(out)[name].decode() for name in (UP, DOWN)}
    x, scores, y = _run_node(out)
    up, down = weights[UP].reshape(4, 192, 64), weights[DOWN].reshape(4, 64, 96)
    biases = [read_onnx(out)[name.replace("weight", "bias")].values() for name in (UP, DOWN)]
    for token in range(len(x)):
        best = np.argsort(-scores[token])[:2]
        shares = np.exp(scores[token][best] - scores[token][best].max())
        expected = np.zeros(64)
        for expert, share in zip(best, shares / shares.sum(), strict=True):
            both = up[expert].astype(np.float64) @ x[token] + biases[0][expert]
            gate, linear = np.minimum(both[::2], 7), np.clip(both[1::2], -7, 7)
            expected += share * (down[expert] @ (gate / (1 + np.exp(-1.702 * gate)) * (linear + 1)) + biases[1][expert])
        np.testing.assert_allclose(y[token], expected, atol=2e-6 * np.abs(expected).max())


def _run_node(out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last layer's, at level 0, on numbers of our own: what goes in, and what comes out."""
    model = onnx.load(out / "model.onnx")
    node = [one for one in model.graph.node if one.op_type == "QMoE"][-1]
    _attribute(node, "accuracy_level").i = 0
    random = np.random.default_rng(0)
    x, scores = random.standard_normal((5, 64), np.float32), random.standard_normal((5, 4), np.float32)
    casts = [one for one in model.graph.node if one.output[0] in node.input and one.op_type == "Cast"]
    read = {name for one in (node, *casts) for name in one.input}
    held = [tensor for tensor in model.graph.initializer if tensor.name in read]
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in (*node.input[:2], node.output[0])]
    graph = onnx.helper.make_graph([*casts, node], "one", values[:2], values[2:], held)
    small = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = ort.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, dict(zip(node.input[:2], (x, scores), strict=True)))
    return x, scores, y

"""Every width, axis and ragged shape of the int grid: onnxruntime says what the reference says."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from exporter.onnx.file import write_onnx
from exporter.targets import TARGETS
from quantize import QuantizeConfig, QuantizedStore, open_checkpoint, quantize_checkpoint
from quantize.errors import FileFormatError
from runtime_checks.checks import onnx_check, onnx_parts
from runtime_checks.checks.onnx_check import SPLIT_TOLERANCE, check_onnx
from runtime_checks.checks.onnx_parts import OnnxParts
from runtime_checks.reference.onnx import read_onnx
from runtime_checks.runtimes.weights import row_chunks
from tests.cases import config_of
from tests.tiny import make_tiny_model

WHOLE_CHANNEL = 128  # more than any length here, none of which is a power of two: one ragged group in every row
CASES = [
    (target, method, bits, group, symmetric)
    for target, (method, bits), (group, symmetric) in itertools.product(
        ("onnxruntime", "onnxruntime+adadim"),
        (("rtn-oc", 2), ("rtn-oc", 3), ("rtn-ic", 4), ("rtn-ic", 3), ("rtn-oc", 8), ("rtn-ic", 8)),
        ((16, False), (64, True), (WHOLE_CHANNEL, False)),
    )
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """96 and 80 are no multiple of 64: the last groups are ragged on both axes."""
    return open_checkpoint(
        make_tiny_model(tmp_path_factory.mktemp("odd") / "model", hidden=96, ffn=80, layers=1, heads=3, kv_heads=1)
    )


@pytest.mark.parametrize(("target", "method", "bits", "group", "symmetric"), CASES)
def test_all_forms(source, tmp_path, target, method, bits, group, symmetric):
    config = config_of(method=method, bits=bits, group_size=group, symmetric=symmetric)
    store = quantize_checkpoint(source, tmp_path / "store", config, TARGETS[target])
    folder = write_onnx(store, tmp_path / "onnx")
    checks = check_onnx(folder, store)
    assert not [check for check in checks if not check.ok]
    runtime = {check.tensor: check for check in checks if check.name == "onnxruntime = reference"}
    quantized = {name for name, record in store.records.items() if record.grid is not None}
    assert set(runtime) == quantized | {"lm_head.weight"}
    assert {check.tolerance for check in runtime.values()} <= {0.0, SPLIT_TOLERANCE}


def test_the_split_forms_tolerance_is_far_below_one_code(source, tmp_path):
    """Float16 scales times 8-bit codes need no rounding in float32; float32 scales do."""
    config = config_of(method="rtn-ic", bits=8, group_size=16, scale_dtype="float32")
    folder = write_onnx(quantize_checkpoint(source, tmp_path / "store", config, TARGETS["onnxruntime"]), tmp_path / "onnx")
    errors = [check.error for check in check_onnx(folder) if check.tolerance == SPLIT_TOLERANCE]
    assert 0 < max(errors) <= SPLIT_TOLERANCE < 1e-3


@pytest.fixture
def folder(source, tmp_path):
    store = quantize_checkpoint(source, tmp_path / "store", QuantizeConfig(method="rtn-oc"), TARGETS["onnxruntime"])
    return write_onnx(store, tmp_path / "onnx")


def edit(folder, change) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model.graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_nodes_that_compute_something_else_are_seen(folder):
    """The codes are right, but the graph reads them with a neighbour's scales."""

    def change(graph: onnx.GraphProto) -> None:
        nodes = {node.name: node for node in graph.node}
        gate, up = (nodes[f"model.layers.0.mlp.{name}_proj/Cast scale"] for name in ("gate", "up"))
        gate.input[0], up.input[0] = up.input[0], gate.input[0]

    edit(folder, change)
    assert not [check for check in check_onnx(folder) if not check.ok]  # the file says so, and onnxruntime does so
    misses = [check for check in check_onnx(folder, QuantizedStore(folder.with_name("store"))) if not check.ok]
    assert [check.name for check in misses] == ["scales = store's"] * 2


@pytest.mark.parametrize("name", ["model.layers.0.mlp.gate_proj", "model.embed_tokens", "lm_head"])
def test_onnxruntime_is_asked_and_not_only_the_bytes(folder, name):
    """The codes are right and read rightly, but the weight's nodes go on to change the sign."""

    def change(graph: onnx.GraphProto) -> None:
        last = [index for index, node in enumerate(graph.node) if node.name.startswith(f"{name}/")][-1]
        output = graph.node[last].output[0]
        graph.node[last].output[0] = f"{output}.plus"
        graph.node.insert(last + 1, onnx.helper.make_node("Neg", [f"{output}.plus"], [output], name=f"{name}/Neg"))

    edit(folder, change)
    misses = [check for check in check_onnx(folder) if not check.ok]
    assert [(check.name, check.tensor) for check in misses] == [("onnxruntime = reference", f"{name}.weight")]


def test_a_weight_that_is_missing_or_new_is_seen(folder):
    def change(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name == "model.norm.weight":
                tensor.name = "model.other.weight"
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name == "model.norm.weight":
                    node.input[index] = "model.other.weight"

    edit(folder, change)
    checks = check_onnx(folder, QuantizedStore(folder.with_name("store")))
    assert {check.tensor for check in checks if not check.ok} == {"model.norm.weight", "model.other.weight"}


def test_onnxruntime_sees_the_weight_itself(folder):
    """The cut-out nodes give the transposed weight, whole, whatever the chunk."""
    name = "model.layers.0.mlp.down_proj.weight"
    expected = read_onnx(folder)[name].decode()
    rows = np.concatenate([part for _, part in OnnxParts(folder).linear(name, expected.shape)])
    np.testing.assert_array_equal(rows.T, expected)


def test_nodes_that_cannot_be_cut_out(folder):
    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.name == "model.layers.0.mlp.down_proj/MatMulNBits")
        node.name = "model.layers.0.mlp.gate_proj/Extra"

    edit(folder, change)
    with pytest.raises(FileFormatError, match="expected one value each"):
        next(OnnxParts(folder).linear("model.layers.0.mlp.gate_proj.weight", (80, 96)))


def test_an_initializer_that_nothing_needs(folder):
    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "blob"))
        graph.node.append(onnx.helper.make_node("Neg", ["blob"], ["negative"], name="dead/Neg"))

    edit(folder, change)
    misses = [check for check in check_onnx(folder) if not check.ok]
    assert [(check.name, check.tensor) for check in misses] == [("initializers that no output needs", "blob")]


def test_bytes_after_the_last_initializer(folder):
    with (folder / "model.onnx.data").open("ab") as file:
        file.write(bytes(100))
    (miss,) = [check for check in check_onnx(folder) if not check.ok]
    assert (miss.name, miss.tensor, miss.error) == ("bytes after the last tensor", "model.onnx.data", 100)


@pytest.mark.parametrize("method", ["rtn-oc", "rtn-ic"])
def test_chunks_change_nothing(source, tmp_path, monkeypatch, method):
    store = quantize_checkpoint(source, tmp_path / "store", QuantizeConfig(method=method), TARGETS["onnxruntime"])
    folder = write_onnx(store, tmp_path / "onnx")
    whole = check_onnx(folder, store)
    monkeypatch.setattr(onnx_check, "row_chunks", lambda rows, cols: row_chunks(rows, cols, 7 * cols))
    monkeypatch.setattr(onnx_parts, "CHUNK_BYTES", 1 << 12)
    assert check_onnx(folder, store) == whole

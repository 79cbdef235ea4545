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
from runtime_checks.reference.decode import DamagedFileError
from runtime_checks.reference.onnx import read_onnx
from runtime_checks.runtimes.exported import open_exported
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


Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(params=["rtn-oc", "rtn-ic"])
def columns(request, source, tmp_path):
    """A weight in two parts, the first as one node or split."""
    config = config_of(method=request.param, bits=4, group_size=16, float_columns=3, calibration_tokens=512)
    return write_onnx(quantize_checkpoint(source, tmp_path / "store", config, TARGETS["onnxruntime"]), tmp_path / "onnx")


def misses_of(folder) -> set[tuple[str, str]]:
    found = check_onnx(folder, QuantizedStore(folder.with_name("store")))
    return {(check.name, check.tensor) for check in found if not check.ok}


def test_parts_are_added_as_they_are_stored(columns):
    assert not misses_of(columns)
    found = {check.name for check in check_onnx(columns, QuantizedStore(columns.with_name("store")))}
    assert {"onnxruntime = reference, all parts", "input channels = store's"} <= found


def test_a_part_that_reads_other_channels_is_seen(columns):
    """As the reference reads them from the same place as onnxruntime, only the store can tell."""

    def change(graph: onnx.GraphProto) -> None:
        gathers = [node for node in graph.node if node.name.endswith("q_proj.part1/Gather")]
        (other,) = [node for node in graph.node if node.name.endswith("o_proj.part1/Gather")]
        gathers[0].input[1] = other.input[1]

    edit(columns, change)
    assert ("input channels = store's", f"{Q}.part1.weight") in misses_of(columns)


def test_a_part_that_is_not_added_is_seen(columns):
    def change(graph: onnx.GraphProto) -> None:
        (total,) = [node for node in graph.node if node.name == f"{Q}.sum/Sum"]
        total.input[1] = total.input[0]

    edit(columns, change)
    assert ("onnxruntime = reference, all parts", f"{Q}.weight") in misses_of(columns)


def test_parts_that_change_places_are_seen(columns):
    """The floats of v are added to k, and the other way round; both are as large, and named as they should be."""

    def change(graph: onnx.GraphProto) -> None:
        casts = {node.name: node for node in graph.node}
        k, v = (casts[f"model.layers.0.self_attn.{name}_proj.part1/Cast"] for name in "kv")
        k.input[0], v.input[0] = v.input[0], k.input[0]

    edit(columns, change)
    wrong = {("onnxruntime = reference, all parts", f"model.layers.0.self_attn.{name}_proj.weight") for name in "kv"}
    assert misses_of(columns) == wrong


def test_a_sum_of_something_else_is_seen(columns):
    def change(graph: onnx.GraphProto) -> None:
        (total,) = [node for node in graph.node if node.name == f"{Q}.sum/Sum"]
        total.op_type = "Max"

    edit(columns, change)
    assert ("onnxruntime = reference, all parts", f"{Q}.weight") in misses_of(columns)


def test_a_part_without_channels_is_damaged(columns):
    def change(graph: onnx.GraphProto) -> None:
        (gather,) = [node for node in graph.node if node.name == f"{Q}.part1/Gather"]
        gather.name = f"{Q}.part1/Other"

    edit(columns, change)
    with pytest.raises(FileFormatError, match="is a part, and no node takes the input channels"):
        list(open_exported(columns).weights(QuantizedStore(columns.with_name("store")).config).part(f"{Q}.weight").values)


def initializer(graph: onnx.GraphProto, name: str, value: np.ndarray) -> None:
    """In place of the one of that name, in the graph itself."""
    (tensor,) = [tensor for tensor in graph.initializer if tensor.name == name]
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))


def renamed(graph: onnx.GraphProto, old: str, new: str) -> None:
    for named in (*graph.initializer, *graph.node):
        named.name = named.name.replace(old, new)
    for node in graph.node:
        node.input[:] = [name.replace(old, new) for name in node.input]
        node.output[:] = [name.replace(old, new) for name in node.output]


PART, READS = f"{Q}.part1.weight", f"{Q}.part1.weight.reads"
HOSTILE = {
    "rows that are fewer": (lambda graph: initializer(graph, PART, np.ones((5, 3), np.float16)), "is no part of a weight"),
    "one row": (lambda graph: initializer(graph, PART, np.ones((1, 3), np.float16)), "is no part of a weight"),
    "no matrix": (lambda graph: initializer(graph, PART, np.ones(96, np.float16)), "is no part of a weight"),
    "no columns": (lambda graph: initializer(graph, PART, np.ones((96, 0), np.float16)), "is no part of a weight"),
    "more than there are": (lambda graph: initializer(graph, PART, np.ones((96, 97), np.float16)), "is no part of a weight"),
    "of a norm": (lambda graph: renamed(graph, f"{Q}.part1", "model.norm.part1"), "is no part of a weight"),
    "of the embedding": (lambda graph: renamed(graph, f"{Q}.part1", "model.embed_tokens.part1"), "is no part of a weight"),
    "of a part": (lambda graph: renamed(graph, f"{Q}.part1", f"{Q}.part1.part1"), "is no part of a weight"),
    "of nothing": (lambda graph: renamed(graph, f"{Q}.part1", "model.other.part1"), "is no part of a weight of shape None"),
    "a scalar": (lambda graph: initializer(graph, READS, np.array(1, np.int32)), "reads no 3 of 96 input channels"),
    "channels in floats": (lambda graph: initializer(graph, READS, np.ones(3, np.float32)), "that are no whole numbers"),
    "a channel that is none": (lambda graph: initializer(graph, READS, np.array([1, 2, 96], np.int32)), "reads no 3 of 96"),
    "a channel below": (lambda graph: initializer(graph, READS, np.array([-1, 2, 6], np.int32)), "reads no 3 of 96"),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_parts_that_are_none_are_one_line(columns, hostile):
    change, words = HOSTILE[hostile]
    edit(columns, change)
    config = QuantizedStore(columns.with_name("store")).config
    with pytest.raises((FileFormatError, DamagedFileError), match=words):
        check_onnx(columns)
    with pytest.raises(FileFormatError, match=words):
        weights = open_exported(columns).weights(config)
        [weights.part(name) for name in weights.shapes]


def test_a_sum_of_another_shape_is_a_miss(columns):
    def change(graph: onnx.GraphProto) -> None:
        (total,) = [node for node in graph.node if node.name == f"{Q}.sum/Sum"]
        total.op_type = "Concat"
        total.attribute.append(onnx.helper.make_attribute("axis", -1))

    edit(columns, change)
    assert ("onnxruntime = reference, all parts", f"{Q}.weight") in misses_of(columns)

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter import onnx_cost
from exporter.onnx.file import write_onnx
from quantize.types import Axis, QuantizedTensor
from runtime_checks.reference.decode import DamagedFileError, unpack
from runtime_checks.reference.onnx import read_onnx
from tests.stores import rtn_store
from tests.tiny import make_tiny_model


def save(folder: Path, nodes, initializers) -> Path:
    folder.mkdir(exist_ok=True)
    graph = helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(value, name) for name, value in initializers.items()])
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    return folder


def edit(folder: Path, change) -> None:
    """Rewrite model.onnx after ``change(graph)``."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model.graph)
    onnx.save(model, folder / "model.onnx")


@pytest.mark.parametrize(
    ("bits", "packed", "values"),
    [
        (2, [0b11100100, 0b00000001], [0, 1, 2, 3, 1]),
        (3, [0xD1, 0x58, 0x1F], [1, 2, 3, 4, 5, 6, 7, 0]),  # the example of docs/reference/matmul-adadim.md
        (4, [0x21, 0x03], [1, 2, 3]),
        (8, [7, 255], [7, 255]),
    ],
)
def test_unpack(bits, packed, values):
    assert unpack(np.array(packed, np.uint8), bits, len(values)).tolist() == values


def test_a_matmul_nbits_by_hand(tmp_path):
    """N=2, K=20 in blocks of 16, so the last one is ragged; zero points of a row share a byte."""
    codes = np.arange(2 * 32, dtype=np.uint8).reshape(2, 2, 16) % 16
    packed = codes[..., ::2] | codes[..., 1::2] << 4
    scale = np.array([[1, 2], [0.5, 4]], np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s", "z"], ["y"], name="model.a/MatMulNBits", K=20, N=2, bits=4, block_size=16
    )
    folder = save(tmp_path, [node], {"b": packed, "s": scale, "z": np.array([[0x31], [0x04]], np.uint8)})
    tensor = read_onnx(folder)["model.a.weight"]
    stored = tensor.codes()
    assert (tensor.form, stored.group_size, stored.per_oc) == ("matmulnbits", 16, True)
    assert stored.zero_point.tolist() == [[1, 3], [4, 0]]
    q = codes.reshape(2, 32)[:, :20].astype(np.float32)
    z = np.array([[1.0] * 16 + [3.0] * 4, [4.0] * 16 + [0.0] * 4])
    s = np.array([[1.0] * 16 + [2.0] * 4, [0.5] * 16 + [4.0] * 4])
    np.testing.assert_array_equal(tensor.decode(), (q - z) * s)


def test_absent_zero_points_are_the_middle(tmp_path):
    node = helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], name="a/MatMulNBits", K=16, N=1, bits=2, block_size=16)
    folder = save(tmp_path, [node], {"b": np.full((1, 1, 4), 0b11100100, np.uint8), "s": np.ones((1, 1), np.float32)})
    assert read_onnx(folder)["a.weight"].decode().tolist() == [[-2, -1, 0, 1] * 4]


def cast_scales(to: int, tmp_path: Path) -> Path:
    """One MatMulNBits whose scale 1/3 reaches it through a Cast."""
    cast = helper.make_node("Cast", ["s"], ["t"], to=to)
    node = helper.make_node("MatMulNBits", ["x", "b", "t"], ["y"], name="a/MatMulNBits", K=16, N=1, bits=2, block_size=16)
    scale = np.full((1, 1), 1 / 3, np.float16)
    return save(tmp_path, [cast, node], {"b": np.full((1, 1, 4), 0b11100100, np.uint8), "s": scale})


def test_a_cast_that_widens_keeps_the_scales(tmp_path):
    stored = read_onnx(cast_scales(TensorProto.FLOAT, tmp_path))["a.weight"].codes()
    assert stored.scale.dtype == np.float32 and stored.scale.item() == np.float16(1 / 3)


def test_a_cast_that_narrows_is_not_looked_through(tmp_path):
    tensor = read_onnx(cast_scales(TensorProto.BFLOAT16, tmp_path))["a.weight"]
    with pytest.raises(DamagedFileError, match="t should be an initializer"):
        tensor.codes()


MODELS = {
    "tied": {"model_type": "llama", "tied": True, "hidden": 64, "ffn": 96},
    "untied, odd": {"model_type": "qwen2", "tied": False, "hidden": 48, "ffn": 80, "heads": 3, "kv_heads": 1},
}
CASES = {
    "4 bits": ("onnxruntime", {"method": "rtn-oc"}),
    "3 bits ride in 4": ("onnxruntime", {"method": "rtn-oc", "bits": 3, "group_size": 32}),
    "whole channels": ("onnxruntime", {"method": "rtn-oc", "bits": 2, "group_size": 128}),
    "symmetric": ("onnxruntime", {"method": "rtn-oc", "bits": 8, "symmetric": True}),
    "split": ("onnxruntime", {"method": "rtn-ic", "group_size": 32}),
    "split, symmetric": ("onnxruntime", {"method": "rtn-ic", "group_size": 16, "symmetric": True}),
    "split, 3 bits": ("onnxruntime", {"method": "rtn-ic", "bits": 3, "group_size": 64}),
    "split, 8 bits": ("onnxruntime", {"method": "rtn-ic", "bits": 8, "group_size": 16}),
    "operator, 3 bits": ("onnxruntime+adadim", {"method": "rtn-ic", "bits": 3}),
    "operator, 2 bits": ("onnxruntime+adadim", {"method": "rtn-oc", "bits": 2, "symmetric": True}),
    "operator, 8 bits": ("onnxruntime+adadim", {"method": "rtn-ic", "bits": 8, "group_size": 16}),
    "float32 scales": ("onnxruntime", {"method": "rtn-oc", "scale_dtype": "float32"}),
    "split, float32 scales": ("onnxruntime", {"method": "rtn-ic", "group_size": 16, "scale_dtype": "float32"}),
    "operator, float32 scales": ("onnxruntime+adadim", {"method": "rtn-ic", "scale_dtype": "float32"}),
    "embedding of 4 bits": ("onnxruntime", {"method": "rtn-oc", "embedding": "int4"}),
    "embedding as it was": ("onnxruntime", {"method": "rtn-oc", "embedding": "source"}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"), dtype="BF16", **MODELS[request.param])


def by_hand(tensor: QuantizedTensor) -> np.ndarray:
    """(q - z) * s, written out from the store's own numbers."""
    size, cols = tensor.grid.group_size, tensor.codes.shape[1]
    zero = tensor.params.get("zero_point", np.float32(2 ** (tensor.grid.bits - 1)))
    zero = np.broadcast_to(zero, next(iter(tensor.params.values())).shape).astype(np.float32)
    scale = tensor.params["scale" if "scale" in tensor.params else "d"].astype(np.float32)
    rows = (tensor.codes - zero.repeat(size, 1)[:, :cols]) * scale.repeat(size, 1)[:, :cols]
    return rows if tensor.axis is Axis.PER_OC else rows.T


@pytest.mark.parametrize("case", CASES)
def test_what_the_writer_writes(model, tmp_path, case):
    target, options = CASES[case]
    store = rtn_store(model, tmp_path / "store", target=target, **options)
    tensors = read_onnx(write_onnx(store, tmp_path / "onnx"))
    assert tensors.keys() == store.records.keys()
    for name, tensor in tensors.items():
        stored = store.read(name)
        if not isinstance(stored, QuantizedTensor):
            np.testing.assert_array_equal(tensor.values(), stored.values)
            continue
        np.testing.assert_array_equal(tensor.codes().codes, stored.codes)
        np.testing.assert_array_equal(tensor.decode(), by_hand(stored))


@pytest.fixture
def split(tmp_path):
    store = rtn_store(make_tiny_model(tmp_path / "m"), tmp_path / "s", target="onnxruntime", method="rtn-ic", group_size=16)
    return write_onnx(store, tmp_path / "onnx")


NAME = "model.layers.0.mlp.up_proj"


def test_the_split_form_is_read_in_the_order_of_the_graph(split):
    """Names say one order; what counts is what Split, the nodes and Concat are wired to."""
    before = read_onnx(split)[f"{NAME}.weight"].decode()

    def swap(graph):
        (concat,) = [node for node in graph.node if node.name == f"{NAME}/Concat"]
        concat.input[0], concat.input[1] = concat.input[1], concat.input[0]

    edit(split, swap)
    after = read_onnx(split)[f"{NAME}.weight"].decode()
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(after, np.concatenate([before[16:32], before[:16], before[32:]]))


def test_swapped_inputs_of_the_split_form_change_the_scales(split):
    before = read_onnx(split)[f"{NAME}.weight"].codes()

    def swap(graph):
        nodes = {node.name: node for node in graph.node}
        first, second = nodes[f"{NAME}/MatMulNBits_00000"], nodes[f"{NAME}/MatMulNBits_00001"]
        first.input[0], second.input[0] = second.input[0], first.input[0]

    edit(split, swap)
    after = read_onnx(split)[f"{NAME}.weight"].codes()
    np.testing.assert_array_equal(after.codes, before.codes)
    np.testing.assert_array_equal(after.scale[:, [1, 0]], before.scale[:, :2])


def test_unit_scales_have_to_be_one(split):
    def stretch(graph):
        for tensor in graph.initializer:
            if tensor.name.startswith("adadim.unit_scale"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))

    edit(split, stretch)
    with pytest.raises(DamagedFileError, match="scales are not 1"):
        read_onnx(split)[f"{NAME}.weight"].decode()


def external(folder: Path, key: str, value: str) -> None:
    def change(graph):
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value

    edit(folder, change)


LIES = {
    "outside": (lambda folder: external(folder, "location", "../data"), "points outside of the folder"),
    "absolute": (lambda folder: external(folder, "location", "/etc/passwd"), "points outside of the folder"),
    "missing": (lambda folder: (folder / "model.onnx.data").unlink(), "missing"),
    "truncated": (lambda folder: (folder / "model.onnx.data").write_bytes(bytes(64)), "the file is truncated"),
    "negative": (lambda folder: external(folder, "offset", "-4096"), "offset or a length that is no number"),
    "short": (lambda folder: external(folder, "length", "4"), "has 4 bytes for"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_data_is_found(split, lie):
    change, message = LIES[lie]
    change(split)
    with pytest.raises(DamagedFileError, match=message):
        for tensor in read_onnx(split).values():
            tensor.decode()


def test_no_protobuf(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(DamagedFileError, match="no ONNX model"):
        read_onnx(tmp_path)


def test_two_initializers_of_one_name(tmp_path):
    save(tmp_path, [], {"a.weight": np.ones(2, np.float32)})
    edit(tmp_path, lambda graph: graph.initializer.append(graph.initializer[0]))
    with pytest.raises(DamagedFileError, match="two initializers have one name"):
        read_onnx(tmp_path)


def test_an_unspecified_layout_is_refused(tmp_path):
    store = rtn_store(make_tiny_model(tmp_path / "m"), tmp_path / "s", target="onnxruntime+adadim")
    folder = write_onnx(store, tmp_path / "onnx")

    def relayout(graph):
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "layout":
                    attribute.i = 2

    edit(folder, relayout)
    with pytest.raises(DamagedFileError, match="layout 2"):
        read_onnx(folder)[f"{NAME}.weight"].decode()


def test_bfloat16_values(tmp_path):
    save(tmp_path, [], {})
    raw = np.array([0x3F80, 0xC000], np.uint16).tobytes()
    edit(
        tmp_path, lambda graph: graph.initializer.append(helper.make_tensor("a.weight", TensorProto.BFLOAT16, [2], raw, raw=True))
    )
    tensor = read_onnx(tmp_path)["a.weight"]
    assert (tensor.form, tensor.dtype, tensor.decode().tolist()) == ("float", "BF16", [1.0, -2.0])


def test_a_split_form_in_several_pieces(tmp_path, monkeypatch):
    """Many groups are scaled by several Muls, each over a slice of the scales."""
    monkeypatch.setattr(onnx_cost, "SCALED_VALUES", 192)
    store = rtn_store(make_tiny_model(tmp_path / "m"), tmp_path / "s", target="onnxruntime", method="rtn-ic", group_size=16)
    folder = write_onnx(store, tmp_path / "onnx")
    assert any(
        node.name == f"{NAME}/Split scales" for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node
    )
    tensor = store.read(f"{NAME}.weight")
    assert isinstance(tensor, QuantizedTensor)
    np.testing.assert_array_equal(read_onnx(folder)[f"{NAME}.weight"].decode(), by_hand(tensor))

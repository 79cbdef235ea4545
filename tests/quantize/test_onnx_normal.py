"""A graph of any tool, spelled as a template's: small ones by hand, and what onnxruntime makes of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize.model_config import EMBEDDING, HEAD
from quantize.onnx.reader import read_graph
from quantize.onnx.session import Decoder, open_session
from quantize.onnx.template import is_weight, skeleton_of, write_template
from quantize.template.onnx_normal import Normal, normal

RNG = np.random.default_rng(0)
ROWS, HIDDEN = 24, 8
TOKENS = np.array([3, 7, 1], np.int64)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def written(folder: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray]) -> Path:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes, "any", [ids], [logits], [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return folder


def node(kind: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"any/{output}", **attributes)


def spelled(model: onnx.ModelProto) -> list[bytes]:
    return [each.SerializeToString() for each in model.graph.node]


def block(given: str, made: str, up: str) -> list[onnx.NodeProto]:
    return [node("MatMul", [given, up], "wide"), node("Relu", ["wide"], "bent"), node("MatMul", ["bent", "h.0.down"], made)]


TABLE, UP, DOWN, OWN = f32(ROWS, HIDDEN), f32(HIDDEN, 16), f32(16, HIDDEN), f32(HIDDEN, ROWS)
WHOLE = [  # a decoder of one block
    node("Gather", ["wte", "input_ids"], "x"),
    *block("x", "y", "transformer.h.0.up.weight_t"),
    node("MatMul", ["y", "out"], "logits"),
]
INNER = {"transformer.h.0.up.weight_t": UP, "h.0.down": DOWN, "h.0.norm.weight": f32(HIDDEN)}
GRAPHS = {
    "own head": (WHOLE, {"wte": TABLE, "out": OWN, **INNER}),
    "tied, and twice there": (WHOLE, {"wte": TABLE, "out": np.ascontiguousarray(TABLE.T), **INNER}),
    "tied by a Transpose": (
        [
            node("Transpose", ["out"], "turned", perm=[1, 0]),
            node("Gather", ["turned", "input_ids"], "x"),
            *block("x", "y", "transformer.h.0.up.weight_t"),
            node("MatMul", ["y", "out"], "logits"),
        ],
        {"out": np.ascontiguousarray(TABLE.T), **INNER},
    ),
    "rows first": (
        [
            node("Gather", ["wte", "input_ids"], "x"),
            node("Mul", ["x", "h.0.norm.weight"], "scaled"),
            node("Transpose", ["layers.0.up"], "turned", perm=[1, 0]),
            *block("scaled", "y", "turned"),
            node("MatMul", ["y", "out"], "logits"),
        ],
        {"wte": TABLE, "out": OWN, "layers.0.up": np.ascontiguousarray(UP.T), "h.0.down": DOWN, "h.0.norm.weight": f32(HIDDEN)},
    ),
}  # fmt: skip


def respelled(folder: Path, key: str) -> tuple[Path, Path, Normal]:
    nodes, weights = GRAPHS[key]
    theirs, ours = written(folder / "theirs", nodes, weights), folder / "ours"
    found = normal(read_graph(theirs), {}, 1)
    ours.mkdir()
    write_template(ours, found.skeleton, found.weights)
    return theirs, ours, found


@pytest.mark.parametrize("key", GRAPHS)
def test_the_same_numbers_come_out(tmp_path, key):
    theirs, ours, found = respelled(tmp_path, key)
    one, two = (
        Decoder(open_session(read_graph(folder).model, folder), folder).step(TOKENS, 3, {})[0] for folder in (theirs, ours)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    names = list(found.weights)
    assert names[:3] == [EMBEDDING, "model.layers.0.up.weight", "model.layers.0.down.weight"]
    assert (names[-1] == HEAD) == ("tied" not in key)
    np.testing.assert_array_equal(found.weights["model.layers.0.up.weight"].read(), UP.T)
    np.testing.assert_array_equal(found.weights[EMBEDDING].read(), TABLE)
    assert ("model.layers.0.norm.weight" in names) == (key == "rows first")  # what nothing reads is left out


@pytest.mark.parametrize("key", GRAPHS)
def test_a_skeleton_is_got_back(tmp_path, key):
    _, ours, found = respelled(tmp_path, key)
    back = skeleton_of(read_graph(ours).model)
    assert [each.SerializeToString() for each in back.graph.node] == [
        each.SerializeToString() for each in found.skeleton.graph.node
    ]
    assert not [tensor.name for tensor in back.graph.initializer if is_weight(tensor)]


@pytest.mark.parametrize(("dtype", "narrow"), [("F16", np.float16), ("BF16", None)])
def test_weights_that_16_bits_hold_take_16(tmp_path, dtype, narrow):
    def cut(values: np.ndarray) -> np.ndarray:
        bits = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return bits if narrow is None else values.astype(narrow).astype(np.float32)

    nodes, weights = GRAPHS["tied by a Transpose"]
    theirs = written(
        tmp_path / "theirs", nodes, {name: cut(value) if value.ndim > 1 else value for name, value in weights.items()}
    )
    found = normal(read_graph(theirs), {}, 1)
    assert {weight.dtype for name, weight in found.weights.items()} == {dtype}
    (tmp_path / "ours").mkdir()
    write_template(tmp_path / "ours", found.skeleton, found.weights)
    one, two = (
        Decoder(open_session(read_graph(folder).model, folder), folder).step(TOKENS, 3, {})[0]
        for folder in (theirs, tmp_path / "ours")
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    back = skeleton_of(read_graph(tmp_path / "ours").model)
    assert [each.SerializeToString() for each in back.graph.node] == [
        each.SerializeToString() for each in found.skeleton.graph.node
    ]


@pytest.mark.parametrize(
    ("nodes", "weights", "told"),
    [
        ([node("MatMul", ["x", "w"], "logits"), ], {"w": OWN}, "0 of its weights are looked up"),
        ([node("Gather", ["wte", "input_ids"], "logits")], {"wte": TABLE}, "none of its weights gives a number for each of 24"),
        (
            [
                node("Gather", ["wte", "input_ids"], "x"),
                *block("x", "y", "h.0.up"),
                *[node("MatMul", ["y", "model.h.0.up.weight"], "z"), node("MatMul", ["z", "h.0.down.weight_t"], "v")],
                node("MatMul", ["v", "out"], "logits"),
            ],
            {"wte": TABLE, "out": OWN, "h.0.up": UP, "h.0.down": DOWN, "model.h.0.up.weight": UP, "h.0.down.weight_t": DOWN},
            "two of its weights would be called model.layers.0.",
        ),
    ],
)  # fmt: skip
def test_what_is_no_decoder_is_refused(tmp_path, nodes, weights, told):
    if told.startswith("0"):
        nodes = [node("Cast", ["input_ids"], "ids", to=TensorProto.FLOAT), node("Unsqueeze", ["ids", "axis"], "x"), *nodes]
        weights = {**weights, "axis": np.array([2])}
    theirs = written(tmp_path / "theirs", nodes, weights)
    with pytest.raises(ValueError, match=told):
        normal(read_graph(theirs), {}, 1)

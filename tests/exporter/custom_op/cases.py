"""Nodes on random numbers, as a model that takes everything as inputs, and what they should give; here MatMulAdaDim's."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporter.onnx.adadim_op import DOMAIN, OP_TYPE, VERSION, adadim_function
from exporter.onnx.tensors import pack_bits
from exporter.onnx.tiles import pack_codes, pack_scales, pack_shared_zero_points, pack_zero_points
from quantize import Axis

NODE = "layer/node"


@dataclass(frozen=True)
class Spec:
    """One node. ``rows``: the leading dimensions of A."""

    K: int
    N: int
    bits: int
    group_size: int
    axis: Axis
    accuracy_level: int = 0
    layout: int = 1
    rows: tuple[int, ...] = (1,)
    dtype: str = "float32"
    scales: str = "float16"
    symmetric: bool = False
    bias: bool = False


@dataclass
class Case:
    """What the node is given; ``expected``: F64[..., N], nothing rounded but what the inputs are."""

    attributes: dict[str, int]
    inputs: dict[str, np.ndarray]
    expected: np.ndarray = field(default_factory=lambda: np.zeros(0))
    op: str = OP_TYPE
    constants: tuple[str, ...] = ()  # inputs that are initializers

    @property
    def fed(self) -> dict[str, np.ndarray]:
        """What a caller gives."""
        return {name: value for name, value in self.inputs.items() if name not in self.constants}

    def model(self, function: bool = False) -> bytes:
        """A model of this node alone, whose inputs may have any shape; ``function``: with MatMulAdaDim's portable body."""
        node = helper.make_node(self.op, list(self.inputs), ["Y"], name=NODE, domain=DOMAIN, **self.attributes)
        kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in self.inputs.items()}
        given = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items() if name in self.fed]
        held = [numpy_helper.from_array(self.inputs[name], name) for name in self.constants]
        made = [helper.make_tensor_value_info("Y", kinds[next(iter(kinds))], None)]
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
        functions = [adadim_function()] if function else []
        graph = helper.make_graph([node], "one", given, made, held)
        model: onnx.ModelProto = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=11)
        return model.SerializeToString()


def make_case(spec: Spec, rng: np.random.Generator) -> Case:
    """Random codes, scales, zero points and activations, the last of them with one loud channel."""
    per_oc = spec.axis is Axis.PER_OC
    rows, columns = (spec.N, spec.K) if per_oc else (spec.K, spec.N)
    groups = -(-columns // spec.group_size)
    codes = rng.integers(0, 1 << spec.bits, (rows, columns), np.uint8)
    zeros = rng.integers(0, 1 << spec.bits, (1 if spec.symmetric else rows, groups), np.uint8)
    scales = rng.uniform(0.001, 0.02, (rows, groups)).astype(spec.scales)
    a = rng.normal(size=(*spec.rows, spec.K)).astype(spec.dtype)
    a[..., rng.integers(spec.K)] *= 8
    spread = (value.astype(np.float64).repeat(spec.group_size, axis=1)[:, :columns] for value in (zeros, scales))
    zero, scale = spread
    weight = (codes - zero) * scale
    bias = rng.normal(size=spec.N).astype(np.float32)
    expected = a.astype(np.float64) @ (weight.T if per_oc else weight)
    names = ("K", "N", "bits", "group_size", "accuracy_level", "layout")
    attributes = {name: getattr(spec, name) for name in names} | {"per_oc": int(per_oc)}
    inputs = {"A": a, **packed(spec, codes, scales, zeros)}
    if spec.bias:
        return Case(attributes, inputs | {"bias": bias}, expected + bias)
    return Case(attributes, inputs, expected)


def packed(spec: Spec, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> dict[str, np.ndarray]:
    if spec.layout == 0:
        return {"codes": pack_bits(codes, spec.bits), "scales": scales, "zero_points": pack_bits(zeros, spec.bits)}
    pack_zeros = pack_shared_zero_points if spec.symmetric else pack_zero_points
    return {
        "codes": pack_codes(codes, spec.bits, spec.axis),
        "scales": pack_scales(scales, spec.axis),
        "zero_points": pack_zeros(zeros, spec.bits, spec.axis),
    }


SHAPES = [(70, 50, 16), (64, 96, 32), (1, 1, 16), (100, 44, 112), (45, 130, 48), (256, 16, 128), (33, 7, 4096)]
ROWS = [(1,), (3,), (2, 9), (17,), (1, 1, 4), ()]


def grid(layout: int = 1) -> list[Spec]:
    """Every width and axis in every shape at both precisions; the rest takes turns."""
    rng = np.random.default_rng(layout)
    return [
        Spec(
            k,
            n,
            bits,
            group_size,
            axis,
            accuracy_level=level,
            layout=layout,
            rows=ROWS[rng.integers(len(ROWS))],
            dtype=("float32", "float32", "float16")[rng.integers(3)],
            scales=("float16", "float32")[rng.integers(2)],
            symmetric=bool(rng.integers(2)),
            bias=bool(rng.integers(2)),
        )
        for bits in (2, 3, 4, 8)
        for axis in Axis
        for k, n, group_size in SHAPES
        for level in (0, 4)
    ]


# Of the largest output. Float sums in another order; float16 outputs are rounded to 11 bits; activations in 8 bits.
FLOAT, HALF, ROUNDED = 1e-5, 2e-3, 5e-2


def tolerance(spec: Spec) -> float:
    if spec.accuracy_level == 4 and spec.layout == 1:
        return ROUNDED
    return HALF if spec.dtype == "float16" else FLOAT


def assert_close(actual: np.ndarray | str, expected: np.ndarray, relative: float, what: object) -> None:
    """Within ``relative`` of the largest value, and of the same shape."""
    assert isinstance(actual, np.ndarray), f"{what}: {actual}"
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    error, largest = np.abs(actual.astype(np.float64) - expected).max(), np.abs(expected).max()
    assert error <= relative * largest, (what, error, largest)

"""Times of the kernels of MatMulAdaDim and MatMulLevels, of onnxruntime's 8-bit MatMulNBits and of its products of integers, on
random weights, beside those of its 4-bit MatMulNBits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from exporter.onnx.adadim_op import DOMAIN, VERSION, matmul_adadim
from exporter.onnx.levels_op import matmul_levels
from exporter.onnx.library import custom_op_path
from exporter.onnx.matmul_nbits import CONTRIB, matmul_nbits
from exporter.onnx.qdq import Inputs, static_linear
from exporter.onnx.sums import Summand
from exporter.onnx.tensors import Form, Planned, Wire
from quantize.activations import STATIC as STATIC_INPUT
from quantize.activations import Activation
from quantize.blocks import one_group
from quantize.grids import make_grid
from quantize.grids.levels import Levels
from quantize.progress import track
from quantize.store.record import TensorRecord
from quantize.types import F32, FINE_BITS, Axis

SHAPES = ((576, 1536), (2048, 2048), (2048, 5632), (4096, 11008))  # K, N
LEVELS = {"lm": ((2, 3, 4), tuple(Axis)), "hg": ((2, 3), (Axis.PER_OC,))}  # bits of a weight, and where groups run
NBITS, STATIC = "nbits", "qdq"  # onnxruntime's own, of 8 bits too, and integers by integers
ROWS, BITS, GROUP_SIZE, ACCURACY_LEVEL = (1, 16, 128), (2, 3, 4, 8), 32, 4
LEAST_ROUNDS = 5
WIRE = Wire("x", "y")


@dataclass(frozen=True)
class BenchOptions:
    """``seconds``: for each form, shape and number of rows."""

    shapes: Sequence[tuple[int, int]] = SHAPES
    threads: Sequence[int] = (1, 2)
    seconds: float = 0.2


def bench_kernel(options: BenchOptions) -> list[dict[str, Any]]:
    """A row for each shape, number of threads, number of rows, grid, width and axis. Raises ExportError without the library."""
    cells = [(shape, threads) for shape in options.shapes for threads in options.threads]
    return [row for cell in track(cells, "timing", len(cells)) for row in _bench_shape(*cell, options.seconds)]


def _bench_shape(shape: tuple[int, int], threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    K, N = shape
    variants = [("int", bits, axis) for bits in BITS for axis in Axis]
    variants += [(kind, bits, axis) for kind, (widths, axes) in LEVELS.items() for bits in widths for axis in axes]
    variants += [(kind, FINE_BITS, Axis.PER_OC) for kind in (NBITS, STATIC)]
    forms = [matmul_nbits(record_of(shape, 4, Axis.PER_OC), WIRE, ACCURACY_LEVEL)]
    forms += [_form(shape, *variant) for variant in variants]
    sessions = [form_session(form, K, threads) for form in forms]
    for rows in ROWS:
        x = np.random.default_rng(rows).normal(size=(rows, K)).astype(np.float32)
        first, *rest = interleaved(sessions, {WIRE.x: x}, seconds)
        for (kind, bits, axis), form, own in zip(variants, forms[1:], rest, strict=True):
            stored = sum(planned.nbytes for planned in form.planned)
            yield {
                "K": K,
                "N": N,
                "rows": rows,
                "grid": kind,
                "bits": bits,
                "axis": str(axis),
                "threads": threads,
                "accuracy_level": ACCURACY_LEVEL,
                "seconds": own,
                "matmulnbits_seconds": first,
                "ratio": first / own,
                "gb_per_s": stored / own / 1e9,
            }


def _form(shape: tuple[int, int], kind: str, bits: int, axis: Axis) -> Form:
    if kind == STATIC:
        return _static_form(shape)
    record = record_of(shape, bits, axis, "int" if kind == NBITS else kind)
    op = matmul_nbits if kind == NBITS else matmul_levels if isinstance(record.grid, Levels) else matmul_adadim
    return op(record, WIRE, ACCURACY_LEVEL)


def _static_form(shape: tuple[int, int]) -> Form:
    """A linear of K x N with what rounds its input."""
    grid = make_grid("int", FINE_BITS, one_group(shape[0], GROUP_SIZE), symmetric=True)
    record = TensorRecord("linear.weight", shape[::-1], grid, activation=Activation(STATIC_INPUT, scale=0.02, zero_point=128))
    inputs = Inputs()
    part, rounding = inputs.before(Summand(record, WIRE, WIRE.x))
    form = static_linear(record, part.wire)
    return replace(form, nodes=[*rounding, *form.nodes], constants={**form.constants, **inputs.constants})


def record_of(shape: tuple[int, int], bits: int, axis: Axis, kind: str = "int") -> TensorRecord:
    """A linear of K x N; of levels ``kind`` is the name of their grid less its bits."""
    name = kind if kind == "int" else f"{kind}{bits}"
    return TensorRecord("linear.weight", shape[::-1], make_grid(name, bits, GROUP_SIZE), axis=axis)


def form_session(form: Form, k: int, threads: int, data: Mapping[str, bytes] | None = None) -> ort.InferenceSession:
    """``form_model`` in onnxruntime."""
    return model_session(form_model(form, k, data), threads)


def model_session(model: ModelProto, threads: int) -> ort.InferenceSession:
    """With our kernels."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Sessions take turns: the threads of one that is done must not spin beside the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.register_custom_ops_library(str(custom_op_path()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def form_model(form: Form, k: int, data: Mapping[str, bytes] | None = None) -> ModelProto:
    """A form's nodes on F32[rows, k], its initializers' bytes from ``data``, or random."""
    data = data or random_bytes(form)
    initializers = [
        helper.make_tensor(planned.name, planned.data_type, planned.shape, data[planned.name], raw=True)
        for planned in form.planned
    ]
    initializers += [numpy_helper.from_array(value, name) for name, value in form.constants.items()]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in ((WIRE.x, k), (WIRE.y, None))
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(CONTRIB, 1), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph(form.nodes, "linear", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def random_bytes(form: Form) -> dict[str, bytes]:
    """For each of a form's initializers."""
    return {planned.name: _random(planned) for planned in form.planned}


def _random(planned: Planned) -> bytes:
    """Scales of common sizes; of codes and zero points every byte is one."""
    rng = np.random.default_rng(planned.nbytes)
    if planned.data_type in (TensorProto.FLOAT16, TensorProto.FLOAT):
        return rng.uniform(0.001, 0.02, planned.shape).astype(helper.tensor_dtype_to_np_dtype(planned.data_type)).tobytes()
    return rng.bytes(planned.nbytes)


def interleaved(sessions: Sequence[ort.InferenceSession], feeds: Mapping[str, F32], seconds: float) -> list[float]:
    """Median seconds of each session: they take turns, so that whatever else the machine does hits all alike."""
    times: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        session.run(None, feeds)
    end = time.perf_counter() + seconds * len(sessions)
    while len(times[0]) < LEAST_ROUNDS or time.perf_counter() < end:
        for session, own in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, feeds)
            own.append(time.perf_counter() - start)
    return [float(np.median(own)) for own in times]

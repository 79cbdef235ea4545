#!/usr/bin/env python3
"""What docs/evidence/kernel.md says of MatMulAdaDim's kernel beyond `adadim bench kernel`.

usage: measure_kernel.py accuracy MODEL_DIR   # error of 8-bit activations on a model's own, beside MatMulNBits
       measure_kernel.py memory               # of a session on 8 large linears
       measure_kernel.py split                # time beside the split form's, and the memory's reading speed
       measure_kernel.py turns                # what the turns of a decoder layer take
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.onnx.adadim_op import DOMAIN, VERSION, matmul_adadim
from exporter.onnx.levels_op import matmul_levels
from exporter.onnx.library import custom_op_path
from exporter.onnx.matmul_nbits import matmul_nbits
from exporter.onnx.split import split_form
from exporter.onnx.sums import Summand
from exporter.onnx.tensors import Form, Wire
from exporter.onnx.turns import OP_TYPE as ROTATE
from exporter.onnx.turns import Turns
from quantize import Axis, QuantizedTensor, dequantize, make_grid, open_checkpoint
from quantize.blocks import one_group
from quantize.grids.levels import LEAST_GROUP
from quantize.methods import ROUNDERS
from quantize.model_config import is_linear
from quantize.source.whole import build_model, logits
from quantize.statistics.calibration import held_out_text, tokenize
from quantize.store.record import TensorRecord
from quantize.turn import Rotation
from quantize.types import F32, Array
from runtime_checks.measure.kernel_bench import ACCURACY_LEVEL, ROWS, WIRE, form_session, interleaved, model_session, random_bytes

GRID = make_grid("int", 4, 32)
TOKENS = 128
LARGE, COUNT = (4096, 11008), 8  # K, N of the linears of `memory`, and how many


def layer_inputs(folder: Path) -> Iterator[tuple[str, F32, F32]]:
    """Name, weight and input F32[TOKENS, IC] of each linear of a model that runs over a text."""
    source, seen = open_checkpoint(folder), dict[str, F32]()
    model = build_model(source.config, source.read, source.tied)
    for name, module in model.named_modules():
        spec = source.specs.get(f"{name}.weight")
        if spec is not None and is_linear(spec.name, spec.shape):
            module.register_forward_hook(lambda _module, args, _out, name=name: seen.update({name: args[0][0].numpy()}))
    logits(model, tokenize(held_out_text(), source)[None, :TOKENS])
    for name, x in seen.items():
        yield name, source.read(f"{name}.weight"), np.ascontiguousarray(x, np.float32)


def level_4_error(form: Form, q: QuantizedTensor, x: F32) -> float:
    """Of the output with rounded activations, by the output with exact ones: the root of the mean square."""
    data = {planned.name: bytearray(planned.nbytes) for planned in form.planned}
    for name, offset, piece in form.pour(0, q):
        data[name][offset : offset + len(piece)] = piece
    (y,) = form_session(form, x.shape[1], 1, {name: bytes(value) for name, value in data.items()}).run(None, {WIRE.x: x})
    exact = x @ dequantize(q).T
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


def accuracy(folder: str) -> None:
    """Errors by form and kind of linear."""
    makers: dict[str, tuple[Callable[..., Form], Axis]] = {
        "MatMulNBits": (matmul_nbits, Axis.PER_OC),
        "MatMulAdaDim, per-OC": (matmul_adadim, Axis.PER_OC),
        "MatMulAdaDim, per-IC": (matmul_adadim, Axis.PER_IC),
    }
    found: dict[str, dict[str, float]] = {label: {} for label in makers}
    for name, weight, x in layer_inputs(Path(folder)):
        for label, (make, axis) in makers.items():
            record = TensorRecord(f"{name}.weight", weight.shape, GRID, axis=axis)
            found[label][name] = level_4_error(make(record, WIRE, 4), ROUNDERS["rtn"](name, weight, GRID, axis, None), x)
    base = found["MatMulNBits"]
    for label, errors in found.items():
        kinds_of = dict.fromkeys(name.split(".", 3)[3] for name in errors)
        kinds = (f"{kind} {np.median([error for name, error in errors.items() if name.endswith(kind)]):.4f}" for kind in kinds_of)
        worse = sum(error > base[name] for name, error in errors.items())
        print(f"{label:>21}: {', '.join(kinds)}; most {max(errors.values()):.4f}; above MatMulNBits in {worse} of {len(errors)}")


def memory() -> None:
    """Megabytes of a process before and after it makes a session, and after a run."""
    k, n = LARGE
    for bits, axis in ((4, Axis.PER_OC), (3, Axis.PER_IC)):
        form = matmul_adadim(TensorRecord("linear.weight", (n, k), make_grid("int", bits, 32), axis=axis), WIRE, 4)
        with tempfile.TemporaryDirectory() as folder:
            packed = write_linears(form, Path(folder))
            print(f"{bits} bits {axis}: {packed / 1e6:.1f} MB packed;", end=" ", flush=True)
            subprocess.run([sys.executable, __file__, "load", folder], check=True)


def write_linears(form: Form, folder: Path) -> int:
    """COUNT copies of a form over external data; returns their bytes."""
    nodes, tensors, offset = [], [], 0
    with (folder / "data").open("wb") as file:
        for index in range(COUNT):
            node = onnx.NodeProto()
            node.CopyFrom(form.nodes[0])
            node.name, node.output[0] = f"{index}", f"y{index}"
            node.input[1:] = [f"{planned.name}.{index}" for planned in form.planned]
            nodes.append(node)
            for planned in form.planned:
                tensor = TensorProto(name=f"{planned.name}.{index}", data_type=planned.data_type, dims=planned.shape)
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", "data"), ("offset", offset), ("length", planned.nbytes)):
                    tensor.external_data.add(key=key, value=str(value))
                tensors.append(tensor)
                file.write(os.urandom(planned.nbytes) if planned.data_type == TensorProto.UINT8 else bytes(planned.nbytes))
                offset += -(-planned.nbytes // 4096) * 4096
                file.seek(offset)
        file.truncate(offset)
    x = helper.make_tensor_value_info(WIRE.x, TensorProto.FLOAT, ["rows", LARGE[0]])
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph(nodes, "linears", [x], outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), folder / "model.onnx")
    return COUNT * sum(planned.nbytes for planned in form.planned)


def load(folder: str) -> None:
    """The part of ``memory`` that is measured."""
    import onnxruntime as ort

    def resident() -> tuple[float, float]:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        anonymous, mapped = (int(re.findall(rf"{key}:\s+(\d+) kB", status)[0]) / 1000 for key in ("RssAnon", "RssFile"))
        return anonymous, mapped

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(custom_op_path()))
    start = resident()
    session = ort.InferenceSession(str(Path(folder) / "model.onnx"), options)
    loaded = resident()
    session.run(None, {WIRE.x: np.ones((1, LARGE[0]), np.float32)})
    used = resident()
    for label, state in (("after load", loaded), ("after a run", used)):
        print(f"{label} {state[0] - start[0]:.1f} MB more anonymous, {state[1] - start[1]:.1f} MB more mapped", end="; ")
    print()


def split() -> None:
    """Milliseconds of both forms of PER_IC linears, and GB/s of reading memory."""
    for k, n in ((2048, 2048), LARGE):
        for group in (32, 128):
            record = TensorRecord("linear.weight", (n, k), make_grid("int", 4, group), axis=Axis.PER_IC)
            forms = [make(record, WIRE, 4) for make in (split_form, matmul_adadim)]
            sessions = [form_session(form, k, 1) for form in forms]
            for rows in ROWS:
                theirs, ours = interleaved(sessions, {WIRE.x: np.ones((rows, k), np.float32)}, 1.0)
                times = f"split form {theirs * 1e3:.2f} ms, kernel {ours * 1e3:.2f} ms"
                print(f"{k} x {n}, group {group}, {rows} rows: {times}, {theirs / ours:.1f} times as fast", flush=True)
    for threads in (1, 2):
        print(f"reading memory, {threads} threads: {reading_speed(threads):.1f} GB/s")


def reading_speed(threads: int) -> float:
    """The best of some passes over 512 MiB for each thread, more than caches hold."""
    parts = [np.arange(1 << 26, dtype=np.int64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start))
    return best / 1e9


# K, N of a layer's linears, by the input that they share
LAYERS = {
    "SmolLM2-135M": {
        "qkv": [(576, 576), (576, 192), (576, 192)],
        "o": [(576, 576)],
        "mlp": [(576, 1536)] * 2,
        "down": [(1536, 576)],
    },
    "2048 and 5632": {
        "qkv": [(2048, 2048), (2048, 256), (2048, 256)],
        "o": [(2048, 2048)],
        "mlp": [(2048, 5632)] * 2,
        "down": [(5632, 2048)],
    },
}


def turns() -> None:
    """Microseconds of a layer's linears of 3-bit levels, one group a row, with a turn before each input and without."""
    for label, inputs in LAYERS.items():
        for rows in (1, 128):
            rng = np.random.default_rng(rows)
            x = {name: rng.normal(size=(rows, shapes[0][0])).astype(np.float32) for name, shapes in inputs.items()}
            sessions = [model_session(layer_model(inputs, turned), 1) for turned in (False, True)]
            plain, turned = interleaved(sessions, x, 3.0)
            share = f"{(turned - plain) / turned:.1%} is turns"
            print(f"{label}, {rows} rows: {plain * 1e6:.0f} us, turned {turned * 1e6:.0f} us: {share}", flush=True)


def layer_model(inputs: dict[str, list[tuple[int, int]]], turned: bool) -> onnx.ModelProto:
    """Linears of a layer whose inputs are those of the model."""
    nodes, tensors, constants, turns = [], list[TensorProto](), dict[str, Array](), Turns()
    for name, shapes in inputs.items():
        for index, (k, n) in enumerate(shapes):
            grid = make_grid("lm3", 3, one_group(k, LEAST_GROUP))
            turn = Rotation.of(k, 0) if turned else None
            record = TensorRecord(f"{name}.{index}.weight", (n, k), grid, axis=Axis.PER_OC, turn=turn)
            part, before = turns.before(Summand(record, Wire(name, f"{name}.{index}"), name))
            form = matmul_levels(record, part.wire, ACCURACY_LEVEL)
            nodes += [*before, *form.nodes]
            data = random_bytes(form)
            tensors += [helper.make_tensor(p.name, p.data_type, p.shape, data[p.name], raw=True) for p in form.planned]
            constants |= form.constants
    tensors += [numpy_helper.from_array(value, key) for key, value in (constants | turns.constants).items()]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", shapes[0][0]]) for name, shapes in inputs.items()]
    made = [helper.make_tensor_value_info(op.output[0], TensorProto.FLOAT, None) for op in nodes if op.op_type != ROTATE]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(helper.make_graph(nodes, "layer", given, made, tensors), opset_imports=opsets, ir_version=11)


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {
        "accuracy": accuracy,
        "memory": memory,
        "load": load,
        "split": split,
        "turns": turns,
    }
    commands[sys.argv[1]](*sys.argv[2:])

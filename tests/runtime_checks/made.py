"""Tiny exported files for the checks: a source, a store and the file, by target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import onnx

from exporter.targets import TARGETS
from exporter.writers import writer_of
from quantize import Checkpoint, GridSpec, QuantizeConfig, QuantizedStore, open_checkpoint, quantize_checkpoint
from runtime_checks.reference.decode import BLOCK_BYTES
from tests.tiny import make_tiny_model

FORMS = {  # what the files can hold, with the cheapest method that gives it
    "llama.cpp": ("llama.cpp", QuantizeConfig(method="rtn-oc")),
    "gguf-adadim": ("gguf-adadim", QuantizeConfig(method="rtn-ic")),
    "onnx-oc": ("onnxruntime", QuantizeConfig("rtn-oc", GridSpec(group_size=32))),
    "onnx-split": ("onnxruntime", QuantizeConfig("rtn-ic", GridSpec(group_size=32))),
    "onnx-adadim": ("onnxruntime+adadim", QuantizeConfig("rtn-ic", GridSpec(bits=3, group_size=32))),
}


# Where a block's float16 numbers are, if not only at 0.
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ2_0": (64,), "MXFP4": ()} | dict.fromkeys(
    ("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)
)


@dataclass(frozen=True)
class Made:
    source: Checkpoint
    store: QuantizedStore
    file: Path


def make(folder: Path, form: str, model_type: str = "llama", *, tied: bool = True) -> Made:
    """``folder``/model, /store and the exported file."""
    return make_from(open_checkpoint(make_tiny_model(folder / "model", model_type, tied=tied)), folder, form)


def make_from(source: Checkpoint, folder: Path, form: str) -> Made:
    """``folder``/store and the exported file."""
    target, config = FORMS[form]
    store = quantize_checkpoint(source, folder / "store", config, TARGETS[target])
    writer = writer_of(target)
    return Made(source, store, writer.write(store, folder / {"gguf": "file.gguf", "onnx": "onnx"}[writer.word]))


def tensor(path: Path, name: str) -> np.memmap:
    """Bytes of a tensor or an initializer, writable in the file."""
    if path.is_dir():
        graph = onnx.load(path / "model.onnx", load_external_data=False).graph
        held = next(item for item in graph.initializer if item.name == name)
        place = {entry.key: entry.value for entry in held.external_data}
        return np.memmap(path / place["location"], np.uint8, "r+", int(place["offset"]), int(place["length"]))
    held = next(item for item in gguf.GGUFReader(path).tensors if item.name == name)
    return np.memmap(path, np.uint8, "r+", int(held.data_offset), int(held.n_bytes))


def random_blocks(kind: str, rows: int, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """U8[rows, bytes] of ggml blocks whose every bit is drawn, but for exponents that keep the float16 numbers below 2."""
    data = rng.integers(0, 256, (rows, blocks, BLOCK_BYTES[kind]), np.uint8)
    if kind == "MXFP4":
        data[..., 0] &= 0x7F  # the exponent
    for start in HALVES.get(kind, (0,)):
        data[..., start + 1] &= 0xBB
    return data.reshape(rows, -1)

#!/usr/bin/env python3
"""Make the model of the demo and of docs/evidence/accuracy.md: SmolLM2-135M-Instruct, spread off its Q4_1 lattice.

The weights that can be fetched are Q4_1: they lie on a 4-bit lattice per output channel, so a quantizer that rounds to
such a lattice gets them back for free. Seeded uniform dither of one lattice step takes that advantage away. What is left
is a real language model with real activation outliers that favours no format.

Writes a Hugging Face directory: float16 safetensors, config and tokenizer.

usage: make_reference_model.py SmolLM2-135M-Instruct.Q4_1.gguf OUT_DIR
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from safetensors.numpy import save_file

from quantize import open_checkpoint
from quantize.architecture.families import rotary_heads
from quantize.checkpoint.row_order import hf_row_index
from quantize.gguf.names import to_hf_name
from quantize.types import F32

SEED = 20260923
Q4_1_BYTES = 20  # f16 d, f16 m, 16 bytes of codes for 32 weights


def lattice_steps(tensor: ReaderTensor) -> F32:
    """F32[OC, IC]: the distance between two neighbouring values of a Q4_1 tensor, weight by weight."""
    rows = tensor.data.shape[0]
    steps = tensor.data.reshape(rows, -1, Q4_1_BYTES)[:, :, :2].copy().view(np.float16)[:, :, 0]
    return np.repeat(steps.astype(np.float32), 32, axis=1)


def dithered(gguf: Path) -> dict[str, np.ndarray]:
    """HF names -> F16 weights in HF row order; dither is drawn in the GGUF's order of tensors and rows."""
    checkpoint, out = open_checkpoint(gguf), {}
    rng = np.random.Generator(np.random.PCG64(SEED))
    for tensor in GGUFReader(gguf).tensors:
        name = to_hf_name(tensor.name)
        weight = checkpoint.read(name)
        if tensor.tensor_type == GGMLQuantizationType.Q4_1:
            dither = lattice_steps(tensor) * (rng.random(weight.shape, dtype=np.float32) - np.float32(0.5))
            heads = rotary_heads(checkpoint.config, name)
            weight = weight + (dither if heads is None else dither[hf_row_index(len(dither), heads)])
        out[name] = weight.astype(np.float16)
    return out


def make(gguf: Path, out: Path) -> None:
    """Write the model to ``out``, which appears only when it is whole."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, data in open_checkpoint(gguf).assets().items():
        if name == "config.json":
            data = json.dumps({**json.loads(data), "dtype": "float16"}, indent=2).encode() + b"\n"
        if not name.endswith(".gguf"):
            (partial / name).write_bytes(data)
    save_file(dithered(gguf), partial / "model.safetensors", metadata={"format": "pt"})
    partial.rename(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    make(Path(sys.argv[1]), Path(sys.argv[2]))

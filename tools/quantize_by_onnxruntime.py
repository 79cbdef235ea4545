#!/usr/bin/env python3
"""onnxruntime's own 4 bits of a float ONNX folder, as onnxruntime-genai's builder asks for them: to compare with.

usage: quantize_by_onnxruntime.py SOURCE OUT        # SOURCE: what `adadim convert --format onnx` writes
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from quantize.onnx.reader import MODEL_FILE
from quantize.onnx.template import ASSETS

BLOCK = 32
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """With every weight in float32, as it is multiplied: the quantizer sees through no Cast and no Transpose."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    narrow = [
        tensor.name for tensor in model.graph.initializer if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    ]
    values |= {name: values[name].astype(np.float32) for name in narrow}
    kept = []
    for node in model.graph.node:
        if node.op_type in ("Cast", "Transpose") and node.input[0] in values:
            value = values[node.input[0]]
            values[node.output[0]] = np.ascontiguousarray(value.T) if node.op_type == "Transpose" else value
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items() if name in used)
    return model


def main() -> None:
    """One folder."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    source, out = map(Path, sys.argv[1:])
    model = folded(onnx.load(source / MODEL_FILE))
    axes = (("MatMul", 0), ("Gather", 1))
    quantizer = MatMulNBitsQuantizer(
        model, block_size=BLOCK, is_symmetric=True, accuracy_level=4, op_types_to_quantize=("MatMul", "Gather"), quant_axes=axes
    )
    quantizer.process()
    out.mkdir(parents=True)
    quantizer.model.save_model_to_file(str(out / MODEL_FILE), True)
    for name in TOKENIZER:
        shutil.copyfile(source / ASSETS / name, out / name)


if __name__ == "__main__":
    main()

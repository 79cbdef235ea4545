"""What the writer of ONNX would refuse of a source, said before anything slow is done. Needs no onnx library."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from quantize.checkpoint.template import SKELETON_ASSET
from quantize.errors import ExportError, asked, shown
from quantize.foreign import tokenizer_mend
from quantize.model_config import ModelConfig, ModelSizes

HEAD_DIM_MULTIPLE = 16


def check_onnx(config: ModelSizes, assets: Container[str], where: str) -> None:
    """Raises ExportError for a decoder without a graph, heads that the kernel refuses, or no tokenizer."""
    if not isinstance(config, ModelConfig) and SKELETON_ASSET not in assets:
        raise ExportError(
            f"{where}: holds no ONNX graph of {shown(config.model_type)}; {asked('target', 'llama.cpp')} can hold it, or make a "
            f"graph of the Hugging Face folder: adadim convert DIR --format onnx --out FOLDER"
        )
    if isinstance(config, ModelConfig) and config.head_dim % HEAD_DIM_MULTIPLE:
        needs = f"onnxruntime's GroupQueryAttention needs a multiple of {HEAD_DIM_MULTIPLE}"
        raise ExportError(f"{where}: head_dim {config.head_dim}: {needs}; export this model to GGUF")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if name not in assets:
            raise ExportError(
                f"{where}: onnxruntime-genai needs a {name}, and there is none, nor a GGUF tokenizer that gives one; "
                f"{tokenizer_mend(Path(where))}, or export to GGUF"
            )

"""What a writer would refuse, said before anything slow is done. Needs no onnx library."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from exporter.targets import GGUF_TARGETS
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer_files import DEFAULT, chat_templates, ids_without_rows
from quantize.errors import ExportError
from quantize.foreign import tokenizer_mend
from quantize.model_config import ModelConfig

HEAD_DIM_MULTIPLE = 16


def check_source(source: Checkpoint, target: str, tokenizer_pre: str | None) -> None:
    """Raises ExportError for a source that the writer of ``target`` cannot write, CheckpointError for its damaged files.

    ``tokenizer_pre``: as for ``write_gguf``; "" if it may be given later.
    """
    if target not in GGUF_TARGETS:
        check_onnx(source.config, source.assets(), str(source.path))
        from exporter.onnx.genai_tokenizer import genai_tokenizer_files

        genai_tokenizer_files(source.assets(), source.config.vocab_size, str(source.path))
        return
    from exporter.gguf.metadata import check_gguf_source

    check_gguf_source(source, tokenizer_pre)


def check_onnx(config: ModelConfig, assets: Container[str], where: str) -> None:
    """Raises ExportError for heads that the kernel refuses, or no tokenizer."""
    if config.head_dim % HEAD_DIM_MULTIPLE:
        needs = f"onnxruntime's GroupQueryAttention needs a multiple of {HEAD_DIM_MULTIPLE}"
        raise ExportError(f"{where}: head_dim {config.head_dim}: {needs}; export this model to GGUF")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if name not in assets:
            raise ExportError(
                f"{where}: onnxruntime-genai needs a {name}, and there is none, nor a GGUF tokenizer that gives one; "
                f"{tokenizer_mend(Path(where))}, or export to GGUF"
            )


def source_notes(source: Checkpoint, target: str) -> list[str]:
    """What is left out, or will be wrong in the target's runtime, one line each; generation itself works."""
    rows = source.config.vocab_size
    strange = ids_without_rows(source.assets(), rows, source.path)
    ids = [f"{source.path}: {', '.join(strange[:3])}: left out, the embedding has {rows} rows"] if strange else []
    return ids + _template_notes(source, target)


def _template_notes(source: Checkpoint, target: str) -> list[str]:
    from exporter.onnx.genai_template import beyond_genai, unreadable

    template = chat_templates(source.assets(), source.path).get(DEFAULT)
    if template is None:
        return []
    problem = unreadable(template)
    if problem:
        return [f"{source.path}: its chat template cannot be read ({problem}); the file holds it as it is"]
    found = [] if target in GGUF_TARGETS else beyond_genai(template)
    return [f"{source.path}: its chat template needs {', '.join(found)}, which onnxruntime-genai cannot render"] if found else []

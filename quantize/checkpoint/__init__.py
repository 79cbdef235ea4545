"""Source models: a Hugging Face directory or a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path

from quantize.checkpoint.gguf_source import GgufCheckpoint
from quantize.checkpoint.huggingface import TO_CONVERT, HuggingFaceCheckpoint
from quantize.checkpoint.protocol import Checkpoint
from quantize.errors import CheckpointError
from quantize.kinds import MAKE, Wanted, mistaken

__all__ = ["Checkpoint", "open_checkpoint"]

HUB_ID = re.compile(r"([\w.-]+/)?[\w.-]+")  # "openai/gpt-2", and "gpt2", of the hub's first days
ADAPTER = "adapter_config.json"
TO_MERGE = "merge it (peft: merge_and_unload, save_pretrained), or move it away if these weights are merged already"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: Path) -> Checkpoint:
    """The source model at ``path``, its headers read and checked. Raises CheckpointError for whatever cannot be used."""
    if path.is_dir():
        if (path / ADAPTER).is_file():  # transformers loads the base that it names, and the adapter on top
            raise CheckpointError(f"{path}: holds a LoRA adapter ({ADAPTER}); {TO_MERGE}")
        if not (path / "config.json").is_file():
            raise CheckpointError(mistaken(path, Wanted.SOURCE))
        return HuggingFaceCheckpoint(path)
    if not path.exists():
        if HUB_ID.fullmatch(str(path)) and path.suffix not in (*PICKLES, ".safetensors", ".gguf"):
            raise CheckpointError(f"{path}: no such directory; if it is a hub id: hf download {path} --local-dir {path.name}")
        raise CheckpointError(f"{path}: no such file or directory")
    if path.suffix in PICKLES:
        raise CheckpointError(f"{path}: pickled weights are never loaded; convert them: {TO_CONVERT.format(path.parent)}")
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: name the directory that holds it and config.json: {path.parent}")
    if not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path}: no regular file; {MAKE[Wanted.SOURCE]}")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if magic != b"GGUF":
        raise CheckpointError(mistaken(path, Wanted.SOURCE))
    return GgufCheckpoint(path)

"""Texts to ids and back by llama.cpp's own tokenizer of a GGUF, in a child process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantize.child import Child, ChildEnded
from quantize.errors import CheckpointError
from quantize.llama_cpp.model import LlamaVocab


def tokenize(path: Path, text: str) -> NDArray[np.int64]:
    """Ids I64[n], with the tokens that the file puts around a text. Raises CheckpointError."""
    return np.array(_asked(path, "tokenize", text, True), np.int64)


def detokenize(path: Path, ids: Sequence[int]) -> str:
    """The text, special tokens spelled out. Raises CheckpointError."""
    return str(_asked(path, "detokenize", list(ids)))


def _asked(path: Path, method: str, *args: object) -> object:
    try:
        with Child() as child:
            child.hold(LlamaVocab, path)
            answer: object = child.ask(method, *args)
            return answer
    except ChildEnded as error:
        raise CheckpointError(f"{path}: llama.cpp's tokenizer {error}; download it again") from error

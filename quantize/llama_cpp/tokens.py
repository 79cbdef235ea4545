"""Texts to ids and back by llama.cpp's own tokenizer of a GGUF, in a child process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.child import Child, ChildEnded
from quantize.errors import CheckpointError
from quantize.llama_cpp.model import LlamaVocab


def tokenize(path: Path, text: str) -> NDArray[np.int64]:
    """Ids I64[n], with the tokens that the file puts around a text. Raises CheckpointError."""
    return np.array(_asked(path, "tokenize", (text, True))[0], np.int64)


def detokenize(path: Path, ids: Sequence[int]) -> str:
    """The text, special tokens spelled out. Raises CheckpointError."""
    return str(_asked(path, "detokenize", (list(ids),))[0])


def texts_of(path: Path, ids: Sequence[int]) -> list[str]:
    """``detokenize`` of each by itself."""
    return [str(text) for text in _asked(path, "detokenize", *(([token],) for token in ids))]


def _asked(path: Path, method: str, *calls: tuple[object, ...]) -> list[Any]:
    """What it says to each call."""
    try:
        with Child() as child:
            child.hold(LlamaVocab, path)
            return [child.ask(method, *args) for args in calls]
    except ChildEnded as error:
        raise CheckpointError(f"{path}: llama.cpp's tokenizer {error}; download it again") from error

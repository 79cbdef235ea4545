"""One protocol over everything that can run a model: torch on the source or on decoded weights, onnxruntime, llama.cpp."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quantize.llama_cpp.model import LlamaModel
from quantize.types import F32, I64
from runtime_checks.runtimes.onnx_runner import greedy_speed


class Runner(Protocol):
    """A model that is ready to run; ``name`` is the runtime and its version."""

    @property
    def name(self) -> str:
        """The runtime, as `eval` reports it."""

    def logits(self, tokens: I64, skip: int = 0) -> F32:
        """F32[n - skip, vocab]: next-token logits after each of I64[n] tokens but the first ``skip``, from an empty cache."""

    def greedy(self, tokens: I64, count: int) -> list[int]:
        """The ``count`` most likely tokens that follow I64[n] ``tokens``, one at a time over the cache."""

    def speed(self, count: int) -> float:
        """Tokens per second of decoding ``count`` tokens, one at a time over the cache."""

    def close(self) -> None:
        """Give the memory back; the runner is of no use afterwards."""


class TorchRunner:
    """A float32 model of ``quantize.source``."""

    def __init__(self, model: Any, name: str) -> None:  # noqa: ANN401 - torch is known to quantize.source alone
        self.name, self._model = name, model

    def logits(self, tokens: I64, skip: int = 0) -> F32:
        """See Runner."""
        from quantize import source as source_model

        out: F32 = source_model.logits(self._model, tokens[None], skip)[0]
        return out

    def greedy(self, tokens: I64, count: int) -> list[int]:
        """See Runner."""
        from quantize import source as source_model

        return source_model.greedy(self._model, tokens, count)

    def speed(self, count: int) -> float:
        """See Runner."""
        return greedy_speed(self.greedy, count)

    def close(self) -> None:
        """See Runner."""
        del self._model


class LlamaRunner:
    """A GGUF in llama.cpp. Raises FileFormatError if llama.cpp refuses it."""

    def __init__(self, path: Path, context: int, exact: bool = False) -> None:
        self.name = f"llama.cpp (xllamacpp {version('xllamacpp')})"
        self._model = LlamaModel(path, n_ctx=context, exact=exact)

    def logits(self, tokens: I64, skip: int = 0) -> F32:
        """See Runner."""
        return self._model.logits(tokens.astype(np.int32), skip)

    def greedy(self, tokens: I64, count: int) -> list[int]:
        """See Runner; stops after an end-of-generation token."""
        return self._model.generate_greedy(tokens.tolist(), count)

    def speed(self, count: int) -> float:
        """See Runner."""
        return self._model.tokens_per_second(count)

    def close(self) -> None:
        """See Runner."""
        self._model.close()


def greedy_error(reference: Runner, prompt: I64, chosen: list[int]) -> float:
    """By how much ``reference`` prefers its own favourites to the tokens that were ``chosen`` after I64[n] ``prompt``.

    Over the largest logit; 0 if it would have chosen the same, and next to nothing at a tie, which may go either way.
    """
    rows = reference.logits(np.array([*prompt, *chosen[:-1]], np.int64))[len(prompt) - 1 :]
    gaps = rows.max(-1) - rows[np.arange(len(chosen)), chosen]
    return float(gaps.max() / np.abs(rows).max())

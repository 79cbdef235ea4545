"""Real llama.cpp: a GGUF file loaded, tokenized with and run."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from ctypes import c_int32
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.errors import FileFormatError
from quantize.llama_cpp.library import F32 as F32_TYPE
from quantize.llama_cpp.library import NO_FLASH, Batch, ContextParams, ModelParams, last_words, library
from quantize.types import F32

I32 = NDArray[np.int32]
THREADS = 2
EXPORT_AGAIN = "; export it again"
BATCH_ROWS = 128  # twice as fast as 32; llama.cpp then holds 77 MB of logits for 150,000 tokens


class LlamaVocab:
    """The tokenizer of a GGUF file, without its weights. Use as a context manager or call ``close``."""

    def __init__(self, path: Path, *, vocab_only: bool = True) -> None:
        """Raises FileFormatError, with llama.cpp's own words, if it refuses the file."""
        self.path = path
        self._lib = library()
        params = self._model_params()
        params.vocab_only = vocab_only
        last_words()
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise FileFormatError(f"{path}: llama.cpp refuses it ({last_words() or 'it does not say why'}){EXPORT_AGAIN}")
        self._vocab = self._lib.llama_model_get_vocab(self._model)

    def _model_params(self) -> ModelParams:
        params: ModelParams = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        return params

    @property
    def size(self) -> int:
        """Number of tokens."""
        return int(self._lib.llama_vocab_n_tokens(self._vocab))

    @property
    def bos(self) -> str:
        """Text of the beginning-of-sequence token, empty without one."""
        return self._text(self._lib.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> str:
        """Text of the end-of-sequence token, empty without one."""
        return self._text(self._lib.llama_vocab_eos(self._vocab))

    def chat_template(self) -> bytes | None:
        """The template that llama.cpp would use, if the file has one."""
        template: bytes | None = self._lib.llama_model_chat_template(self._model, None)
        return template

    def is_end(self, token: int) -> bool:
        """Whether generation stops after this token."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """llama_tokenize: ids of ``text``; ``add_special`` adds BOS and EOS as the file says."""
        data = text.encode("utf-8")

        def call(buffer: Any, size: int) -> int:  # noqa: ANN401
            return int(self._lib.llama_tokenize(self._vocab, data, len(data), buffer, size, add_special, parse_special))

        return list(_fill(c_int32, len(data) + 2, call))

    def detokenize(self, tokens: list[int]) -> str:
        """llama_detokenize, special tokens spelled out."""
        array = (c_int32 * len(tokens))(*tokens)

        def call(buffer: Any, size: int) -> int:  # noqa: ANN401
            return int(self._lib.llama_detokenize(self._vocab, array, len(tokens), buffer, size, False, True))

        text: bytes = _fill(ctypes.c_char, 8 * len(tokens) + 8, call)
        return text.decode("utf-8", "replace")

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = self._lib.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8")

    def close(self) -> None:
        """Free what llama.cpp holds; twice does no harm."""
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> LlamaVocab:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class LlamaModel(LlamaVocab):
    """A GGUF file that llama.cpp runs on the CPU; its KV cache is float16 and its activations 8 bits, as on a phone."""

    def __init__(self, path: Path, n_ctx: int = 512, threads: int = THREADS, exact: bool = False) -> None:
        """``n_ctx``: most tokens in one call. ``exact``: a cache in float32 and no fused attention.

        Raises FileFormatError if llama.cpp refuses the file.
        """
        super().__init__(path, vocab_only=False)
        self.n_ctx, self._exact = n_ctx, exact
        self._context = self._lib.llama_init_from_model(self._model, self._context_params(n_ctx, threads))
        if not self._context:
            self.close()
            raise FileFormatError(f"{path}: llama.cpp cannot run it ({last_words()}){EXPORT_AGAIN}")
        self._batch: Batch = self._lib.llama_batch_init(BATCH_ROWS, 0, 1)

    def _context_params(self, n_ctx: int, threads: int) -> ContextParams:
        params: ContextParams = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, BATCH_ROWS, BATCH_ROWS
        params.n_threads = params.n_threads_batch = threads
        if self._exact:
            params.type_k = params.type_v = F32_TYPE
            params.flash_attn_type = NO_FLASH
        return params

    def logits(self, tokens: I32, skip: int = 0) -> F32:
        """F32[n - skip, vocab]: row i predicts the token after ``tokens[: skip + i + 1]``."""
        return np.concatenate(list(self.logits_rows(tokens, skip)))

    def logits_rows(self, tokens: I32, skip: int = 0) -> Iterator[F32]:
        """The same logits in pieces F32[<= BATCH_ROWS, vocab], in order, so that nobody has to hold them all."""
        self._forget()
        for start in range(0, len(tokens), BATCH_ROWS):
            rows = self._decode(np.asarray(tokens[start : start + BATCH_ROWS], np.int32), start, max(0, skip - start))
            if len(rows):
                yield rows.copy()

    def generate_greedy(self, tokens: list[int], n: int) -> list[int]:
        """Up to ``n`` tokens after ``tokens``, the most probable each time; an end-of-generation token ends it and is kept."""
        *_, last = self.logits_rows(np.array(tokens, np.int32))
        out = [int(last[-1].argmax())]
        while len(out) < n and not self.is_end(out[-1]):
            row = self._decode(np.array(out[-1:], np.int32), len(tokens) + len(out) - 1)
            out.append(int(row[-1].argmax()))
        return out

    def tokens_per_second(self, n: int = 32) -> float:
        """Speed of decoding one token after another, by the median of ``n`` steps after a warm-up token.

        The median, because a busy core stalls single steps a hundredfold: ggml's threads wait for one another by spinning.
        """
        self._forget()
        times = []
        for position in range(n + 1):
            start = time.perf_counter()
            self._decode(np.zeros(1, np.int32), position)
            times.append(time.perf_counter() - start)
        return 1 / float(np.median(times[1:]))

    def close(self) -> None:
        """Free context, batch and model; twice does no harm."""
        if self._model and getattr(self, "_context", None):
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._context = None
        super().close()

    def __enter__(self) -> LlamaModel:
        return self

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _decode(self, tokens: I32, position: int, skip: int = 0) -> F32:
        """One llama_decode, logits of every token but the first ``skip``: F32[n, vocab], valid until the next call."""
        assert position + len(tokens) <= self.n_ctx, f"{position + len(tokens)} tokens in a context of {self.n_ctx}"
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens.tolist()):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position + index, index >= skip
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        status = self._lib.llama_decode(self._context, batch)
        if status:
            raise FileFormatError(f"{self.path}: llama_decode returned {status} ({last_words()})")
        kept = max(0, len(tokens) - skip)
        if not kept:
            return np.empty((0, self.size), np.float32)
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (kept, self.size))


def _fill(kind: Any, size: int, call: Callable[[Any, int], int]) -> Any:  # noqa: ANN401
    """Call a C function that fills a buffer and returns how much it wrote, or minus how much it needs."""
    buffer = (kind * size)()
    count = call(buffer, size)
    if count < 0:
        buffer = (kind * -count)()
        count = call(buffer, -count)
    return buffer[:count]

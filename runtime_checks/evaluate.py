"""What the exported file is worth: perplexity and distance to its source, measured in the runtime that will run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.protocol import Checkpoint
from quantize.errors import CalibrationError, ConfigError
from quantize.progress import track
from runtime_checks.decoded import check_shapes, exported_bytes, open_weights
from runtime_checks.divergence import I64, Scores, compare, join
from runtime_checks.onnx_runner import exported_context
from runtime_checks.runners import Runner, decoded_runner, exported_runner, source_runner, source_tokens

MIN_CONTEXT = 8
SPEED_TOKENS = 16  # decoded one at a time for the speed, if the context holds them


@dataclass(frozen=True)
class EvalOptions:
    """``context``: tokens per chunk, each with an empty cache; ``chunks``: how many at most, None for the whole text."""

    context: int = 512
    chunks: int | None = None
    weights_only: bool = False

    def __post_init__(self) -> None:
        if self.context < MIN_CONTEXT:
            raise ConfigError(f"--context {self.context}: must be at least {MIN_CONTEXT}")
        if self.chunks is not None and self.chunks < 1:
            raise ConfigError(f"--chunks {self.chunks}: must be at least 1")


def evaluate(path: Path, source: Checkpoint, text: str, options: EvalOptions | None = None) -> dict[str, Any]:
    """Score a GGUF or an ONNX folder on ``text`` against ``source``, in the file's own runtime or on its decoded weights.

    The text is tokenized by the source's tokenizer and cut into chunks of ``options.context`` tokens; the second half of
    each is scored, as llama-perplexity does. Both models run a chunk, its logits are compared and forgotten.

    Returns ``ppl`` and ``source_ppl``; ``kld``, the mean KL divergence source || file in nats per token, and ``kld_p99``,
    its 99th percentile; ``top1``, the share of tokens where both have the same favourite; ``tokens`` scored; ``bytes`` of the
    file; ``tokens_per_s`` of decoding one token at a time (a median); ``runtime``.

    Raises CalibrationError if the text is shorter than a chunk, FileFormatError if the file cannot be run or is of another
    model, ConfigError if the context is longer than the source's.
    """
    options = options or EvalOptions()
    _check_context(path, source, options)
    check_shapes(path, source.config, open_weights(path, source.config))
    chunks = text_chunks(source, text, options)
    other = decoded_runner(path, source) if options.weights_only else exported_runner(path, options.context)
    base = source_runner(source)
    parts = [_score(base, other, tokens) for tokens in track(chunks, "evaluating", len(chunks))]
    base.close()
    report = _summary(join(parts)) | {
        "bytes": exported_bytes(path),
        "tokens_per_s": other.speed(min(SPEED_TOKENS, options.context - 1)),
        "runtime": other.name,
    }
    other.close()
    return report


def _check_context(path: Path, source: Checkpoint, options: EvalOptions) -> None:
    limits = {source.path: source.config.context}
    exported = exported_context(path) if path.is_dir() and not options.weights_only else None
    if exported is not None:
        limits[path] = exported
    for where, limit in limits.items():
        if options.context > limit:
            raise ConfigError(f"--context {options.context}: {where} holds {limit} tokens at most; ask for no more")


def text_chunks(source: Checkpoint, text: str, options: EvalOptions) -> I64:
    """I64[chunks, context]."""
    context = options.context
    ids = source_tokens(source, text)
    count = len(ids) // context
    if not count:
        raise CalibrationError(
            f"the text has {len(ids)} tokens, but one chunk takes {context}; give a longer one or a smaller --context"
        )
    count = min(count, options.chunks or count)
    return ids[: count * context].reshape(count, context)


def _score(base: Runner, other: Runner, tokens: I64) -> Scores:
    half = len(tokens) // 2
    scored = slice(half - 1, len(tokens) - 1)
    return compare(base.logits(tokens)[scored], other.logits(tokens)[scored], tokens[half:])


def _summary(scores: Scores) -> dict[str, Any]:
    return {
        "ppl": float(np.exp(scores.nll.mean())),
        "source_ppl": float(np.exp(scores.base_nll.mean())),
        "kld": float(scores.kl.mean()),
        "kld_p99": float(np.percentile(scores.kl, 99)),
        "top1": float(scores.agree.mean()),
        "tokens": len(scores.kl),
    }

"""What the exported file is worth: perplexity and distance to its source, measured in the runtime that will run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantize.activations.rules import Rules
from quantize.checkpoint.protocol import Checkpoint
from quantize.errors import CalibrationError, ConfigError, FileFormatError, asked
from quantize.progress import track
from quantize.statistics.calibration import tokenize
from quantize.types import F32, I64
from runtime_checks.measure.divergence import Scores, compare, join
from runtime_checks.runtimes.decoded import check_same_model, decoded_runner
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.isolated import isolated_runner, source_runner
from runtime_checks.runtimes.runners import Runner
from runtime_checks.runtimes.simulated import simulated_runner

MIN_CONTEXT = 8
SPEED_TOKENS = 16  # decoded one at a time for the speed, if the context holds them


@dataclass(frozen=True)
class EvalOptions:
    """``context``: tokens per chunk, each with an empty cache; ``chunks``: how many at most, None for the whole text.
    ``activations``: what rounds inputs of linears, simulated over the decoded weights."""

    context: int = 512
    chunks: int | None = None
    weights_only: bool = False
    activations: Rules | None = None

    def __post_init__(self) -> None:
        if self.context < MIN_CONTEXT:
            raise ConfigError(f"{asked('context', self.context)}: must be at least {MIN_CONTEXT}")
        if self.chunks is not None and self.chunks < 1:
            raise ConfigError(f"{asked('chunks', self.chunks)}: must be at least 1")
        if self.activations is not None and not self.weights_only:
            told = f"is simulated over decoded weights, and the runtime rounds as it does; give {asked('weights_only', True)} too"
            raise ConfigError(f"{asked('activations', self.activations.text)}: {told}")


def evaluate(path: Path, source: Checkpoint, text: str, options: EvalOptions | None = None) -> dict[str, Any]:
    """Score a GGUF or an ONNX folder on ``text`` against ``source``, in the file's own runtime or on its decoded weights.

    The text is tokenized by the source's tokenizer and cut into chunks of ``options.context`` tokens; the second half of
    each is scored, as llama-perplexity does. Both models run a chunk, its logits are compared and forgotten.

    Returns ``ppl`` and ``source_ppl``; ``kld``, the mean KL divergence source || file in nats per token, and ``kld_p99``,
    its 99th percentile; ``top1``, the share of tokens where both have the same favourite; ``tokens`` scored; ``bytes`` of the
    file; ``tokens_per_s`` of decoding one token at a time (a median); ``runtime``; ``simulated``: what rounded inputs of linears,
    if that was asked for.

    Raises CalibrationError if the text is shorter than a chunk, FileFormatError if the file cannot be run or is of another
    model, ConfigError if the context is longer than the source's.
    """
    options = options or EvalOptions()
    chunks = text_chunks(source, text, options)
    other = open_runner(path, source, options)
    base = source_runner(source, options.context)
    parts = [score(path, predictions(base, tokens), other, tokens) for tokens in track(chunks, "evaluating", len(chunks))]
    base.close()
    report = summary(parts) | cost(path, other, options)
    other.close()
    return report if options.activations is None else report | {"simulated": options.activations.text}


def text_chunks(source: Checkpoint, text: str, options: EvalOptions) -> I64:
    """I64[chunks, context]. Raises ConfigError, CalibrationError."""
    context = options.context
    _check_context(source.path, source.config.context, context)
    ids = tokenize(text, source)
    count = len(ids) // context
    if not count:
        raise CalibrationError(
            f"the text has {len(ids)} tokens, but one chunk takes {context}; give a longer one or a smaller {asked('context')}"
        )
    count = min(count, options.chunks or count)
    return ids[: count * context].reshape(count, context)


def open_runner(path: Path, source: Checkpoint, options: EvalOptions) -> Runner:
    """The file as it will be measured. Raises FileFormatError, ConfigError."""
    if options.activations is not None:
        return simulated_runner(path, source, options.activations)
    if options.weights_only:
        return decoded_runner(path, source, options.context)
    _check_context(path, open_exported(path).context or options.context, options.context)
    check_same_model(path, source.config)
    return isolated_runner(path, options.context)


def _check_context(where: Path, limit: int, context: int) -> None:
    if context > limit:
        raise ConfigError(f"{asked('context', context)}: {where} holds {limit} tokens at most; ask for no more")


def predictions(runner: Runner, tokens: I64) -> F32:
    """F32[context / 2, vocab]: what a model expects of the second half of I64[context] ``tokens``."""
    return runner.logits(tokens, len(tokens) // 2 - 1)[:-1]


def score(path: Path, expected: F32, other: Runner, tokens: I64) -> Scores:
    """The file's ``predictions`` against the source's. Raises FileFormatError if it has another vocabulary."""
    found = predictions(other, tokens)
    if found.shape != expected.shape:
        raise FileFormatError(
            f"{path}: has {found.shape[1]} tokens, the source {expected.shape[1]}; name the source that it was made from"
        )
    return compare(expected, found, tokens[len(tokens) // 2 :])


def summary(parts: Sequence[Scores]) -> dict[str, Any]:
    """The keys of ``evaluate`` that tell of quality."""
    scores = join(parts)
    return {
        "ppl": float(np.exp(scores.nll.mean())),
        "source_ppl": float(np.exp(scores.base_nll.mean())),
        "kld": float(scores.kl.mean()),
        "kld_p99": float(np.percentile(scores.kl, 99)),
        "top1": float(scores.agree.mean()),
        "tokens": len(scores.kl),
    }


def cost(path: Path, runner: Runner, options: EvalOptions) -> dict[str, Any]:
    """The keys of ``evaluate`` that tell of size and speed."""
    speed = runner.speed(min(SPEED_TOKENS, options.context - 1))
    return {"bytes": open_exported(path).nbytes, "tokens_per_s": speed, "runtime": runner.name}

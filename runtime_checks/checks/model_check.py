"""The whole model in its runtime against torch running the very weights that the file's bytes decode to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantize.checkpoint.protocol import Checkpoint
from quantize.statistics.calibration import tokenize
from quantize.types import F32, I64
from runtime_checks.checks.genai_check import check_genai, check_genai_config
from runtime_checks.measure.divergence import compare
from runtime_checks.measure.results import Check, within
from runtime_checks.runtimes.decoded import decoded_runner
from runtime_checks.runtimes.exported import Exported, open_exported
from runtime_checks.runtimes.onnx_runner import OnnxRunner
from runtime_checks.runtimes.runners import Runner, greedy_error

# float32 against float32, sums in another order: the largest difference of a logit over the largest logit, 8e-6 after 30 layers.
LOGITS_TOLERANCE = 1e-4
# The same of a graph of float16: .001 to .003 on random models of two layers, .0032 on SmolLM2-135M after 30.
HALF_TOLERANCE = 0.01
# Mean KL in nats and share of changed favourites, caused by activations in 8 bits: llama.cpp and MatMulNBits at level 4
# measured .004 to .006 and .04 on a real model whose activations have large outliers.
KL_TOLERANCE = 0.012
TOP1_TOLERANCE = 0.06
# Of what it costs that static scales round. Where two runs differ in a last bit, a value soon falls to the next code. A few
# layers on they have nothing in common but how much they lose: .077 between two that lost .078 and .073.
SPREAD = 1.5
# Favourites that the reference itself holds this close (nats) are ties that 8-bit activations may break either way; they are
# not counted, or a model with flat logits (a random one) would measure its ties and nothing else.
TIE = 0.1
TOKENS = 256  # in all, in as many texts as an exported context shorter than that asks for
TEXTS = 32  # at most
GREEDY_PROMPT = 32
GREEDY_TOKENS = 8
TEXT = """The harbour was quiet when Ines came down to the water. Two boats had gone out before dawn, and a third
lay upside down on the stones while an old man scraped its hull. "You are late," he said, without looking up. "They left
at 4:30." She counted the nets that were hanging on the wall: 12, perhaps 13. Her brother had told her that the engine
would not start in the cold, and that somebody ought to carry the spare battery down the hill; nobody had.

A decoder reads a sequence of tokens and assigns a probability to every token that may come next. When its weights are
stored in fewer bits, each of these probabilities moves a little, and the distance says how much was lost.

def mean(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

In the year 1687 Newton published three laws of motion. The first says that a body stays at rest, or moves on in a
straight line, unless a force acts on it. The second relates that force to the change of its momentum; the third says
that forces come in pairs, and that they are equal and opposite.
"""


def check_model(path: Path, source: Checkpoint) -> list[Check]:
    """Logits, greedy tokens, KL divergence and top-1 of the file in its own runtime; the reference is torch on decoded weights.

    A GGUF with transposed tensors has no runtime, so nothing is checked here. Raises FileFormatError if a runtime refuses it.
    """
    exported = open_exported(path)
    if exported.unrunnable is not None:
        return []
    texts, labels = _texts(exported, source)
    prompt = texts[0, : min(GREEDY_PROMPT, texts.shape[1] // 2)]
    count = min(GREEDY_TOKENS, texts.shape[1] - len(prompt)) if len(prompt) else 0
    reference = decoded_runner(path, source, texts.shape[1])
    base = _logits(reference, texts)
    checks, tolerance = [], HALF_TOLERANCE if exported.halved else LOGITS_TOLERANCE
    exact = exported.exact_runner()
    if exact is not None:
        checks.append(_check_logits(path, base, _logits(exact, texts), tolerance))
        error = greedy_error(reference, prompt, exact.greedy(prompt, count)) if count else 0.0
        checks.append(within("greedy tokens at accuracy level 0 = torch", path.name, error, tolerance))
        exact.close()
    reference.close()
    simulating, simulated = exported.simulating_runner(), None
    if simulating is not None:
        simulated = _distances(base, _logits(simulating, texts), labels)
        simulating.close()
    shipped = exported.runner(texts.shape[1])
    checks += _check_distribution(path, _distances(base, _logits(shipped, texts), labels), simulated)
    if isinstance(shipped, OnnxRunner):
        sizes = check_genai_config(path, source.config)
        believed = all(check.ok for check in sizes)
        checks += [*sizes, check_genai(path, shipped, prompt, count)] if believed and count else sizes
    shipped.close()
    return checks


def _texts(exported: Exported, source: Checkpoint) -> tuple[I64, I64]:
    """The fixed text cut into texts that both models hold, I64[texts, length], and the tokens that follow, I64[all]."""
    ids = tokenize(TEXT, source)
    length = min(TOKENS, source.config.context, exported.context or TOKENS, len(ids) - 1)
    count = min(TEXTS, TOKENS // length, (len(ids) - 1) // length)
    return ids[: count * length].reshape(count, length), ids[1 : count * length + 1]


def _logits(runner: Runner, texts: I64) -> F32:
    """F32[texts * length, vocab], each text from an empty cache."""
    return np.concatenate([runner.logits(tokens) for tokens in texts])


def _check_logits(path: Path, base: F32, other: F32, tolerance: float) -> Check:
    error = float(np.abs(base - other).max() / np.abs(base).max())
    return within("logits at accuracy level 0 = torch", path.name, error, tolerance)


def _distances(base: F32, other: F32, labels: I64) -> tuple[float, float]:
    """Mean KL divergence, and the share of decided favourites that change."""
    scores = compare(base, other, labels)
    decided = scores.margin > TIE
    return float(scores.kl.mean()), 1 - float(scores.agree[decided].mean()) if decided.any() else 0.0


def _check_distribution(path: Path, shipped: tuple[float, float], simulated: tuple[float, float] | None) -> list[Check]:
    """``simulated``: of a graph that rounds inputs by scales of its own, run node by node; what these cost is no error of the
    runtime."""
    kl, changed = shipped
    beyond = ""
    if simulated is not None:
        kl, changed = (max(one - SPREAD * other, 0.0) for one, other in zip(shipped, simulated, strict=True))
        beyond = f", beyond {SPREAD:g} times node by node's"
    return [
        within(f"mean KL to torch, as shipped{beyond}", path.name, kl, KL_TOLERANCE),
        within(f"changed favourites, as shipped{beyond}", path.name, changed, TOP1_TOLERANCE),
    ]

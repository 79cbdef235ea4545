"""The whole model in its runtime against torch running the very weights that the file's bytes decode to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantize.checkpoint.protocol import Checkpoint
from quantize.model_config import EMBEDDING, HEAD
from quantize.types import F32
from runtime_checks.decoded import open_weights, transposed_names
from runtime_checks.divergence import I64, compare
from runtime_checks.onnx_runner import OnnxRunner, exported_context
from runtime_checks.results import Check, within
from runtime_checks.runners import Runner, decoded_runner, exported_runner, source_tokens

# 1 - cosine between a decoded weight and the source's. Nearest rounding never moves a weight by more than its own size, so
# even 2 bits over whole channels with outliers stay above .3; another tensor, or rows in another order, gives about 0.
SOURCE_TOLERANCE = 0.7
# float32 against float32, sums in another order: the largest difference of a logit over the largest logit, 8e-6 after 30 layers.
LOGITS_TOLERANCE = 1e-4
# Mean KL in nats and share of changed favourites, caused by activations in 8 bits: llama.cpp and MatMulNBits at level 4
# measured .004 to .006 and .04 on a real model whose activations have large outliers.
KL_TOLERANCE = 0.012
TOP1_TOLERANCE = 0.06
# Favourites that the reference itself holds this close (nats) are ties that 8-bit activations may break either way; they are
# not counted, or a model with flat logits (a random one) would measure its ties and nothing else.
TIE = 0.1
TOKENS = 256
GREEDY_PROMPT = 32
GREEDY_TOKENS = 16
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


def check_source(path: Path, source: Checkpoint) -> list[Check]:
    """Every weight of the source against what the file decodes to: catches swapped tensors and permuted rows."""
    weights = open_weights(path, source.config)
    origin = {name: name for name in source.specs}
    if source.tied and not weights.tied:
        origin[HEAD] = EMBEDDING
    return [
        within("decoded = source, roughly", name, _angle(weights.read(name), source.read(old)), SOURCE_TOLERANCE)
        for name, old in origin.items()
    ]


def check_model(path: Path, source: Checkpoint) -> list[Check]:
    """Logits, greedy tokens, KL divergence and top-1 of the file in its own runtime; the reference is torch on decoded weights.

    A GGUF with transposed tensors has no runtime, so nothing is checked here. Raises FileFormatError if a runtime refuses it.
    """
    if not path.is_dir() and transposed_names(path):
        return []
    tokens = _tokens(path, source)
    reference = decoded_runner(path, source)
    base = reference.logits(tokens)
    checks = []
    if path.is_dir():
        exact = OnnxRunner(path, accuracy_level=0)
        prompt = tokens[: min(GREEDY_PROMPT, len(tokens) // 2)]
        checks += [_check_logits(path, base, exact.logits(tokens)), _check_greedy(path, reference, exact, prompt)]
        exact.close()
    reference.close()
    shipped = exported_runner(path, len(tokens))
    checks += _check_distribution(path, base, shipped.logits(tokens), tokens)
    shipped.close()
    return checks


def _tokens(path: Path, source: Checkpoint) -> I64:
    """The fixed text, as much of it as both models hold."""
    ids = source_tokens(source, TEXT)
    limit = exported_context(path) if path.is_dir() else None
    return ids[: min(TOKENS, source.config.max_position, limit or TOKENS)]


def _angle(weight: F32, source: F32) -> float:
    """1 - cosine; infinity where the shapes differ."""
    if weight.shape != source.shape:
        return float("inf")
    a, b = weight.ravel(), source.ravel()
    norm = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return 1 - float(np.dot(a, b)) / norm if norm else float(np.any(a != b))


def _check_logits(path: Path, base: F32, other: F32) -> Check:
    error = float(np.abs(base - other).max() / np.abs(base).max())
    return within("logits at accuracy level 0 = torch", path.name, error, LOGITS_TOLERANCE)


def _check_greedy(path: Path, reference: Runner, exact: Runner, prompt: I64) -> Check:
    """Both continuations; where they part, by how much the reference prefers its own token (a tie is no error)."""
    expected, chosen = (runner.greedy(prompt, GREEDY_TOKENS) for runner in (reference, exact))
    error = 0.0
    for index, (ours, theirs) in enumerate(zip(expected, chosen, strict=True)):
        if ours != theirs:
            last = reference.logits(np.array([*prompt, *expected[:index]], np.int64))[-1]
            error = float((last[ours] - last[theirs]) / np.abs(last).max())
            break
    return within("greedy tokens at accuracy level 0 = torch", path.name, error, LOGITS_TOLERANCE)


def _check_distribution(path: Path, base: F32, shipped: F32, tokens: I64) -> list[Check]:
    scores = compare(base[:-1], shipped[:-1], tokens[1:])
    decided = scores.margin > TIE
    changed = 1 - float(scores.agree[decided].mean()) if decided.any() else 0.0
    return [
        within("mean KL to torch, as shipped", path.name, float(scores.kl.mean()), KL_TOLERANCE),
        within("changed favourites, as shipped", path.name, changed, TOP1_TOLERANCE),
    ]

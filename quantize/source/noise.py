"""What noise in one tensor does to the model's output: a slope, with no gradient and, of random tokens, with no text.

One tensor W at a time becomes W + N, with N Gaussian and of exactly ``|N|^2 = t^2 |W|^2``. Where t is small, the KL divergence
from the source is ``slope * t^2`` for whatever error of that energy is as even as noise, and the divergences of tensors add up
(arXiv 2411.17525, the linearity theorem). Only what comes after the tensor's decoder block is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from quantize.checkpoint import Checkpoint
from quantize.errors import CalibrationError, CheckpointError, asked
from quantize.model_config import EMBEDDING, HEAD
from quantize.progress import track
from quantize.source.causal import Causal
from quantize.source.curvature import first_overflow
from quantize.source.freed import return_freed
from quantize.source.named import Named, named_model
from quantize.source.named_blocks import HIDDEN
from quantize.source.walk import BATCH, check_ids
from quantize.source.whole import LOGIT_ROWS, hidden_of
from quantize.types import F32, I64

BENT = 3.0  # a level that costs that many times what the first does, for its t^2, or that part of it, is off the straight line
SAME = 1e-6  # nats a token; resumed in its middle the model computes what it computes as a whole


class Slope(NamedTuple):
    """``value``: nats a token for each unit of t^2; 0 where it fell ``below`` that. ``straight``: how many levels it rests on."""

    value: float
    below: bool
    straight: int


@torch.no_grad()
def measure_slopes(source: Checkpoint, tokens: I64, seed: int, levels: Sequence[float]) -> dict[str, Slope]:
    """Of all linears by block, then of the tables, over I64[sequences, length]; the second half of each sequence is judged.

    ``seed`` draws the noise; ``levels``, t^2 each, rise. In memory is the source as ``named_model`` has it, and its logits and
    probabilities of half of the tokens. Raises CheckpointError as that does, and for a model that cannot be resumed at a block;
    CalibrationError for tokens that it does not have, and if an activation overflows.
    """
    check_ids(source, tokens)
    named = named_model(source, tokens)
    resumed, found = _Resumed(named, tokens), dict[str, Slope]()
    homes = _homes(named)
    names = iter(track([name for own in homes for name in own], "noise"))

    def measure(count: int) -> None:
        for _ in range(count):
            name, losses = next(names), list[float]()
            weight = source.read(name)
            for number, level in enumerate(levels):
                rng = np.random.default_rng((seed, len(found), number))
                named.put(name, noisy(weight, level, rng), learns=False)
                losses.append(resumed.divergence())
            named.put(name, weight, learns=False)
            if not np.isfinite(losses[0]):
                raise CalibrationError(f"{name}: with noise of {levels[0]:.3g} of its energy the model overflows float32")
            found[name] = fit_slope(levels, losses)
            return_freed()

    *blocks, outside = homes
    for index, own in enumerate(blocks):
        with named.held(index):
            if index == len(blocks) // 2 and not abs(resumed.divergence()) <= SAME:
                raise CheckpointError(
                    f"{source.path}: torch's model, resumed at decoder block {index}, does not give what it gives as a whole; "
                    f"measure {asked('by', 'curvature')}"
                )
            measure(len(own))
            resumed.advance()
    resumed.rewind()
    measure(len(outside))
    return found


def noisy(weight: F32, energy: float, rng: np.random.Generator) -> F32:
    """F32[...] with Gaussian noise, the sum of whose squares is ``energy`` times that of the weight's."""
    noise = rng.standard_normal(weight.shape, np.float32)
    own, drawn = (float(np.einsum("i,i", flat, flat, dtype=np.float64)) for flat in (weight.reshape(-1), noise.reshape(-1)))
    noise *= np.float32(np.sqrt(energy * own / drawn))
    noise += weight
    return noise


def fit_slope(levels: Sequence[float], losses: Sequence[float]) -> Slope:
    """Least squares through the origin, of the first levels that lie on a straight line; nats a token at each level of t^2."""
    ratios = np.divide(losses, levels)
    on_it = np.isfinite(ratios)
    if ratios[0] > 0:
        on_it &= (ratios <= BENT * ratios[0]) & (ratios >= ratios[0] / BENT)
    straight = len(ratios) if on_it.all() else int(np.argmin(on_it))
    x, y = np.asarray(levels[:straight]), np.asarray(losses[:straight])
    value = float(x @ y / (x @ x))
    return Slope(max(value, 0.0), value < 0, straight)


def _homes(named: Named) -> list[list[str]]:
    """Names by the decoder block that they lie in; last of what lies in none, the tables at the end."""
    causal = named.causal
    blocks = list(enumerate(causal.blocks))
    of = {id(parameter): index for index, block in reversed(blocks) for parameter in block.parameters()}
    homes: list[list[str]] = [[] for _ in range(len(blocks) + 1)]
    for name in (name for site in named.sites for name in site):
        own = [of.get(id(causal.parameters[key.parameter]), len(blocks)) for key in named.rows[name].keys]
        homes[-1 if len(blocks) in own else min(own)].append(name)
    homes[-1] += [name for name in (EMBEDDING, HEAD) if name in named.whole]
    return homes


class _Resumed:
    """The model from a decoder block on: those before it let through what they get, and it gets what it gets in the source."""

    def __init__(self, named: Named, tokens: I64) -> None:
        self._causal = named.causal
        self._batches = [torch.from_numpy(np.array(tokens[start : start + BATCH])) for start in range(0, len(tokens), BATCH)]
        self._parts, self._left = dict[int, int](), torch.empty(0)
        self._inputs: list[torch.Tensor | None] = []
        self._given: torch.Tensor | None = None
        self._start = self._stop = 0
        self.rewind()
        for index, block in enumerate(self._causal.blocks):
            block.forward = partial(self._forward, index, block.forward)
        self._truths = list[_Truth]()
        for ids in self._batches:
            last = self._causal.hidden(ids)
            if not last.isfinite().all():
                site = first_overflow(named, ids)
                raise CalibrationError(f"{site}: its outputs overflow float32; does the source itself run?")
            self._truths.append(_Truth(self._causal, _judged(last)))

    def divergence(self) -> float:
        """Mean KL divergence from the source in nats a token, with the weights that the model now has."""
        parts = []
        for ids, truth, given in zip(self._batches, self._truths, self._inputs, strict=True):
            self._given = given
            parts.append(truth.divergences(_judged(self._causal.hidden(ids))))
        return float(torch.cat(parts).mean())

    def advance(self) -> None:
        """To the next block; the weights are the source's."""
        inputs, self._stop = list[torch.Tensor | None](), self._start + 1
        for ids, given in zip(self._batches, self._inputs, strict=True):
            self._given = given
            self._causal.hidden(ids)
            inputs.append(self._left)
        self._inputs, self._start, self._stop = inputs, self._stop, len(self._causal.blocks)

    def rewind(self) -> None:
        """To the embedding."""
        self._start, self._stop, self._given = 0, len(self._causal.blocks), None
        self._inputs = [None] * len(self._batches)

    def _forward(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        hidden, rest = (args[0], args[1:]) if args else (kwargs.pop(HIDDEN), ())
        if not self._start <= index < self._stop:
            return (hidden, *(None,) * (self._parts[index] - 1)) if self._parts[index] else hidden
        if index == self._start and self._given is not None:
            hidden = self._given
        out = forward(hidden, *rest, **kwargs)
        self._parts[index] = len(out) if isinstance(out, tuple) else 0
        if index == self._stop - 1:
            self._left = hidden_of(out)
        return out


def _judged(last: torch.Tensor) -> torch.Tensor:
    """The second half of each sequence, F32[n, hidden]."""
    return last[:, last.shape[1] // 2 :].reshape(-1, last.shape[-1])


class _Truth:
    """What the source predicts, some tokens at a time: logits and probabilities, F32[n, vocab] each."""

    def __init__(self, causal: Causal, last: torch.Tensor) -> None:
        self._causal = causal
        logits = [causal.logits(part) for part in torch.split(last, LOGIT_ROWS)]
        self._parts = [(part, part.softmax(-1)) for part in logits]

    def divergences(self, last: torch.Tensor) -> torch.Tensor:
        """Of each token, F64[n], of F32[n, hidden]: log(sum(p exp(d))) - sum(p d), where logits differ by d. All of it is
        small, so that float32 tells a divergence of 1e-7."""
        found = []
        for part, (logits, p) in zip(torch.split(last, LOGIT_ROWS), self._parts, strict=True):
            apart = self._causal.logits(part) - logits
            shift = _dot(p, apart)
            found.append(_dot(p, apart.expm1_()).log1p() - shift)
        return torch.cat(found)


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Of each row of F32[n, vocab], F64[n]."""
    dots: torch.Tensor = torch.linalg.vecdot(left, right)
    return dots.double()

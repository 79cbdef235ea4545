"""A source that learns to predict as it did while its linears' inputs are rounded, and to have no outliers in their outputs.

Decoder blocks learn; embedding, final norm and head stay. A block keeps only its input for the way back, where it runs again.
Beside the weights in float32 there are two moments of each, and one gradient, whose memory then keeps the weight before the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from quantize.checkpoint import Checkpoint
from quantize.model_config import block_index
from quantize.progress import track
from quantize.source.divergence import Divergence
from quantize.source.fake_quant import SHARES, fake_quantize, kurtosis, rounding_errors
from quantize.source.freed import return_freed
from quantize.source.named import named_model
from quantize.source.walk import check_ids
from quantize.types import F32, I64

MOMENTUM, MEMORY, LEAST_SPREAD = 0.9, 0.98, 1e-10  # Adam's
CLIP_RATE = 20.0  # of their range, times the rate of weights
CLOSEST = 1e-3  # of the first range: clips come no nearer to one another
NARROWEST = 1e-6  # such a range by the size of its values, where all inputs are the same
FITTED = 4  # sequences that the first clips are fitted to

Enter = Callable[[int, str, torch.Tensor], torch.Tensor | None]  # (site, linear, input) -> what it gets instead
Leave = Callable[[str, torch.Tensor], None]  # (linear, output)


class Tails(NamedTuple):
    """Of one linear: kurtosis of its inputs, outputs and weights, and by how much its largest input exceeds their root mean
    square."""

    inputs: float
    outputs: float
    weights: float
    peak: float


class Learner:
    """The source over I64[sequences, length], rounding the inputs of every linear of a decoder block to ``bits``.

    Linears that read the same input have the same clips. ``penalty``: nats that a unit of kurtosis costs, of any linear's output.
    Raises CheckpointError and CalibrationError for a source, or tokens, that torch cannot run.
    """

    def __init__(self, source: Checkpoint, tokens: I64, bits: int, penalty: float) -> None:
        check_ids(source, tokens)
        named = named_model(source, tokens, paged=False)
        self._causal, self._bits, self._penalty = named.causal, bits, penalty
        self._tokens = torch.from_numpy(np.ascontiguousarray(tokens))
        self._sites = {name: site for site, names in enumerate(named.sites) for name in names}
        self._weights = {name: named.whole[name] for name in source.specs if block_index(name) is not None}
        self._enter: Enter = _as_it_is
        self._leave: Leave = _unseen
        self._own, self._terms = list[torch.Tensor](), list[torch.Tensor]()
        self._hook()
        with torch.no_grad():
            runs = track(range(len(tokens)), "running the source")
            self._taught = torch.cat([self._causal.hidden(self._tokens[index : index + 1]) for index in runs])
            self._clips = nn.Parameter(self._fitted(range(min(FITTED, len(tokens)))))
        self._closest = (self._clips[:, 1] - self._clips[:, 0]).detach() * CLOSEST
        self._divergence = Divergence(self._causal, self._causal.head.detach())
        self._enter, self._leave = self._rounded, self._judged
        for one in self._weights.values():
            one.requires_grad_()
        self._adam = _Adam([*self._weights.values(), self._clips])

    @property
    def steps(self) -> int:
        """Those that count."""
        return self._adam.steps

    @property
    def weights(self) -> dict[str, F32]:
        """All that learns, by name: views in Hugging Face row order, which may be written to."""
        return {name: one.detach().numpy() for name, one in self._weights.items()}

    @property
    def clips(self) -> dict[str, tuple[float, float]]:
        """(low, high) by weight name."""
        found = self._clips.tolist()
        return {name: (found[site][0], found[site][1]) for name, site in self._sites.items()}

    def loss(self, sequences: Sequence[int], rounded: bool = True) -> float:
        """Mean KL divergence from the source over those sequences, in nats per token; else of the weights alone."""
        self._enter = self._rounded if rounded else _as_it_is
        with torch.no_grad():
            parts = [self._divergence.of(self._hidden(index), *self._wanted(index), None) for index in sequences]
        self._enter = self._rounded
        return sum(parts) / len(parts)

    def step(self, sequence: int, rate: float) -> bool:
        """Move all that learns down the slope of one sequence's loss by about ``rate``; clips by CLIP_RATE times that share of
        their range.

        False if that cannot be: the loss or its slope is not finite. If it is the loss, the step before is taken back.
        """
        self._terms.clear()
        last = self._hidden(sequence)
        slope = torch.empty_like(last)
        loss = self._divergence.of(last.detach(), *self._wanted(sequence), slope)
        if not math.isfinite(loss + sum(float(term.detach()) for term in self._terms)):
            self.take_back()
            return False
        self._adam.forget()
        costs = [torch.full_like(term, self._penalty) for term in self._terms]
        torch.autograd.backward([last, *self._terms], [slope, *costs])
        ranges = (self._clips[:, 1] - self._clips[:, 0]).detach()
        moved = self._adam.move([*[rate] * len(self._weights), (CLIP_RATE * rate) * ranges[:, None]])
        self._keep_apart()
        return_freed()
        return moved

    def take_back(self) -> None:
        """The last step, if there was one."""
        self._adam.take_back()

    def finish(self) -> None:
        """No more steps: the memory that they take is free."""
        self._adam.finish()
        return_freed()

    def tails(self, sequences: Sequence[int]) -> dict[str, Tails]:
        """By linear, means over those sequences; nothing is rounded."""
        seen = {name: list[tuple[float, float, float]]() for name in self._sites}
        inputs = dict[str, torch.Tensor]()

        def enter(_site: int, name: str, x: torch.Tensor) -> None:
            inputs[name] = x

        def leave(name: str, out: torch.Tensor) -> None:
            x = inputs.pop(name)
            peak = x.abs().max() / x.square().mean().sqrt().clamp_min(torch.finfo(x.dtype).tiny)
            seen[name].append((float(kurtosis(x)), float(kurtosis(out)), float(peak)))

        self._enter, self._leave = enter, leave
        with torch.no_grad():
            for index in sequences:
                self._hidden(index)
            weights = {name: float(kurtosis(self._weights[name])) for name in seen}
        self._enter, self._leave = self._rounded, self._judged
        means = {name: [float(mean) for mean in np.mean(rows, 0)] for name, rows in seen.items()}
        return {name: Tails(one[0], one[1], weights[name], one[2]) for name, one in means.items()}

    def _hidden(self, sequence: int) -> torch.Tensor:
        return self._causal.hidden(self._tokens[sequence : sequence + 1])

    def _wanted(self, sequence: int) -> tuple[torch.Tensor, int]:
        return self._taught[sequence : sequence + 1], self._tokens.shape[1]

    def _hook(self) -> None:
        """Every linear is seen, and every block forgets what is in it."""
        own = {id(self._weights[name]): name for name in self._sites}
        for block in self._causal.blocks:
            block.forward = self._forgetful(block.forward)
            for module in block.modules():
                name = own.get(id(getattr(module, "weight", None)))
                if name is not None:
                    self._watch(module, name)

    def _watch(self, module: nn.Module, name: str) -> None:
        def before(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
            return self._enter(self._sites[name], name, args[0])

        def after(_module: nn.Module, _args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            self._leave(name, out)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _forgetful(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """That block's forward, which also gives the kurtosis of each of its linears' outputs to ``_terms``."""

        def run(*args: Any, **kwargs: Any) -> tuple[Any, ...]:  # noqa: ANN401 - whatever a block takes
            self._own.clear()
            return forward(*args, **kwargs), *self._own

        def called(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            out, *terms = checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
            self._terms += terms
            return out

        return called

    def _rounded(self, site: int, _name: str, x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, self._clips[site], self._bits)

    def _judged(self, _name: str, out: torch.Tensor) -> None:
        if self._penalty and torch.is_grad_enabled():
            self._own.append(kurtosis(out))

    def _fitted(self, sequences: Sequence[int]) -> torch.Tensor:
        """Clips F32[sites, 2]: of the SHARES of each input's range the one that rounds these sequences with the least error."""
        firsts = {site: name for name, site in reversed(self._sites.items())}
        extremes = torch.tensor([[math.inf, -math.inf]]).repeat(len(firsts), 1)
        errors = torch.zeros(len(firsts), len(SHARES))

        def widen(site: int, name: str, x: torch.Tensor) -> None:
            if name == firsts[site]:
                extremes[site, 0] = torch.minimum(extremes[site, 0], x.min())
                extremes[site, 1] = torch.maximum(extremes[site, 1], x.max())

        def judge(site: int, name: str, x: torch.Tensor) -> None:
            if name == firsts[site]:
                errors[site] += rounding_errors(x, extremes[site], self._bits)

        for see in (widen, judge):
            self._enter = see
            for index in sequences:
                self._hidden(index)
            extremes[:, 1].clamp_(min=extremes[:, 0] + NARROWEST * (1 + extremes[:, 0].abs()))
        return extremes * torch.tensor(SHARES)[errors.argmin(1)][:, None]

    def _keep_apart(self) -> None:
        """Clips that came too near, or crossed, are led as far from their middle as they may be near."""
        clips = self._clips.data
        middle, half = clips.mean(1), torch.maximum((clips[:, 1] - clips[:, 0]) / 2, self._closest / 2)
        near = clips[:, 1] - clips[:, 0] < self._closest
        clips.copy_(torch.where(near[:, None], torch.stack([middle - half, middle + half], 1), clips))


def _as_it_is(_site: int, _name: str, _x: torch.Tensor) -> None:
    return None


def _unseen(_name: str, _out: torch.Tensor) -> None:
    return None


class _Adam:
    """Of some parameters; what they were before the last step is kept until ``forget``."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.steps, self._parameters = 0, parameters
        self._mean = [torch.zeros_like(one) for one in parameters]
        self._square = [torch.zeros_like(one) for one in parameters]
        self._before = list[torch.Tensor]()

    @torch.no_grad()
    def move(self, rates: Sequence[float | torch.Tensor]) -> bool:
        """One step, each by its own rate, by gradients that there are no more afterwards. False, and nothing, where one is not
        finite."""
        gradients = list(self._taken())
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            return False
        self.steps += 1
        for index, gradient in enumerate(gradients):
            parameter, mean, square = self._parameters[index], self._mean[index], self._square[index]
            mean.lerp_(gradient, 1 - MOMENTUM)
            square.lerp_(gradient.square(), 1 - MEMORY)
            self._before.append(gradient.copy_(parameter))
            spread = (square / (1 - MEMORY**self.steps)).sqrt_().add_(LEAST_SPREAD)
            parameter.sub_(mean / spread * (rates[index] / (1 - MOMENTUM**self.steps)))
        return True

    def forget(self) -> None:
        """From now on there is nothing to go back to."""
        self._before.clear()

    @torch.no_grad()
    def take_back(self) -> None:
        """Parameters as they were before the last step, if that is known; no more steps are to follow."""
        for parameter, before in zip(self._parameters, self._before, strict=False):
            parameter.copy_(before)
        self.steps -= bool(self._before)
        self.forget()

    def finish(self) -> None:
        """No more steps."""
        for held in (self._mean, self._square, self._before):
            held.clear()

    def _taken(self) -> Iterator[torch.Tensor]:
        for parameter in self._parameters:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            yield gradient

"""Values as they are once rounded to a few bits, with gradients for the two clips between which they lie (arXiv 2404.03605).

With L = 2^bits - 1 steps between the clips low and high, u = (x - low) L / (high - low) is rounded and led back. What rounding
leaves, d = (u - round(u)) / L of the range, is what the clips are moved by; beyond a clip its own gradient is the output's.
"""

from __future__ import annotations

from typing import Any

import torch

LEAST = 1e-20  # of a variance: what is the same everywhere has no tails, and no slope that float32 does not hold
SHARES = tuple(0.8**power for power in range(20))  # of the whole range, among which a first pair of clips is chosen


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clips: torch.Tensor, bits: int) -> torch.Tensor:  # noqa: ANN401 - torch's own
        ctx.save_for_backward(x, clips)
        ctx.steps = 2**bits - 1
        low, high = clips
        out: torch.Tensor = _places(x, clips, ctx.steps).round() * ((high - low) / ctx.steps) + low
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # noqa: ANN401 - torch's own
        x, clips = ctx.saved_tensors
        (gradient,), (low, high) = gradients, clips
        below, above = x < low, x > high
        outside = below | above
        places = _places(x, clips, ctx.steps)
        left = ((places - places.round()) * gradient).masked_fill(outside, 0).sum() / ctx.steps
        of_clips = torch.stack([gradient[below].sum() + left, gradient[above].sum() - left])
        return gradient.masked_fill(outside, 0), of_clips, None


def _places(x: torch.Tensor, clips: torch.Tensor, steps: int) -> torch.Tensor:
    """u, of what lies between the clips."""
    low, high = clips
    out: torch.Tensor = (x.clamp(low, high) - low) * (steps / (high - low))
    return out


def fake_quantize(x: torch.Tensor, clips: torch.Tensor, bits: int) -> torch.Tensor:
    """F[...] rounded to 2^bits levels from clips[0] to clips[1], F[2]; anything beyond is the nearer clip.

    Backward, ``x`` has the output's gradient between the clips and none beyond.
    """
    out: torch.Tensor = _FakeQuantize.apply(x, clips, bits)  # type: ignore[no-untyped-call]
    return out


def kurtosis(x: torch.Tensor) -> torch.Tensor:
    """Fourth central moment of all values F[...] by the square of the second: 3 of a normal distribution, more of heavy tails."""
    centred = x - x.mean()
    return (centred * (centred.square().mean() + LEAST).rsqrt()).pow(4).mean()


@torch.no_grad()
def rounding_errors(x: torch.Tensor, extremes: torch.Tensor, bits: int) -> torch.Tensor:
    """Sum of squared errors of F[...] for clips that are each of the SHARES of ``extremes`` F[2]: F[shares]."""
    return torch.stack([(fake_quantize(x, extremes * share, bits) - x).square().sum() for share in SHARES])

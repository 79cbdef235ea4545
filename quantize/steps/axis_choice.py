"""AdaDim (arXiv 2309.15531, section 4.2): try both axes for a layer and keep the one with the lower loss."""

from __future__ import annotations

from collections.abc import Mapping

from quantize.types import Axis, AxisChoice


def choose_axis(loss: Mapping[Axis, float]) -> AxisChoice:
    """The candidate with the smallest loss; a tie goes to PER_OC, which every runtime holds natively."""
    axis = min(loss, key=lambda candidate: (loss[candidate], candidate is not Axis.PER_OC))
    return AxisChoice(axis, dict(loss))


def within_slowdown(
    choices: Mapping[str, AxisChoice], cost: Mapping[str, Mapping[Axis, float]], max_slowdown: float
) -> dict[str, AxisChoice]:
    """Take back the PER_IC choices that buy least per second until one decoder layer's decode time fits.

    ``cost``: estimated seconds per tensor and candidate axis. The bound is ``max_slowdown`` times the layer's time with
    every axis PER_OC that may be. Scope losses compare across tensors: each is the error of what attention or MLP adds
    to the residual stream. Output losses compare only roughly.
    """
    kept = dict(choices)
    budget = max_slowdown * sum(per_axis.get(Axis.PER_OC, min(per_axis.values())) for per_axis in cost.values())

    def total() -> float:
        return sum(cost[name][choice.axis] for name, choice in kept.items())

    def gain_per_second(name: str) -> float:
        loss, seconds = kept[name].loss, cost[name]
        extra = seconds[Axis.PER_IC] - seconds[Axis.PER_OC]
        return (loss[Axis.PER_OC] - loss[Axis.PER_IC]) / max(extra, 1e-12)

    both = [name for name, choice in kept.items() if choice.axis is Axis.PER_IC and Axis.PER_OC in choice.loss]
    for name in sorted(both, key=gain_per_second):
        if total() <= budget:
            break
        kept[name] = AxisChoice(Axis.PER_OC, kept[name].loss)
    return kept

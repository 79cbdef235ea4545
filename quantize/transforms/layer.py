"""One decoder layer between reading and rounding: its tensors, in whatever basis they are rounded best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quantize.blocks import dequantize
from quantize.loss import output_loss
from quantize.model_config import LINEARS, ModelConfig
from quantize.rounding import ROUNDERS
from quantize.transforms.fold import Fold
from quantize.types import F32, InputStats, TensorPlan

READERS = {  # of the channels that a norm scales
    "input_layernorm.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "post_attention_layernorm.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
AS_IS = Fold()


@dataclass
class DecoderLayer:
    """Everything by names without ``model.layers.N.``, as in ``mlp.up_proj.weight``; rows of q and k in the target's order."""

    config: ModelConfig
    plans: Mapping[str, TensorPlan]  # of the linears that are quantized
    tensors: dict[str, F32]
    stats: dict[str, InputStats]
    folds: list[Fold] = field(default_factory=list)  # in the order in which they were applied

    @property
    def rounded(self) -> bool:
        """Whether all linears are quantized. Where one stays in floats no fold helps it, and its values would move."""
        return len(self.plans) == len(LINEARS)

    def apply(self, fold: Fold) -> None:
        """Go on in the new basis."""
        self.tensors = {name: fold.tensor(name, value) for name, value in self.tensors.items()}
        self.stats = fold.stats(self.stats)
        self.folds.append(fold)

    def in_source_basis(self, name: str, weight: F32) -> F32:
        """F32[OC, IC] in this layer's basis -> what stands in for the source's weight in the source's model."""
        for fold in reversed(self.folds):
            weight = fold.back(name, weight)
        return weight

    def best(self, candidates: Iterable[Fold]) -> Fold | None:
        """The fold under which the weights that it touches lose least, if that is less than without any.

        RTN finds it, and the planned rounder has to confirm it.
        """
        loss, best = min(((self._loss(fold, fold, False), fold) for fold in candidates), key=lambda found: found[0])
        if not loss < self._loss(best, AS_IS, False):
            return None
        return best if self._loss(best, best, True) < self._loss(best, AS_IS, True) else None

    def _loss(self, touched: Fold, fold: Fold, planned: bool) -> float:
        """Of the weights that ``touched`` touches, rounded under ``fold``: each on the better of its axes."""
        names, total = self.weights(touched), 0.0
        stats = fold.stats({name: self.stats[name] for name in names})
        for name in names:
            plan, weight = self.plans[name], self.tensors[name]
            rounder, folded = ROUNDERS[plan.rounder if planned else "rtn"], fold.tensor(name, weight)
            rounded = (rounder(name, folded, grid, axis, stats[name]) for axis, grid in plan.candidates.items())
            total += min(output_loss(weight, fold.back(name, dequantize(tensor)), self.stats[name]) for tensor in rounded)
        return total

    def weights(self, fold: Fold) -> list[str]:
        """The linears that a fold touches."""
        return [name for name, value in self.tensors.items() if value.ndim > 1 and (name in fold.made or name in fold.read)]

"""Gains of the norms once the linears behind them are rounded: Norm Tweaking (arXiv 2309.02784) in closed form.

Multipliers s of the gain that minimize ``|(W - Q diag(s)) x|**2 + damping |s - 1|**2``, x the inputs with E[x xT] = H::

    ((QT Q) o H + damping I) s = diag(QT W H) + damping 1        summed over the linears that share the norm
"""

from __future__ import annotations

import numpy as np

from quantize.architecture.families import FoldSites
from quantize.block import Block
from quantize.fold import Basis
from quantize.loss import output_loss
from quantize.types import F32

DAMPING = 0.01  # of the mean diagonal


def norm_gains(block: Block, at: FoldSites) -> dict[str, F32]:
    """New gains by name, for the norms where they lower the loss of the rounded weights behind them."""
    out = {}
    for norm, linears in at.norms.items():
        pairs = {name: (block.tensors[name], block.stored(name, block.rounded[name].tensor).dense()) for name in linears}
        if block.stats[linears[0]].hessian.ndim == 1:  # a diagonal alone does not say which channel makes up for which
            continue
        factors = _factors(list(pairs.values()), block.stats[linears[0]].hessian)
        tuned, plain = (
            sum(output_loss(weight, other * factor, block.stats[name]) for name, (weight, other) in pairs.items())
            for factor in (factors, np.float32(1))
        )
        if tuned < plain:
            out[norm] = Basis.scaled(factors, at.gain_offset).made(block.tensors[norm])
    return out


def _factors(pairs: list[tuple[F32, F32]], hessian: F32) -> F32:
    """s F32[n] of weights (W, Q) F32[OC, n] that see the same inputs."""
    left, right = np.zeros(hessian.shape), np.zeros(len(hessian))
    for weight, other in pairs:
        left += (other.T @ other) * hessian
        right += np.einsum("oi,oi->i", other, weight @ hessian)
    damping = DAMPING * np.diag(left).mean() + np.finfo(np.float32).tiny
    left[np.diag_indices_from(left)] += damping
    return np.linalg.solve(left, right + damping).astype(np.float32)

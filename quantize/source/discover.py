"""What a decoder block is made of, found in the block itself: it is called once for nothing, and its linears are watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TOKENS = 2
Positions = tuple[torch.Tensor, torch.Tensor]  # rotary cosines and sines


@dataclass(frozen=True)
class Anatomy:
    """Names of modules within a block.

    ``sites``: linears that see the same input, in the order of their calls. ``scopes``: by linear the module whose output
    judges it: the part of the block that it sits in, or itself where its output is that part's. ``output``: the linear whose
    output goes into the block's as it is: what an error costs here, it costs there.
    """

    sites: tuple[tuple[str, ...], ...]
    scopes: Mapping[str, str]
    output: str


@torch.no_grad()
def anatomy_of(block: Any, hidden: int, positions: Positions) -> Anatomy:  # noqa: ANN401 - transformers has no types
    """Of a block with or without memory for its weights; ``hidden``: channels of the residual stream."""
    seen = list[tuple[str, torch.Tensor]]()

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _module, args: seen.append((name, args[0]))

    hooks = [
        module.register_forward_pre_hook(watch(name)) for name, module in block.named_modules() if isinstance(module, nn.Linear)
    ]
    device = next(block.parameters()).device
    cos, sin = (table[:, :TOKENS].to(device) for table in positions)
    block(torch.zeros(1, TOKENS, hidden, device=device), position_embeddings=(cos, sin))
    for hook in hooks:
        hook.remove()
    sites = list[tuple[torch.Tensor, list[str]]]()
    for name, x in seen:
        known = next((names for other, names in sites if other is x), None)
        if known is None:
            sites.append((x, [name]))
        else:
            known.append(name)
    last = {name.partition(".")[0]: name for name, _ in seen}  # of each part
    scopes = {name: name if name in last.values() else name.partition(".")[0] for name, _ in seen}
    return Anatomy(tuple(tuple(names) for _, names in sites), scopes, seen[-1][0])

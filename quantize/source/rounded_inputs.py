"""A model in torch whose linears read their inputs rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from quantize.activations import Rounding


def round_inputs(model: nn.Module, roundings: Mapping[str, Rounding]) -> None:
    """From now on each module of ``roundings``, by name, reads what that makes of F32[..., IC]."""
    for name, rounding in roundings.items():
        model.get_submodule(name).register_forward_pre_hook(_reading(rounding))


def _reading(rounding: Rounding) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    return lambda _module, inputs: (torch.from_numpy(rounding(inputs[0].numpy())), *inputs[1:])

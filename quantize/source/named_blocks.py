"""The decoder blocks of any language model in torch, each with other weights in it, whatever its modules are called.

A block is called with what the model itself calls it with, sequence by sequence: masks, positions and whatever else it takes are
recorded once, as the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from quantize.checkpoint import Checkpoint
from quantize.errors import CheckpointError
from quantize.source.block_student import Costs, Summing, plain_costs
from quantize.source.causal import Causal
from quantize.source.freed import return_freed
from quantize.source.named import WITHOUT, Named, named_model
from quantize.source.whole import hidden_of
from quantize.types import F32, I64, Curvature

HIDDEN = "hidden_states"  # the argument, where a model names it


class Call(NamedTuple):
    """What a block is called with beside its first argument, the residual stream [1, length, hidden]."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(eq=False)
class NamedBlock(Summing):
    """A block of a source, into which other weights are put; a ``Student`` of ``quantize.block``.

    By sequence: ``_inputs`` [1, length, hidden] is what the blocks before it give with other weights in them, ``_taught`` what
    the block gives in the source, and ``_calls`` what else it is called with.
    """

    _named: Named
    _forward: Callable[..., Any]
    _calls: list[Call]
    _inputs: list[torch.Tensor]
    _taught: list[torch.Tensor]
    _costs: Costs
    _learning: set[str] = field(default_factory=set)

    @property
    def sequences(self) -> int:
        """How many there are to choose from."""
        return len(self._inputs)

    def holds(self, name: str) -> bool:
        """Whether it has a place for ``name``."""
        return self._named.holds(name)

    def put(self, name: str, weight: F32, learns: bool) -> None:
        """Let F32[...] stand in for ``name``; what is not found in torch's model stays there as it is."""
        self._named.put(name, weight, learns)
        if learns:
            self._learning.add(name)

    @torch.no_grad()
    def outputs(self) -> list[torch.Tensor]:
        """What the next block gets."""
        return [_run(self._forward, hidden, call) for hidden, call in zip(self._inputs, self._calls, strict=True)]

    def output(self, sequence: int) -> torch.Tensor:
        """What the block gives for one, F32[length, hidden]."""
        return _run(self._forward, self._inputs[sequence], self._calls[sequence])[0]

    def take_gradients(self) -> dict[str, F32]:
        """See Summing."""
        return self._named.take_gradients(self._learning)

    def _losses(self, sequences: NDArray[np.intp]) -> Iterator[torch.Tensor]:
        length = self._inputs[0].shape[1]
        tokens = self._costs.tokens.reshape(self.sequences, length)
        for index in sequences:
            error = _run(self._forward, self._inputs[index], self._calls[index])[0] - self._taught[index][0]
            yield (error.square() @ self._costs.channels * tokens[index]).sum() / (len(sequences) * length)
        return_freed()


def block_students(source: Checkpoint, tokens: I64, token_weight: str | Curvature) -> Iterator[NamedBlock]:
    """Each block in turn; what it is left with when the next is asked for counts as this block for the next one's.

    In memory is one block, where ``named_model`` pages the source. Raises CheckpointError as ``named_model`` does, and for a
    model whose blocks are in no list.
    """
    named = named_model(source, tokens)
    blocks = named.causal.blocks
    if not blocks:
        raise CheckpointError(f"{source.path}: torch's model has no list of decoder blocks; {WITHOUT}")
    hidden, calls = _recorded(named.causal, tokens)
    changed = hidden
    for index, block in enumerate(blocks):
        with named.held(index):
            with torch.no_grad():
                taught = [_run(block.forward, each, call) for each, call in zip(hidden, calls[index], strict=True)]
            student = NamedBlock(named, block.forward, calls[index], changed, taught, _costs(token_weight, index, taught))
            yield student
            changed, hidden = student.outputs(), taught
        calls[index] = []


@torch.no_grad()
def _recorded(causal: Causal, tokens: I64) -> tuple[list[torch.Tensor], list[list[Call]]]:
    """What the first block gets, by sequence, and by block and sequence what else each is called with."""
    calls: list[list[Call]] = [[] for _ in causal.blocks]
    hidden = list[torch.Tensor]()

    def record(index: int) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
            first, rest = (args[0], args[1:]) if args else (kwargs[HIDDEN], ())
            if index == 0:
                hidden.append(first)
            calls[index].append(Call(rest, {key: value for key, value in kwargs.items() if key != HIDDEN}))

        return hook

    hooks = [block.register_forward_pre_hook(record(index), with_kwargs=True) for index, block in enumerate(causal.blocks)]
    for sequence in tokens:
        causal.hidden(torch.from_numpy(np.ascontiguousarray(sequence))[None])
    for hook in hooks:
        hook.remove()
    return hidden, calls


def _run(forward: Callable[..., Any], hidden: torch.Tensor, call: Call) -> torch.Tensor:
    return hidden_of(forward(hidden, *call.args, **call.kwargs))


def _costs(token_weight: str | Curvature, index: int, outputs: list[torch.Tensor]) -> Costs:
    """In nats per token where a Curvature tells them; else the mean over channels of the squared error, for "unit" by the mean
    square of the token's output."""
    if isinstance(token_weight, Curvature):
        tokens, channels = token_weight.blocks[index]
        return Costs(torch.from_numpy(tokens), torch.from_numpy(channels))
    return plain_costs(token_weight, torch.cat([output[0] for output in outputs]))

"""Any language model in the memory of one decoder block: the others lie in their files as they are, until they run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from quantize.source.causal import Causal
from quantize.source.freed import return_freed


@contextmanager
def dtypes_of_files() -> Iterator[None]:
    """In the block transformers leaves every weight mapped from its file, in the file's own dtype, whatever dtype it is told.

    The model around them is made for the dtype that it is told, so what it computes beside its weights is not rounded.
    """
    from transformers import PreTrainedModel

    plan = PreTrainedModel._get_dtype_plan
    PreTrainedModel._get_dtype_plan = lambda *_: {"*": None}  # a dtype for names that match; of None nothing is cast
    try:
        yield
    finally:
        PreTrainedModel._get_dtype_plan = plan


class Paged:
    """The blocks of ``causal``, each in float32 while it runs, or is held; what lies outside of them always is.

    On the way back a block runs once more, from its input: nothing else is kept of it.
    """

    def __init__(self, causal: Causal) -> None:
        self._pages = [_Page(causal, block) for block in causal.blocks]
        inside = {key for page in self._pages for key in page.keys}
        for parameter in causal.parameters.values():
            if id(parameter) not in inside:
                parameter.data = _up(parameter.data)
        for buffer in causal.buffers:
            buffer.data = buffer.data.float() if buffer.is_floating_point() else buffer.data

    def held(self, index: int) -> AbstractContextManager[None]:
        """In the block the decoder block ``index`` stays, so that its weights may be changed, and learn. Then they are let go."""
        return self._pages[index].held()


class _Page:
    """A decoder block. What is brought in are other parameters, not other data of these: what torch keeps of a parameter for the
    way back would change with its data."""

    def __init__(self, causal: Causal, block: Any) -> None:  # noqa: ANN401 - transformers has no types
        self._causal, self._forward, self._is_here = causal, block.forward, False
        names = {id(parameter): name for name, parameter in causal.parameters.items()}
        self._lying = {id(parameter): parameter for parameter in block.parameters()}
        self._names = {key: names[key] for key in self._lying}
        self._slots = [
            (module, leaf, id(parameter))
            for module in block.modules()
            for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        ]
        block.forward = self._run

    @property
    def keys(self) -> Collection[int]:
        """What parameters it has, by their ``id``."""
        return self._lying.keys()

    def _run(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if self._is_here or not torch.is_grad_enabled():
            return self._once(*args, **kwargs)
        return checkpoint(self._once, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def _once(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with self.held():
            return self._forward(*args, **kwargs)

    @contextmanager
    def held(self) -> Iterator[None]:
        if self._is_here:
            yield
            return
        self._bring({key: nn.Parameter(_up(one.data), requires_grad=False) for key, one in self._lying.items()})
        self._is_here = True
        try:
            yield
        finally:
            self._bring(self._lying)
            self._is_here = False
            return_freed()

    def _bring(self, parameters: Mapping[int, nn.Parameter]) -> None:
        for module, leaf, key in self._slots:
            setattr(module, leaf, parameters[key])
        self._causal.replace({name: parameters[key] for key, name in self._names.items()})


def _up(data: torch.Tensor) -> torch.Tensor:
    """A copy in float32, where torch likes it to lie: sums depend on that."""
    return data.to(torch.float32, copy=True)

"""Any language model that transformers runs, whatever its modules are called: its two halves, and its products watched.

No module is asked for by name. A product is seen where torch computes it, and the weight in it is found by where it lies.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from quantize.errors import CheckpointError, asked, shown

ROWS_FIRST = {functional.linear}  # x @ W.T
COLUMNS_FIRST = {torch.matmul, torch.mm, torch.addmm, torch.bmm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__}


class Weight(NamedTuple):
    """A matrix [OC, IC] that something is multiplied by: ``parameter``, whole, transposed or one of a stack."""

    parameter: str
    offset: int  # elements before it
    shape: tuple[int, int]  # (OC, IC)
    transposed: bool  # as it lies

    def within(self, values: torch.Tensor) -> torch.Tensor:
        """Of the parameter's values, or of their gradients: a view [OC, IC]."""
        rows, columns = self.shape
        flat = values.view(-1)[self.offset : self.offset + rows * columns]
        return flat.view(columns, rows).T if self.transposed else flat.view(rows, columns)


class Causal:
    """A language model in eval mode: ``hidden`` and then ``logits`` give what it gives.

    ``embedding`` and ``head``: its tables. Raises ValueError for a model that is not of two halves.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers has no types
        self._model, self._body = model.eval(), model.base_model
        found = model.get_input_embeddings(), model.get_output_embeddings()
        if self._body is model or None in found:
            raise ValueError("transformers knows no body, no embedding or no head of it")
        self.embedding: nn.Parameter = found[0].weight
        self.head: nn.Parameter = found[1].weight
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.buffers: list[torch.Tensor] = list(model.buffers())
        self._given: Any = None
        self._places: list[tuple[int, int, str]] = []

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """What the head sees, F32[batch, length, hidden], of I64[batch, length]."""
        self._given = self._body(input_ids=ids, use_cache=False)
        last: torch.Tensor = self._given.last_hidden_state
        return last

    def logits(self, last: torch.Tensor) -> torch.Tensor:
        """F32[n, vocab] of F32[n, hidden], by the model's own forward; ``hidden`` was called before."""
        instead = type(self._given)(**{**self._given, "last_hidden_state": last[None]})
        self._body.forward = lambda *_, **__: instead
        try:
            ids = torch.zeros((1, len(last)), dtype=torch.int64)
            out: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
        finally:
            del self._body.forward
        return out

    def following(self, ids: torch.Tensor, memory: object) -> tuple[torch.Tensor, object]:
        """Logits F32[batch, vocab] of what follows I64[batch, length], and what to remember of it.

        ``memory``: that of the tokens before, None at first. Raises CheckpointError for a model that remembers nothing.
        """
        given = self._model(input_ids=ids, past_key_values=memory, use_cache=True)
        if getattr(given, "past_key_values", None) is None:
            named = shown(self._model.config.model_type)
            raise CheckpointError(f"{named}: keeps no keys and values in torch, so it writes no text; give {asked('data.text')}")
        return given.logits[:, -1].float(), given.past_key_values

    @property
    def blocks(self) -> Sequence[Any]:
        """Its decoder blocks: of lists of modules the one with as many."""
        count = self._model.config.get_text_config(decoder=True).num_hidden_layers
        lists = (one for one in self._body.modules() if isinstance(one, nn.ModuleList))
        return next((list(one) for one in lists if len(one) == count), [])

    def matrix(self, weight: Weight) -> torch.Tensor:
        """It as F32[OC, IC], a view where it lies in float32."""
        return weight.within(self.parameters[weight.parameter].data).float()

    def replace(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """To be told of those that stand for others in the model from now on."""
        self.parameters |= parameters
        self._places = []

    def place(self, weight: torch.Tensor) -> tuple[str, int] | None:
        """The parameter that it is a part of, and how many elements are before it; None for another tensor."""
        if not self._places:
            parameters = self.parameters.items()
            self._places = sorted((one.data_ptr(), one.numel() * one.element_size(), name) for name, one in parameters)
        index = bisect_right(self._places, (weight.data_ptr(), 1 << 62, "")) - 1
        if index < 0:
            return None
        start, size, name = self._places[index]
        before = weight.data_ptr() - start
        return (name, before // weight.element_size()) if before < size else None

    @contextmanager
    def watched(self, see: See) -> Iterator[None]:
        """In the block ``see`` is told of every product of a parameter, and of look-ups in the embedding."""
        with _Watch(self, see):
            yield


See = Callable[[Weight | None, torch.Tensor, torch.Tensor], None]  # (weight, x [..., IC], output); None: a look-up, x are ids


class _Watch(TorchFunctionMode):
    def __init__(self, causal: Causal, see: See) -> None:
        super().__init__()
        self._causal, self._see, self._embedding = causal, see, causal.embedding.data_ptr()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        if func is functional.embedding:
            if args[1].data_ptr() == self._embedding:
                self._see(None, args[0], out)
        elif func in ROWS_FIRST:
            self._tell(args[1], args[0], out, columns_first=False)
        elif func in COLUMNS_FIRST:
            x, weight = args[-2:]
            self._tell(weight, x, out, columns_first=True)
        return out

    def _tell(self, weight: torch.Tensor, x: torch.Tensor, out: torch.Tensor, columns_first: bool) -> None:
        """``columns_first``: the product is ``x @ weight``, not ``x @ weight.T``."""
        place = self._causal.place(weight)
        if place is not None and weight.ndim == 2:
            rows, columns = weight.shape[::-1] if columns_first else weight.shape
            self._see(Weight(*place, (rows, columns), columns_first == weight.is_contiguous()), x, out)

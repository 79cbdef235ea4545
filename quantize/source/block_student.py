"""One decoder block with other weights in it, and how far its output is from the source's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantize.source.freed import return_freed
from quantize.source.whole import change, hidden_of, take_gradients
from quantize.types import F32, Curvature

BATCH = 2  # sequences that go through the block together


@dataclass(frozen=True)
class Costs:
    """What a squared error of a decoder block's output costs: F32[tokens] by F32[hidden]."""

    tokens: torch.Tensor
    channels: torch.Tensor


def output_costs(token_weight: str | Curvature, linear: str, outputs: torch.Tensor) -> Costs:
    """Of the block whose last is ``linear``, with those F32[sequences, length, hidden], for the token weights of ``walk_blocks``.

    In nats per token where a Curvature tells them; else the mean over channels of the squared error, for "unit" by the mean
    square of the token's output.
    """
    flat = outputs.reshape(-1, outputs.shape[-1])
    if isinstance(token_weight, Curvature):
        costly, channels = token_weight.tokens[linear], token_weight.rows[linear]
        return Costs(torch.from_numpy(costly), torch.from_numpy(channels))
    return plain_costs(token_weight, flat)


def plain_costs(token_weight: str, flat: torch.Tensor) -> Costs:
    """Of outputs F32[tokens, hidden], without curvature."""
    mean_square = flat.square().mean(1).clamp_min(1e-20)
    tokens = mean_square.reciprocal() if token_weight == "unit" else torch.ones_like(mean_square)
    return Costs(tokens, torch.full(flat.shape[1:], 1 / flat.shape[1]))


class Summing(ABC):
    """Of a ``Student`` of ``quantize.block``: what it says of a loss that comes in parts."""

    @property
    @abstractmethod
    def sequences(self) -> int:
        """How many there are to choose from."""

    @abstractmethod
    def holds(self, name: str) -> bool:
        """Whether it has a place for ``name``."""

    @abstractmethod
    def put(self, name: str, weight: F32, learns: bool) -> None:
        """Let F32[...] stand in for ``name``, Hugging Face row order; ``gradients`` covers what ``learns``."""

    @abstractmethod
    def output(self, sequence: int) -> torch.Tensor:
        """What the block gives for one, F32[length, hidden]."""

    @abstractmethod
    def take_gradients(self) -> dict[str, F32]:
        """Those that there are, by name; there are none afterwards."""

    def matching(self) -> Matching:
        """See ``quantize.block``."""
        return Matching(self)

    @abstractmethod
    def _losses(self, sequences: NDArray[np.intp]) -> Iterator[torch.Tensor]:
        """A batch's share of the mean, one after the other."""

    def loss(self, sequences: NDArray[np.intp]) -> float:
        """Mean over those sequences, in nats per token where curvature is known."""
        with torch.no_grad():
            return sum(float(part) for part in self._losses(sequences))

    def gradients(self, sequences: NDArray[np.intp]) -> dict[str, F32]:
        """Of the mean loss over those sequences, for every weight that learns."""
        for part in self._losses(sequences):
            part.backward()  # type: ignore[no-untyped-call]
        return self.take_gradients()


class Matching:
    """A student of ``quantize.block`` that matches the statistics of what ``student`` gave when this was made."""

    def __init__(self, student: Summing) -> None:
        self._student = student
        with torch.no_grad():
            self._wanted = [_statistics(student.output(index)) for index in range(student.sequences)]

    @property
    def sequences(self) -> int:
        """The student's."""
        return self._student.sequences

    def holds(self, name: str) -> bool:
        """As the student does."""
        return self._student.holds(name)

    def put(self, name: str, weight: F32, learns: bool) -> None:
        """As the student does."""
        self._student.put(name, weight, learns)

    def loss(self, sequences: NDArray[np.intp]) -> float:
        """The student's."""
        return self._student.loss(sequences)

    def gradients(self, sequences: NDArray[np.intp]) -> dict[str, F32]:
        """Of the mean distance over those sequences, for every weight that learns."""
        for index in sequences:
            (self._distance(index) / len(sequences)).backward()  # type: ignore[no-untyped-call]
        return self._student.take_gradients()

    @torch.no_grad()
    def distance(self, sequences: NDArray[np.intp]) -> float:
        """Mean over those sequences."""
        return float(np.mean([float(self._distance(index)) for index in sequences]))

    def _distance(self, index: int) -> torch.Tensor:
        return (_statistics(self._student.output(index)) - self._wanted[index]).abs().sum(0).mean()


def _statistics(output: torch.Tensor) -> torch.Tensor:
    """F32[length, hidden] -> mean and variance of each channel, F32[2, hidden]."""
    return torch.stack([output.mean(0), output.var(0)])


@dataclass(eq=False)
class BlockStudent(Summing):
    """A block of the source, into which other weights are put; a ``Student`` of ``quantize.block``.

    ``_inputs`` F32[sequences, length, hidden] is what the blocks before it give with other weights in them, ``_taught`` what the
    block gives in the source.
    """

    _block: Any
    _prefix: str
    _positions: tuple[torch.Tensor, torch.Tensor]  # rotary cosines and sines
    _inputs: torch.Tensor
    _taught: torch.Tensor
    _costs: Costs

    @property
    def sequences(self) -> int:
        """How many there are to choose from."""
        return len(self._inputs)

    def holds(self, name: str) -> bool:
        """Whether it has a place for ``name``: for all of a family's block."""
        return name.removeprefix(self._prefix) in dict(self._block.named_parameters())

    def put(self, name: str, weight: F32, learns: bool) -> None:
        """Let F32[...] stand in for ``name``, Hugging Face row order; ``gradients`` covers what ``learns``."""
        change(self._block.get_parameter(name.removeprefix(self._prefix)), weight, learns)

    def output(self, sequence: int) -> torch.Tensor:
        """What the block gives for one, F32[length, hidden]."""
        return self._run(self._inputs[sequence : sequence + 1])[0]

    @torch.no_grad()
    def outputs(self) -> torch.Tensor:
        """What the next block gets, F32[sequences, length, hidden]."""
        return torch.cat([self._run(self._inputs[start : start + BATCH]) for start in range(0, self.sequences, BATCH)])

    def take_gradients(self) -> dict[str, F32]:
        """See Summing."""
        return take_gradients((self._prefix + name, parameter) for name, parameter in self._block.named_parameters())

    def _losses(self, sequences: NDArray[np.intp]) -> Iterator[torch.Tensor]:
        length = self._inputs.shape[1]
        tokens = self._costs.tokens.reshape(self.sequences, length)
        for start in range(0, len(sequences), BATCH):
            rows = torch.from_numpy(sequences[start : start + BATCH])
            error = self._run(self._inputs[rows]) - self._taught[rows]
            yield (error.square() @ self._costs.channels * tokens[rows]).sum() / (len(sequences) * length)
        return_freed()

    def _run(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden_of(self._block(hidden, position_embeddings=self._positions))

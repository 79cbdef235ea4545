"""What is known of the inputs of a stack of experts: each has its own, of the tokens that were sent to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantize.types import F32, I64, InputStats

FEW = 8  # fewer tokens than one for so many channels say nothing of how two channels go together


@dataclass(frozen=True, eq=False)
class ExpertStats:
    """``squares`` F32[experts, IC, IC], mapped or not: the mean of x xT over ``tokens`` I64[experts]; or F32[experts, IC] of an
    importance matrix, its diagonals alone."""

    squares: F32
    tokens: I64

    def of(self, expert: int) -> InputStats:
        """One expert's. One that saw few tokens is known by its channels' own squares alone, one without any by nothing."""
        squares, tokens = np.array(self.squares[expert]), int(self.tokens[expert])
        whole = squares.ndim > 1
        if not tokens:
            squares = np.eye(len(squares), dtype=np.float32) if whole else np.ones_like(squares)
        elif whole and self._few(tokens):
            squares = np.diag(np.diag(squares))
        return InputStats(squares, tokens)

    def rank_poor(self, name: str) -> list[str]:
        """What the store says of the stack ``name``, if there is something to say."""
        few = [expert for expert, tokens in enumerate(self.tokens.tolist()) if self._few(tokens)]
        if not few:
            return []
        none = sum(int(self.tokens[expert] == 0) for expert in few)
        return [
            f"{name}: {len(few)} of {len(self.tokens)} experts saw fewer than {self._least} tokens (the first is {few[0]}), "
            f"{none} none: rounded by their channels' squares alone"
        ]

    @property
    def _least(self) -> int:
        return -(-int(self.squares.shape[-1]) // FEW)

    def _few(self, tokens: int) -> bool:
        return tokens < self._least

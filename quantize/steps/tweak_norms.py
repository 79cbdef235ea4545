"""Norm Tweaking (arXiv 2309.02784): gains of a rounded block's norms, moved until its outputs have the source's statistics.

The distance is, per channel of the block's output, that of the mean and that of the variance over a sequence's tokens. What the
source gives is what its block gives for the same inputs, those that the rounded blocks before it make. Adam takes one step a
sequence, once through the text, and rates grow with depth. Fewer statistics do not mean less error: a block's output on sequences
that no step saw decides whether steps are kept.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from quantize.block import Block, Kit
from quantize.errors import CalibrationError, asked
from quantize.steps.descent import JUDGES, Schedule, judges_of, put_stored
from quantize.steps.fold import APPLIED
from quantize.steps.learn_floats import tune
from quantize.types import Need, PlainTensor
from quantize.weight import weight_of

SPAN = 4  # steps between two judgements
MATCHED = "matched"  # key of a block's report: distance of the statistics and loss of the output, each before and after


@dataclass(frozen=True)
class TweakNorms:
    """Of the block that runs; ``rate`` of the first step in the first block, ``growth`` of it towards the last."""

    rate: float
    growth: float
    name: str = "norm-tweaking"
    needs: Need = Need.LEARNING

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step. Raises CalibrationError for too short a text."""
        student = None if kit.run is None else kit.run.student
        if student is None or block.fold_sites is None:
            return block
        steps = student.sequences - JUDGES
        if steps < 1:
            raise CalibrationError(
                f"{kit.text}: {student.sequences} sequences, but {self.name} needs {JUDGES} to judge by and one to learn from; "
                f"raise {asked('data.tokens')}"
            )
        for name, value in block.tensors.items():  # as the source has them, in whatever basis
            student.put(name, kit.orders.to_source(name, value), learns=False)
        matching = student.matching()
        put_stored(block, student, kit)
        rate = self.rate * (1 + self.growth * kit.depth)
        schedule = Schedule("matching a block", steps, 1, SPAN, kit.seed, lambda _: rate)
        judges = judges_of(student.sequences)
        apart = matching.distance(judges)
        norms = [PlainTensor(name, block.tensors[name], "F32") for name in block.fold_sites.norms]
        found = tune(norms, matching, kit.orders, schedule)
        block = block.reporting(MATCHED, (apart, matching.distance(judges)), (found.before, found.after))
        if not found.after < found.before:
            return block
        gains = {tensor.name: weight_of(tensor) for tensor in found.tensors}
        return replace(block, tensors={**block.tensors, **gains}).reporting(APPLIED, self.name)

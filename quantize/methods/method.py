"""What a method is."""

from __future__ import annotations

from dataclasses import dataclass

from quantize.block import Step
from quantize.rounding import Rounder
from quantize.steps.round import Round
from quantize.types import Need


@dataclass(frozen=True)
class Method:
    """A system: what it does to a block, one step after the other, one of which rounds.

    ``kind``: of the system, in the field's words. ``paper``: where it was published.
    """

    name: str
    kind: str
    paper: str
    steps: tuple[Step, ...]

    @property
    def needs(self) -> Need:
        """The most that any of its steps does."""
        return max(step.needs for step in self.steps)

    @property
    def rounder(self) -> Rounder:
        """That of its step that rounds."""
        return next(step.rounder for step in self.steps if isinstance(step, Round))

"""What a method is, and a system, which is one by its own name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from quantize.block import DividingStep, PlanStep, Step
from quantize.rounding import Rounder
from quantize.steps.columns import FloatColumns
from quantize.steps.divide import MixWidths
from quantize.steps.fold import ChangeBasis
from quantize.steps.round import Round
from quantize.steps.scale_channels import ScaleChannels
from quantize.steps.turn_blocks import TurnBlocks
from quantize.steps.tweak_norms import TweakNorms
from quantize.types import Axis, Need, Target


@dataclass(frozen=True)
class Method:
    """What is done to a block, one step after the other, one of which rounds; before all, steps that plan.

    ``kind``: in the field's words. ``paper``: where it was published. ``axes``: those of a system, which goes by its own name;
    none where a word names them after the method, as gptq-ada. ``block_steps``: of learning, by default, if one of its steps
    learns. ``grids``: its own grid of each width; where none, the target's. ``turns``: whether inputs are turned by Hadamard
    matrices. ``rounders``:
    words of the rounders that may round for it. ``generates``: it calibrates on a text that the source writes itself, by default.
    ``ours``: what in it the paper does not say, or says otherwise. ``simulated``: what of it no runtime does.
    """

    name: str
    kind: str
    paper: str
    steps: tuple[Step | PlanStep | DividingStep, ...]
    axes: tuple[Axis, ...] = ()
    block_steps: int = 0
    grids: Mapping[int, str] = field(default_factory=dict)
    turns: bool = False
    rounders: tuple[str, ...] = ()
    generates: bool = False
    ours: str = ""
    simulated: str = ""

    @property
    def needs(self) -> Need:
        """The most that any of its steps does."""
        return max(step.needs for step in self.steps)

    @property
    def plans(self) -> tuple[PlanStep, ...]:
        """Its steps that choose grids by the weights."""
        return tuple(step for step in self.steps if isinstance(step, PlanStep))

    @property
    def until_rounded(self) -> tuple[Step, ...]:
        """Its steps of a block up to the one that rounds."""
        return self._of_blocks[: self._rounds + 1]

    @property
    def after_rounded(self) -> tuple[Step, ...]:
        """Those that come when every linear's axis is chosen."""
        return self._of_blocks[self._rounds + 1 :]

    @property
    def rounder(self) -> Rounder:
        """That of its step that rounds."""
        return next(step.rounder for step in self.steps if isinstance(step, Round))

    def rounding_by(self, rounder: Rounder) -> Method:
        """The same, which rounds so."""
        return replace(
            self, steps=tuple(replace(step, rounder=rounder) if isinstance(step, Round) else step for step in self.steps)
        )

    @property
    def leaves_parts(self) -> bool:
        """Whether a weight becomes a sum of several."""
        return self.divides is not None or any(isinstance(step, FloatColumns) for step in self.steps)

    @property
    def divides(self) -> DividingStep | None:
        """Its step that makes parts of a weight, none of which reads all channels."""
        return next((step for step in self.steps if isinstance(step, DividingStep)), None)

    @property
    def mixes_widths(self) -> bool:
        """Whether the bits of a weight may be a fraction."""
        return isinstance(self.divides, MixWidths)

    @property
    def turn_blocks(self) -> bool:
        """Whether inputs are turned in blocks, as data say."""
        return any(isinstance(step, TurnBlocks) for step in self.steps)

    def lacks_turns(self, target: Target) -> str | None:
        """None if ``target`` turns inputs as it wants them, else the reason."""
        if self.turns:
            return target.lacks_turns
        return target.lacks_block_turns if self.turn_blocks else None

    @property
    def learns(self) -> bool:
        """Whether it has a step that does."""
        return any(step.needs is Need.LEARNING for step in self.steps)

    @property
    def folds(self) -> bool:
        """Whether it changes a block's basis before it rounds."""
        return any(isinstance(step, ChangeBasis | ScaleChannels) for step in self.steps)

    @property
    def moves_norms(self) -> bool:
        """Whether it has to know a block's norms."""
        return any(isinstance(step, TweakNorms) for step in self.steps)

    @property
    def _of_blocks(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if not isinstance(step, PlanStep | DividingStep))

    @property
    def _rounds(self) -> int:
        return max(index for index, step in enumerate(self._of_blocks) if isinstance(step, Round))

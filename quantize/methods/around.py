"""What options add to any method."""

from __future__ import annotations

from dataclasses import dataclass

from quantize import transforms
from quantize.errors import ConfigError, asked

SELECTIONS = ("scope", "hessian")


@dataclass(frozen=True)
class Around:
    """Transforms by name; what AdaDim's choice of an axis weighs; steps of learning, per block and of the whole model.

    ``tune_steps`` need the whole source in memory, in float32, about four times.
    """

    transforms: tuple[str, ...] = ()
    selection: str = SELECTIONS[-1]
    block_steps: int = 0
    tune_steps: int = 0

    def __post_init__(self) -> None:
        for name in self.transforms:
            if name not in transforms.NAMES:
                raise ConfigError(
                    f"{asked('transforms', (name,), name)}: choose none, all or some of {', '.join(transforms.NAMES)}"
                )
        if self.selection not in SELECTIONS:
            raise ConfigError(f"{asked('selection', self.selection)}: choose one of {', '.join(SELECTIONS)}")
        for option in ("block_steps", "tune_steps"):
            if getattr(self, option) < 0:
                raise ConfigError(f"{asked(option, getattr(self, option))}: must not be negative")

    @property
    def by_scope(self) -> bool:
        """Whether axes are chosen by the outputs of attention and MLP."""
        return self.selection == "scope"

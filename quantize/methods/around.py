"""What options add to any method."""

from __future__ import annotations

from dataclasses import dataclass

from quantize import transforms
from quantize.errors import ConfigError, asked

SELECTIONS = ("scope", "hessian")


@dataclass(frozen=True)
class Around:
    """Transforms by name; what AdaDim's choice of an axis weighs; steps of learning, per block and of the whole model.

    ``float_columns``: input channels that float16 keeps, of a linear that reads the residual stream; as many times more of one
    whose input is wider. ``tune_steps`` need the whole source in memory, in float32, about four times.
    """

    transforms: tuple[str, ...] = ()
    selection: str = SELECTIONS[-1]
    block_steps: int = 0
    tune_steps: int = 0
    float_columns: int = 0

    def __post_init__(self) -> None:
        for name in self.transforms:
            if name not in transforms.NAMES:
                raise ConfigError(
                    f"{asked('transforms', (name,), name)}: choose none, all or some of {', '.join(transforms.NAMES)}"
                )
        if self.selection not in SELECTIONS:
            raise ConfigError(f"{asked('selection', self.selection)}: choose one of {', '.join(SELECTIONS)}")
        for option in ("block_steps", "tune_steps", "float_columns"):
            if getattr(self, option) < 0:
                raise ConfigError(f"{asked(option, getattr(self, option))}: must not be negative")
        if self.float_columns:
            self._check_learns_nothing()

    def _check_learns_nothing(self) -> None:
        """Raises ConfigError for what moves rounded weights afterwards, and knows of no part beside them."""
        corrections = tuple(name for name in self.transforms if name in transforms.CORRECTIONS)
        for option, value in (("block_steps", self.block_steps), ("tune_steps", self.tune_steps), ("transforms", corrections)):
            if value:
                word = ",".join(value) if isinstance(value, tuple) else str(value)
                raise ConfigError(
                    f"{asked(option, value, word)}: moves weights after rounding, which {asked('float_columns')} does not allow; "
                    "drop one of the two"
                )

    @property
    def by_scope(self) -> bool:
        """Whether axes are chosen by the outputs of attention and MLP."""
        return self.selection == "scope"

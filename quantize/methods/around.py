"""What options add to any method."""

from __future__ import annotations

from dataclasses import dataclass

from quantize import transforms
from quantize.errors import ConfigError, asked

ROUNDER_WORDS = ("nearest", "gptq")
SELECTIONS = ("scope", "hessian")
BY_SCOPE, BY_HESSIAN = SELECTIONS


@dataclass(frozen=True)
class Around:
    """Transforms by name; what AdaDim's choice of an axis weighs; steps of learning, per block and of the whole model.

    ``float_columns``: input channels that float16 keeps, of a linear that reads the residual stream; as many times more of one
    whose input is wider; None: none, or as many as a method does that keeps some. ``tune_steps`` need the whole source in memory,
    in float32, about four times. ``rounder``: what rounds for a system that leaves that open; None: the system's own.
    """

    transforms: tuple[str, ...] = ()
    selection: str = BY_HESSIAN
    block_steps: int = 0
    tune_steps: int = 0
    float_columns: int | None = None
    rounder: str | None = None

    def __post_init__(self) -> None:
        for name in self.transforms:
            if name not in transforms.NAMES:
                raise ConfigError(
                    f"{asked('transforms', (name,), name)}: choose none, all or some of {', '.join(transforms.NAMES)}"
                )
        if self.selection not in SELECTIONS:
            raise ConfigError(f"{asked('selection', self.selection)}: choose one of {', '.join(SELECTIONS)}")
        if self.rounder not in (None, *ROUNDER_WORDS):
            raise ConfigError(f"{asked('rounder', self.rounder)}: choose one of {', '.join(ROUNDER_WORDS)}")
        for option in ("block_steps", "tune_steps", "float_columns"):
            if (getattr(self, option) or 0) < 0:
                raise ConfigError(f"{asked(option, getattr(self, option))}: must not be negative")
        if self.float_columns:
            self._check_learns_nothing()

    def _check_learns_nothing(self) -> None:
        """Raises ConfigError for what moves rounded weights afterwards, and knows of no part beside them."""
        mends = self.mends_of_parts
        if mends:
            raise ConfigError(
                f"{asked('float_columns', self.float_columns)}: goes with nothing that moves weights after rounding; give "
                f"{', '.join(mends)}, or drop {asked('float_columns')}"
            )

    @property
    def mends_of_parts(self) -> list[str]:
        """What to give so that nothing moves weights after rounding, of whose parts no such step knows."""
        mends = [asked(option, 0) for option in ("block_steps", "tune_steps") if getattr(self, option)]
        kept = tuple(name for name in self.transforms if name not in transforms.CORRECTIONS)
        if kept != self.transforms:
            mends.append(asked("transforms", kept, ",".join(kept) or "none"))
        return mends

    @property
    def by_scope(self) -> bool:
        """Whether axes are chosen by the outputs of attention and MLP."""
        return self.selection == BY_SCOPE

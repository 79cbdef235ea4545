"""What a user can ask of ``quantize``, and the recipe that changes it for some linears."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantize import methods, transforms
from quantize.effort import DEFAULT
from quantize.errors import SHOWN, ConfigError, asked, shown
from quantize.grids import GRIDS
from quantize.grids.int_affine import SCALE_DTYPES
from quantize.kinds import readable
from quantize.outside import MIB, Door, Size

WHOLE_CHANNEL = 0  # as a group size
GROUP_SIZES = (16, 32, 64, 128, 256, WHOLE_CHANNEL)
EMBEDDING_GROUP = 32
TABLE_BITS = (4, 8)  # of embedding and head on the int grid: what GatherBlockQuantized reads
DEFAULT_BITS = 4
TOKEN_WEIGHTS = ("gradient", "unit", "none")
MOST_RULES = 1000
RECIPE_DOOR = Door(ConfigError, "a recipe holds [[rule]] tables of match and what to change", MIB)


_GROUP_SIZE_WORDS = f"choose one of {', '.join(map(str, GROUP_SIZES[:-1]))} or channel"


@dataclass(frozen=True)
class QuantizeConfig:
    """Everything that a user can ask of ``quantize``. None means the target's default; ``bits``: the grid's own, or 4.

    ``embedding`` is "source" or a grid ("q8_0", "int8", "int4", ...); ``head`` may also be "tied".
    """

    method: str = DEFAULT.method
    bits: int | None = None
    grid: str | None = None
    group_size: int | None = None
    symmetric: bool = False
    scale_dtype: str = SCALE_DTYPES[0]
    embedding: str | None = None
    head: str | None = None
    selection: str = DEFAULT.selection
    token_weight: str = DEFAULT.token_weight
    calibration: str = "builtin"
    calibration_tokens: int = DEFAULT.calibration_tokens
    imatrix: Path | None = None
    recipe: Path | None = None
    seed: int = 0
    allow_fallback: bool = False
    max_slowdown: float = 1.5
    transforms: tuple[str, ...] = ()
    block_steps: int = DEFAULT.block_steps
    tune_steps: int = DEFAULT.tune_steps

    def __post_init__(self) -> None:
        for key, allowed in (("method", methods.WORDS), ("selection", ("scope", "hessian")), ("token_weight", TOKEN_WEIGHTS)):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{asked(key, getattr(self, key))}: choose one of {', '.join(allowed)}")
        for name in self.transforms:
            if name not in transforms.NAMES:
                raise ConfigError(
                    f"{asked('transforms', (name,), name)}: choose none, all or some of {', '.join(transforms.NAMES)}"
                )
        for option, none in (("transforms", asked("transforms", (), "none")), ("block_steps", asked("block_steps", 0))):
            if getattr(self, option) and self.imatrix is not None:
                raise ConfigError(
                    f"{asked(option)}: need the source run over a text, not {asked('imatrix')}; give {none}, "
                    f"or drop {asked('imatrix')}"
                )
        if self.calibration_tokens < 1:
            raise ConfigError(f"{asked('calibration_tokens', self.calibration_tokens)}: must be positive")
        for option in ("block_steps", "tune_steps"):
            if getattr(self, option) < 0:
                raise ConfigError(f"{asked(option, getattr(self, option))}: must not be negative")
        if not self.max_slowdown >= 1:
            raise ConfigError(f"{asked('max_slowdown', self.max_slowdown)}: must be at least 1")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"{asked('seed', self.seed)}: must be a whole number from 0, of 64 bits")
        if self.group_size not in (None, *GROUP_SIZES):
            raise ConfigError(f"{asked('group_size', self.group_size)}: {_GROUP_SIZE_WORDS}")

    def to_json(self) -> dict[str, Any]:
        """For the store's header; a recipe by its content, not by its path."""
        recipe = None if self.recipe is None else read_recipe(self.recipe)
        imatrix = None if self.imatrix is None else readable(self.imatrix.name)
        return {**asdict(self), "calibration": readable(Path(self.calibration).name), "imatrix": imatrix, "recipe": recipe}


class Rule(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One ``[[rule]]``: ``match`` = "*.mlp.down_proj" (a shell pattern over names without .weight) and what to change."""

    match: Annotated[str, msgspec.Meta(min_length=1, max_length=SHOWN)]
    method: str | None = None
    bits: Size | None = None
    grid: str | None = None
    group_size: int | str | None = None
    symmetric: bool | None = None
    scale_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.group_size == "channel":
            self.group_size = WHOLE_CHANNEL
        if self.group_size not in (None, *GROUP_SIZES):
            raise ValueError(f"group_size {shown(self.group_size)}: {_GROUP_SIZE_WORDS}")
        for key, known in (("method", methods.WORDS), ("grid", tuple(GRIDS)), ("scale_dtype", SCALE_DTYPES)):
            if getattr(self, key) not in (None, *known):
                raise ValueError(f"{key} '{shown(getattr(self, key))}'; choose one of {', '.join(known)}")


class Recipe(msgspec.Struct, forbid_unknown_fields=True):
    """``[[rule]]`` tables and nothing else."""

    rule: Annotated[list[Rule], msgspec.Meta(max_length=MOST_RULES)] = msgspec.field(default_factory=list)


def read_recipe(path: Path) -> list[dict[str, Any]]:
    """The rules, as what they change. Raises ConfigError."""
    return [msgspec.to_builtins(rule) for rule in RECIPE_DOOR.toml(path, Recipe).rule]

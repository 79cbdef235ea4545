"""What a user can ask of ``quantize``, and the recipe that changes it for some linears."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantize import methods
from quantize.errors import SHOWN, ConfigError, asked, shown
from quantize.grids import GRIDS
from quantize.grids.int_affine import SCALE_DTYPES
from quantize.kinds import readable
from quantize.methods import Around
from quantize.outside import MIB, Door, Size

WHOLE_CHANNEL = 0  # as a group size
GROUP_SIZES = (16, 32, 64, 128, 256, WHOLE_CHANNEL)
EMBEDDING_GROUP = 32
TABLE_BITS = (4, 8)  # of embedding and head on the int grid: what GatherBlockQuantized reads
DEFAULT_BITS = 4
RANDOM = "random"  # tokens drawn evenly, where no text is needed
BUILTIN = "builtin"  # a text that Python brings along
GENERATED = "generated"  # one that the source writes itself
TOKEN_WEIGHTS = ("gradient", "unit", "none")
SENSITIVITIES = CURVATURE, NOISE = ("curvature", "noise")  # by what an option's loss is told
NOISE_LEVELS, MOST_LEVELS = 3, 8  # of noise's share in a tensor's energy, each twice the one before
MOST_NOISE = 2.0**-6  # the last of them, about what rounding to 3.5 bits makes
NOISE_TOKENS = 2048  # that go through the model for every level of noise in every tensor, where nobody says how many
MOST_BITS = 32  # of a float
MOST_RULES = 1000
Average = Annotated[float, msgspec.Meta(gt=0, le=MOST_BITS)]  # of bits
RECIPE_DOOR = Door(ConfigError, "a recipe holds [[rule]] tables of match and what to change", MIB)


_GROUP_SIZE_WORDS = f"choose one of {', '.join(map(str, GROUP_SIZES[:-1]))} or channel"


@dataclass(frozen=True)
class GridSpec:
    """A grid as it is asked for. None: the target's default; ``bits``: the grid's own, or 4; a fraction is an average of widths.
    ``name``: a key of GRIDS."""

    name: str | None = None
    bits: float | None = None
    group_size: int | None = None
    symmetric: bool = False
    scale_dtype: str = SCALE_DTYPES[0]

    def __post_init__(self) -> None:
        if self.group_size not in (None, *GROUP_SIZES):
            raise ConfigError(f"{asked('group_size', self.group_size)}: {_GROUP_SIZE_WORDS}")
        if isinstance(self.bits, float) and not 0 < self.bits <= MOST_BITS:
            raise ConfigError(f"{asked('bits', self.bits)}: no weight takes so many")


@dataclass(frozen=True)
class DataSpec:
    """What statistics come from: ``tokens`` of a ``text``, drawn by ``seed``; or an importance matrix.

    A text is a file, "builtin", or "generated": what the source writes itself. That and ``token_weight`` "gradient" need the
    whole source in memory once, in float32; of a template whose twin is a folder a block.
    ``max_memory``: bytes that may be taken as if this machine had no more; None: all that it has. What comes out is the same.
    """

    text: str = BUILTIN
    tokens: int = 16384
    seed: int = 0
    token_weight: str = TOKEN_WEIGHTS[0]
    imatrix: Path | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.token_weight not in TOKEN_WEIGHTS:
            raise ConfigError(f"{asked('token_weight', self.token_weight)}: choose one of {', '.join(TOKEN_WEIGHTS)}")
        if self.tokens < 1:
            raise ConfigError(f"{asked('data.tokens', self.tokens)}: must be positive")
        if self.text == GENERATED and self.imatrix is not None:
            raise ConfigError(
                f"{asked('data.text', self.text)}: is a text for the source to run over, which {asked('imatrix')} stands in for; "
                "drop one"
            )
        if self.max_memory is not None and self.max_memory < 1:
            raise ConfigError(f"{asked('max_memory', self.max_memory)}: must be positive")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"{asked('seed', self.seed)}: must be a whole number from 0, of 64 bits")


@dataclass(frozen=True)
class QuantizeConfig:
    """Everything that a user can ask of ``quantize``.

    ``embedding`` is "source" or a grid ("q8_0", "int8", "int4", ...); ``head`` may also be "tied"; None means the target's
    default. ``around``: what is done beside the method.
    """

    method: str = "gptq-ada"
    grid: GridSpec = field(default_factory=GridSpec)
    embedding: str | None = None
    head: str | None = None
    recipe: Path | None = None
    data: DataSpec = field(default_factory=DataSpec)
    around: Around = field(default_factory=Around)
    allow_fallback: bool = False
    max_slowdown: float = 1.5

    def __post_init__(self) -> None:
        for key, kind in (("grid", GridSpec), ("data", DataSpec), ("around", Around)):
            if not isinstance(getattr(self, key), kind):
                raise ConfigError(f"{asked(key, getattr(self, key))}: is not a {kind.__name__}, which holds what it is made of")
        if self.method not in methods.WORDS:
            raise ConfigError(f"{asked('method', self.method)}: choose one of {', '.join(methods.WORDS)}")
        for option, none in (
            ("transforms", asked("transforms", (), "none")),
            ("block_steps", asked("block_steps", 0)),
            ("float_columns", asked("float_columns", 0)),
        ):
            if getattr(self.around, option) and self.data.imatrix is not None:
                raise ConfigError(
                    f"{asked(option)}: need the source run over a text, not {asked('imatrix')}; give {none}, "
                    f"or drop {asked('imatrix')}"
                )
        if not self.max_slowdown >= 1:
            raise ConfigError(f"{asked('max_slowdown', self.max_slowdown)}: must be at least 1")

    def to_json(self) -> dict[str, Any]:
        """For the store's header, under the options' names; a recipe by its content, not by its path."""
        grid, data, around = self.grid, self.data, self.around
        return {
            "method": self.method,
            "bits": grid.bits,
            "grid": grid.name,
            "group_size": grid.group_size,
            "symmetric": grid.symmetric,
            "scale_dtype": grid.scale_dtype,
            "embedding": self.embedding,
            "head": self.head,
            "selection": around.selection,
            "token_weight": data.token_weight,
            "calibration": readable(Path(data.text).name),
            "calibration_tokens": data.tokens,
            "imatrix": None if data.imatrix is None else readable(data.imatrix.name),
            "recipe": None if self.recipe is None else msgspec.to_builtins(read_recipe(self.recipe)),
            "seed": data.seed,
            "allow_fallback": self.allow_fallback,
            "max_slowdown": self.max_slowdown,
            "transforms": around.transforms,
            "block_steps": around.block_steps,
            "tune_steps": around.tune_steps,
            **({"float_columns": around.float_columns} if around.float_columns else {}),
            **({} if around.rounder is None else {"rounder": around.rounder}),
        }


class Rule(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One ``[[rule]]``: ``match`` = "*.mlp.down_proj" (a shell pattern over names without .weight) and what to change."""

    match: Annotated[str, msgspec.Meta(min_length=1, max_length=SHOWN)]
    method: str | None = None
    bits: Size | Average | None = None
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

    def over(self, spec: GridSpec) -> GridSpec:
        """``spec`` with this on top; a rule that changes one of bits and grid does not inherit the other."""
        if self.bits is not None or self.grid is not None:
            spec = replace(spec, name=self.grid, bits=self.bits)
        said = {item.name: getattr(self, item.name, None) for item in fields(GridSpec)}
        return replace(spec, **{key: value for key, value in said.items() if value is not None})


class Recipe(msgspec.Struct, forbid_unknown_fields=True):
    """``[[rule]]`` tables and nothing else."""

    rule: Annotated[list[Rule], msgspec.Meta(max_length=MOST_RULES)] = msgspec.field(default_factory=list)


def read_recipe(path: Path) -> list[Rule]:
    """Raises ConfigError."""
    return RECIPE_DOOR.toml(path, Recipe).rule

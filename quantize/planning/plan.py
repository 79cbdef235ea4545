"""Config, recipe and target become one TensorPlan per tensor, from headers alone: every fallback is decided and listed here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantize import transforms
from quantize.errors import SHOWN, ConfigError, PlanError, shown
from quantize.grids import GRIDS, make_grid
from quantize.grids.int_affine import SCALE_DTYPES
from quantize.kinds import readable
from quantize.model_config import EMBEDDING, HEAD, is_linear
from quantize.outside import MIB, Door, Size
from quantize.planning.effort import DEFAULT
from quantize.types import Axis, Grid, Target, TensorPlan, TensorSpec

METHODS = tuple(f"{rounder}-{axis}" for rounder in ("rtn", "search", "gptq") for axis in ("oc", "ic", "ada"))
AXES = {"oc": (Axis.PER_OC,), "ic": (Axis.PER_IC,), "ada": (Axis.PER_OC, Axis.PER_IC)}
WHOLE_CHANNEL = 0  # as a group size
GROUP_SIZES = (16, 32, 64, 128, 256, WHOLE_CHANNEL)
EMBEDDING_GROUP = 32
FINE_BITS = 8  # a tensor of that many bits has nothing to gain from care
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
        for key, allowed in (("method", METHODS), ("selection", ("scope", "hessian")), ("token_weight", TOKEN_WEIGHTS)):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"--{key.replace('_', '-')} {getattr(self, key)}: choose one of {', '.join(allowed)}")
        for name in self.transforms:
            if name not in transforms.NAMES:
                raise ConfigError(f"--transforms {name}: choose none, all or some of {', '.join(transforms.NAMES)}")
        for option, none, asked in (("--transforms", "none", self.transforms), ("--block-steps", "0", self.block_steps)):
            if asked and self.imatrix is not None:
                raise ConfigError(
                    f"{option}: need the source run over a text, not --imatrix; give {option} {none}, or drop --imatrix"
                )
        if self.calibration_tokens < 1:
            raise ConfigError(f"--calibration-tokens {self.calibration_tokens}: must be positive")
        for option, steps in (("--block-steps", self.block_steps), ("--tune-steps", self.tune_steps)):
            if steps < 0:
                raise ConfigError(f"{option} {steps}: must not be negative")
        if not self.max_slowdown >= 1:
            raise ConfigError(f"--max-slowdown {self.max_slowdown}: must be at least 1")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"--seed {self.seed}: must be a whole number from 0, of 64 bits")
        if self.group_size not in (None, *GROUP_SIZES):
            raise ConfigError(f"--group-size {self.group_size}: {_GROUP_SIZE_WORDS}")

    def to_json(self) -> dict[str, Any]:
        """For the store's header; a recipe by its content, not by its path."""
        recipe = None if self.recipe is None else _read_recipe(self.recipe)
        imatrix = None if self.imatrix is None else readable(self.imatrix.name)
        return {**asdict(self), "calibration": readable(Path(self.calibration).name), "imatrix": imatrix, "recipe": recipe}


@dataclass(frozen=True)
class ModelPlan:
    """Everything that was decided before any weight is rounded.

    A plan for a file's size has more for the store: ``budget`` for the header, and files beside the source's ``assets``.
    """

    config: QuantizeConfig
    target: Target
    layers: list[TensorPlan]
    budget: Mapping[str, Any] | None = None
    assets: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Choice:
    """What was asked for one tensor: the config with a recipe's rule on top."""

    method: str
    bits: int | None
    grid: str | None
    group_size: int | None
    symmetric: bool
    scale_dtype: str


def build_plan(specs: Mapping[str, TensorSpec], config: QuantizeConfig, target: Target) -> list[TensorPlan]:
    """One TensorPlan per tensor in ``specs``, in its order, and the head if it is split off a tied embedding.

    Raises ConfigError for contradictions, PlanError for a shape that fits no allowed grid.
    """
    rules = [] if config.recipe is None else _read_recipe(config.recipe)
    unused = set(range(len(rules)))
    plans = []
    for name, spec in _with_head(specs, config).items():
        if name in (EMBEDDING, HEAD):
            plans.append(_plan_table(spec, config, target))
        elif is_linear(name) and len(spec.shape) == 2:
            choice, used = _choose(spec.name, config, rules)
            unused -= used
            plans.append(_plan_linear(spec, choice, config.allow_fallback, target))
        else:
            plans.append(TensorPlan(name, spec.shape))
    for index in sorted(unused):
        raise ConfigError(
            f"{config.recipe}: rule[{index}], match '{shown(rules[index]['match'])}', names no linear of this model"
        )
    return plans


def plan_notes(plans: Iterable[TensorPlan], config: QuantizeConfig, target: Target) -> list[str]:
    """What the summary has to say: every fallback, every axis that was no candidate, what ``ada`` means here."""
    plans = list(plans)
    notes = [f"{plan.name}: {plan.note}" for plan in plans if plan.note]
    grids = [grid for plan in plans for grid in plan.candidates.values()]
    if config.method.endswith("-ada") and all(target.lacks(grid, Axis.PER_IC) is not None for grid in grids):
        notes.insert(0, f"{target.name} holds no per-IC groups: {config.method} means {config.method[:-3]}oc here")
    return notes


def _with_head(specs: Mapping[str, TensorSpec], config: QuantizeConfig) -> dict[str, TensorSpec]:
    out, tied = dict(specs), HEAD not in specs
    if config.head == "tied" and not tied:
        raise ConfigError("--head tied: this model's head differs from its embedding; drop --head or name a grid")
    if tied and config.head not in (None, "tied"):
        out[HEAD] = replace(specs[EMBEDDING], name=HEAD)
    return out


def _plan_table(spec: TensorSpec, config: QuantizeConfig, target: Target) -> TensorPlan:
    """Embedding and head: RTN per output channel (a token's row), on a grid of their own."""
    asked = config.embedding if spec.name == EMBEDDING else (config.head or config.embedding)
    option = "--embedding" if spec.name == EMBEDDING else "--head"
    if asked == "source":
        return as_floats(spec)
    grid = _table_grid(asked, option, config.scale_dtype, target)
    lack = target.lacks(grid, Axis.PER_OC)
    if lack is not None:
        raise ConfigError(f"{option} {asked}: {lack}; drop {option}")
    reason = target.refuses(grid, Axis.PER_OC, (spec.shape[0], spec.shape[1]))
    if reason is None:
        return TensorPlan(spec.name, spec.shape, {Axis.PER_OC: grid}, table_rounder(grid, config))
    if not config.allow_fallback:
        raise PlanError(f"{spec.name}: {reason}; pass {option} source, or --allow-fallback")
    return as_floats(spec, reason)


def table_rounder(grid: Grid, config: QuantizeConfig) -> str:
    """GPTQ for an embedding or a head where it is coarse, and where gradients say what its errors cost."""
    careful = config.method.startswith("gptq") and config.token_weight == "gradient" and grid.bits < FINE_BITS
    return "gptq" if careful else "rtn"


def as_floats(spec: TensorSpec, reason: str | None = None) -> TensorPlan:
    """The source's own values, whatever they are; those of a quantized source need float32."""
    dtype = spec.dtype if spec.dtype in ("F16", "BF16") else "F32"
    return TensorPlan(spec.name, spec.shape, dtype=dtype, note="" if reason is None else f"{reason}; kept as {dtype}")


def _table_grid(asked: str | None, option: str, scale_dtype: str, target: Target) -> Grid:
    name = target.grid_name(8) if asked is None else asked
    if name.startswith("int"):
        bits = name[3:] or "8"
        if bits not in map(str, TABLE_BITS):
            raise ConfigError(f"{option} {name}: choose source, int4, int8 or one of {', '.join(list(GRIDS)[1:])}")
        return make_grid("int", int(bits), EMBEDDING_GROUP, scale_dtype=scale_dtype)
    grid = GRIDS.get(name)
    if grid is None or isinstance(grid, type):
        raise ConfigError(f"{option} {name}: choose source, int4, int8 or one of {', '.join(list(GRIDS)[1:])}")
    return grid


def _choose(name: str, config: QuantizeConfig, rules: list[dict[str, Any]]) -> tuple[_Choice, set[int]]:
    """The first rule that matches wins; returns it and which rules matched."""
    choice = _Choice(config.method, config.bits, config.grid, config.group_size, config.symmetric, config.scale_dtype)
    matching = [i for i, rule in enumerate(rules) if fnmatchcase(name.removesuffix(".weight"), rule["match"])]
    if not matching:
        return choice, set()
    rule = {key: value for key, value in rules[matching[0]].items() if key != "match"}
    if rule.keys() & {"bits", "grid"}:  # a rule that changes one of the two must not inherit the other
        choice = replace(choice, grid=None, bits=None)
    return replace(choice, **rule), set(matching)


def _plan_linear(spec: TensorSpec, choice: _Choice, allow_fallback: bool, target: Target) -> TensorPlan:
    shape = (spec.shape[0], spec.shape[1])
    rounder, _, axis_word = choice.method.partition("-")
    grids = {axis: _linear_grid(choice, axis, shape, target) for axis in Axis}
    _check_held(spec, choice, grids, target)
    held = [axis for axis in AXES[axis_word] if target.lacks(grids[axis], axis) is None]
    reasons = {axis: target.refuses(grids[axis], axis, shape) for axis in held}
    told = "; ".join(f"{axis} {reason}" for axis, reason in reasons.items() if reason is not None)
    fitting = {axis: grids[axis] for axis in held if reasons[axis] is None}
    if fitting:
        return TensorPlan(spec.name, spec.shape, fitting, rounder, note=f"no candidate: {told}" if told else "")
    if not allow_fallback:
        raise PlanError(f"{spec.name} {shape[0]}x{shape[1]}: {told}; pass --allow-fallback to store it as what fits")
    grid: Grid | None = grids[Axis.PER_OC]
    assert grid is not None
    if target.refuses(grid, Axis.PER_OC, shape) is not None:
        grid = target.fallback(grid, Axis.PER_OC, shape)
    if grid is None:
        return as_floats(spec, told)
    return TensorPlan(spec.name, spec.shape, {Axis.PER_OC: grid}, rounder, note=f"{told}; stored as {grid.name} {Axis.PER_OC}")


def _check_held(spec: TensorSpec, choice: _Choice, grids: Mapping[Axis, Grid], target: Target) -> None:
    """Raises ConfigError for a grid or an axis that the target holds in no shape: no fallback mends that."""
    lack = target.lacks(grids[Axis.PER_OC], Axis.PER_OC)
    if lack is not None:
        raise ConfigError(f"{spec.name}: {lack}; drop --grid {choice.grid}")
    rounder, _, axis_word = choice.method.partition("-")
    lack = target.lacks(grids[Axis.PER_IC], Axis.PER_IC)
    if lack is not None and axis_word == "ic":
        raise ConfigError(f"--method {choice.method}: {spec.name}: {lack}; choose {rounder}-oc or {rounder}-ada")


def _linear_grid(choice: _Choice, axis: Axis, shape: tuple[int, int], target: Target) -> Grid:
    bits, group = choice.bits, choice.group_size
    name = choice.grid or target.grid_name(bits or DEFAULT_BITS)
    own = GRIDS.get(name)
    if own is not None and not isinstance(own, type):
        return make_grid(name, bits or own.bits, own.group_size if group is None else group, choice.symmetric, choice.scale_dtype)
    if group is None:
        group = target.default_group_size
    if group == WHOLE_CHANNEL:  # one ragged group: the next power of two holds the channel
        group = max(GROUP_SIZES[0], 1 << ((shape[1] if axis is Axis.PER_OC else shape[0]) - 1).bit_length())
    return make_grid(name, bits or DEFAULT_BITS, group, choice.symmetric, choice.scale_dtype)


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
        for key, known in (("method", METHODS), ("grid", tuple(GRIDS)), ("scale_dtype", SCALE_DTYPES)):
            if getattr(self, key) not in (None, *known):
                raise ValueError(f"{key} '{shown(getattr(self, key))}'; choose one of {', '.join(known)}")


class Recipe(msgspec.Struct, forbid_unknown_fields=True):
    """``[[rule]]`` tables and nothing else."""

    rule: Annotated[list[Rule], msgspec.Meta(max_length=MOST_RULES)] = msgspec.field(default_factory=list)


def _read_recipe(path: Path) -> list[dict[str, Any]]:
    """The rules, as what they change. Raises ConfigError."""
    return [msgspec.to_builtins(rule) for rule in RECIPE_DOOR.toml(path, Recipe).rule]

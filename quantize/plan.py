"""Config, recipe and target become one LayerPlan per tensor, from headers alone: every fallback is decided and listed here."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantize.errors import ConfigError, PlanError
from quantize.grids import GRIDS, make_grid
from quantize.model_config import EMBEDDING, HEAD, LINEARS
from quantize.types import Axis, Grid, LayerPlan, Target, TensorSpec

METHODS = ("rtn-oc", "rtn-ic", "rtn-ada", "gptq-oc", "gptq-ic", "gptq-ada")
AXES = {"oc": (Axis.PER_OC,), "ic": (Axis.PER_IC,), "ada": (Axis.PER_OC, Axis.PER_IC)}
WHOLE_CHANNEL = 0  # as a group size
EMBEDDING_GROUP = 32
DEFAULT_BITS = 4


@dataclass(frozen=True)
class QuantizeConfig:
    """Everything that a user can ask of ``quantize``. None means the target's default; ``bits``: the grid's own, or 4.

    ``embedding`` is "source" or a grid ("q8_0", "int8", "int4", ...); ``head`` may also be "tied".
    """

    method: str = "gptq-ada"
    bits: int | None = None
    grid: str | None = None
    group_size: int | None = None
    symmetric: bool = False
    embedding: str | None = None
    head: str | None = None
    selection: str = "scope"
    token_weight: str = "unit"
    calibration: str = "builtin"
    calibration_tokens: int = 16384
    recipe: Path | None = None
    seed: int = 0
    allow_fallback: bool = False
    max_slowdown: float = 3.0

    def __post_init__(self) -> None:
        for key, allowed in (("method", METHODS), ("selection", ("scope", "hessian")), ("token_weight", ("unit", "none"))):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"--{key.replace('_', '-')} {getattr(self, key)}: choose one of {', '.join(allowed)}")
        if self.calibration_tokens < 1:
            raise ConfigError(f"--calibration-tokens {self.calibration_tokens}: must be positive")
        if not self.max_slowdown >= 1:
            raise ConfigError(f"--max-slowdown {self.max_slowdown}: must be at least 1")

    def to_json(self) -> dict[str, Any]:
        """For the store's header; a recipe by its content, not by its path."""
        recipe = None if self.recipe is None else _read_recipe(self.recipe)
        return {**asdict(self), "calibration": Path(self.calibration).name, "recipe": recipe}


@dataclass(frozen=True)
class _Choice:
    """What was asked for one tensor: the config with a recipe's rule on top."""

    method: str
    bits: int | None
    grid: str | None
    group_size: int | None
    symmetric: bool


def build_plan(specs: Mapping[str, TensorSpec], config: QuantizeConfig, target: Target) -> list[LayerPlan]:
    """One LayerPlan per tensor in ``specs``, in its order, and the head if it is split off a tied embedding.

    Raises ConfigError for contradictions, PlanError for a shape that fits no allowed grid.
    """
    rules = [] if config.recipe is None else _read_recipe(config.recipe)
    unused = set(range(len(rules)))
    plans = []
    for name, spec in _with_head(specs, config).items():
        if name in (EMBEDDING, HEAD):
            plans.append(_plan_table(spec, config, target))
        elif name.removesuffix(".weight").endswith(LINEARS) and len(spec.shape) == 2:
            choice, used = _choose(spec.name, config, rules)
            unused -= used
            plans.append(_plan_linear(spec, choice, config.allow_fallback, target))
        else:
            plans.append(LayerPlan(name, spec.shape))
    for index in sorted(unused):
        raise ConfigError(f"{config.recipe}: rule {index + 1}, match {rules[index]['match']!r}, names no linear of this model")
    return plans


def plan_notes(plans: Iterable[LayerPlan], config: QuantizeConfig, target: Target) -> list[str]:
    """What the summary has to say: every fallback, every axis that was no candidate, what ``ada`` means here."""
    plans = list(plans)
    notes = [f"{plan.name}: {plan.note}" for plan in plans if plan.note]
    adaptive = config.method.endswith("-ada")
    if adaptive and not any(Axis.PER_IC in plan.candidates for plan in plans):
        notes.insert(0, f"{target.name} holds no per-IC groups: {config.method} means {config.method[:-3]}oc here")
    return notes


def _with_head(specs: Mapping[str, TensorSpec], config: QuantizeConfig) -> dict[str, TensorSpec]:
    out, tied = dict(specs), HEAD not in specs
    if config.head == "tied" and not tied:
        raise ConfigError("--head tied: this model's head differs from its embedding; drop --head or name a grid")
    if tied and config.head not in (None, "tied"):
        out[HEAD] = replace(specs[EMBEDDING], name=HEAD)
    return out


def _plan_table(spec: TensorSpec, config: QuantizeConfig, target: Target) -> LayerPlan:
    """Embedding and head: RTN per output channel (a token's row), on a grid of their own."""
    asked = config.embedding if spec.name == EMBEDDING else (config.head or config.embedding)
    option = "--embedding" if spec.name == EMBEDDING else "--head"
    if asked == "source":
        return LayerPlan(spec.name, spec.shape, dtype=spec.dtype if spec.dtype in ("F16", "BF16") else "F32")
    grid = _table_grid(asked, option, target)
    shape = (spec.shape[0], spec.shape[1])
    reason = target.refuses(grid, Axis.PER_OC, shape)
    if reason is None:
        return LayerPlan(spec.name, spec.shape, {Axis.PER_OC: grid})
    if not config.allow_fallback:
        raise PlanError(f"{spec.name}: {reason}; pass {option} source, or --allow-fallback")
    return LayerPlan(spec.name, spec.shape, dtype="F16", note=f"{reason}; kept as F16")


def _table_grid(asked: str | None, option: str, target: Target) -> Grid:
    name = target.grid_name(8) if asked is None else asked
    if name.startswith("int"):
        bits = name[3:] or "8"
        if bits not in ("4", "8"):
            raise ConfigError(f"{option} {name}: choose source, int4, int8 or one of {', '.join(list(GRIDS)[1:])}")
        return make_grid("int", int(bits), EMBEDDING_GROUP)
    grid = GRIDS.get(name)
    if grid is None or isinstance(grid, type):
        raise ConfigError(f"{option} {name}: choose source, int4, int8 or one of {', '.join(list(GRIDS)[1:])}")
    return grid


def _choose(name: str, config: QuantizeConfig, rules: list[dict[str, Any]]) -> tuple[_Choice, set[int]]:
    """The first rule that matches wins; returns it and which rules matched."""
    choice = _Choice(config.method, config.bits, config.grid, config.group_size, config.symmetric)
    matching = [i for i, rule in enumerate(rules) if fnmatchcase(name.removesuffix(".weight"), rule["match"])]
    if not matching:
        return choice, set()
    rule = {key: value for key, value in rules[matching[0]].items() if key != "match"}
    if rule.keys() & {"bits", "grid"}:  # a rule that changes one of the two must not inherit the other
        choice = replace(choice, grid=None, bits=None)
    return replace(choice, **rule), set(matching)


def _plan_linear(spec: TensorSpec, choice: _Choice, allow_fallback: bool, target: Target) -> LayerPlan:
    shape = (spec.shape[0], spec.shape[1])
    rounder, _, axis_word = choice.method.partition("-")
    fitting, reasons = dict[Axis, Grid](), list[str]()
    for axis in AXES[axis_word]:
        grid = _linear_grid(choice, axis, shape, target)
        reason = target.refuses(grid, axis, shape)
        if reason is None:
            fitting[axis] = grid
        else:
            reasons.append(f"{axis} {reason}")
    if fitting:
        note = "; ".join(f"no candidate: {reason}" for reason in reasons) if _worth_telling(spec, choice, target) else ""
        return LayerPlan(spec.name, spec.shape, fitting, rounder, note=note)
    if axis_word == "ic" and target.refuses(_linear_grid(choice, Axis.PER_OC, shape, target), Axis.PER_OC, shape) is None:
        raise ConfigError(f"--method {choice.method}: {spec.name}: {reasons[0]}; choose {rounder}-oc or {rounder}-ada")
    if not allow_fallback:
        raise PlanError(f"{spec.name} {shape[0]}x{shape[1]}: {'; '.join(reasons)}; pass --allow-fallback to keep it as floats")
    grid = _linear_grid(choice, Axis.PER_OC, shape, target)
    fallback = target.fallback(grid, Axis.PER_OC, shape)
    kept = "kept as F16" if fallback is None else f"stored as {fallback.name}"
    candidates = {} if fallback is None else {Axis.PER_OC: fallback}
    return LayerPlan(spec.name, spec.shape, candidates, rounder, dtype="F16", note=f"{'; '.join(reasons)}; {kept}")


def _worth_telling(spec: TensorSpec, choice: _Choice, target: Target) -> bool:
    """Per-IC refused for every shape is said once in the summary, not for each tensor."""
    shape = (1 << 12, 1 << 12)
    return target.refuses(_linear_grid(choice, Axis.PER_IC, shape, target), Axis.PER_IC, shape) is None


def _linear_grid(choice: _Choice, axis: Axis, shape: tuple[int, int], target: Target) -> Grid:
    bits, group = choice.bits, choice.group_size
    name = choice.grid or target.grid_name(bits or DEFAULT_BITS)
    own = GRIDS.get(name)
    if own is not None and not isinstance(own, type):
        return make_grid(name, bits or own.bits, own.group_size if group is None else group, choice.symmetric)
    if group is None:
        group = target.default_group_size
    if group == WHOLE_CHANNEL:  # one ragged group: the next power of two holds the channel
        group = 1 << ((shape[1] if axis is Axis.PER_OC else shape[0]) - 1).bit_length()
    return make_grid(name, bits or DEFAULT_BITS, group, choice.symmetric)


def _read_recipe(path: Path) -> list[dict[str, Any]]:
    """``[[rule]]`` tables: match = "*.mlp.down_proj" (a shell pattern over names without .weight) and what to change."""
    try:
        rules = tomllib.loads(path.read_text(encoding="utf-8")).get("rule", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable recipe ({error})") from error
    allowed = {"match", *(item.name for item in fields(_Choice))}
    for index, rule in enumerate(rules, 1):
        unknown = sorted(set(rule) - allowed)
        if unknown or "match" not in rule:
            raise ConfigError(f"{path}: rule {index}: {unknown or 'no match'}; a rule takes {', '.join(sorted(allowed))}")
        if rule.get("method", METHODS[0]) not in METHODS:
            raise ConfigError(f"{path}: rule {index}: method {rule['method']!r}; choose one of {', '.join(METHODS)}")
    return list(rules)

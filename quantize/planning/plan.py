"""Config, recipe and target become one TensorPlan per tensor, from headers alone: every fallback is decided and listed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from quantize.block import Division
from quantize.blocks import matrix, one_group
from quantize.config import (
    DEFAULT_BITS,
    EMBEDDING_GROUP,
    GROUP_SIZES,
    TABLE_BITS,
    WHOLE_CHANNEL,
    GridSpec,
    QuantizeConfig,
    Rule,
    read_recipe,
)
from quantize.errors import ConfigError, PlanError, asked, shown
from quantize.grids import BLOCK_GRIDS, GRIDS, make_grid
from quantize.grids.levels import LEAST_GROUP, Levels
from quantize.methods import AXES, METHODS, method_of, read_word, word_of
from quantize.model_config import EMBEDDING, HEAD, is_linear
from quantize.planning.activations import static_grid, with_activations
from quantize.planning.columns import check_width, widest, with_columns
from quantize.planning.of_method import check_beside, own_grid, with_turn
from quantize.types import F32, FINE_BITS, Axis, Grid, Need, Target, TensorPlan, TensorSpec


@dataclass(frozen=True)
class ModelPlan:
    """Everything that was decided before any weight is rounded.

    A plan for a file's size has more for the store: ``budget`` for the header, and files beside the source's ``assets``.
    """

    config: QuantizeConfig
    target: Target
    tensors: list[TensorPlan]
    budget: Mapping[str, Any] | None = None
    assets: Mapping[str, bytes] = field(default_factory=dict)


class _Choice(NamedTuple):
    """What was asked for one linear: the config with a recipe's rule on top."""

    method: str
    grid: GridSpec

    @property
    def says_grid(self) -> bool:
        """Whether nothing of the grid is left to a method that would choose it."""
        return self.grid.group_size is not None or self.grid.name not in (None, "int")


def build_plan(
    specs: Mapping[str, TensorSpec], config: QuantizeConfig, target: Target, read: Callable[[str], F32] | None = None
) -> list[TensorPlan]:
    """One TensorPlan per tensor in ``specs``, in its order, and the head if it is split off a tied embedding.

    ``read``: weights by name, for methods that choose grids by them; where None these have the target's own. No weight is read
    before all are planned. Raises ConfigError for contradictions, PlanError for a shape that fits no allowed grid.
    """
    rules = [] if config.recipe is None else read_recipe(config.recipe)
    unused, hidden = set(range(len(rules))), specs[EMBEDDING].shape[1]
    plans, open_grids = [], set[str]()
    for name, spec in _with_head(specs, config).items():
        if name in (EMBEDDING, HEAD):
            plans.append(_plan_table(spec, config, target))
        elif spec.kept:
            plans.append(as_floats(spec))
        elif is_linear(name, spec.shape):
            choice, used = _choose(spec.name, config, rules)
            unused -= used
            if not choice.says_grid:
                open_grids.add(name)
            plan = with_turn(_plan_linear(spec, choice, config.allow_fallback, target), config.data.seed)
            wanted = Division(hidden, config.around.float_columns, choice.grid.bits or DEFAULT_BITS)
            plans.append(with_columns(plan, wanted, target) if plan.candidates else plan)
        else:
            plans.append(TensorPlan(name, spec.shape))
    for index in sorted(unused):
        raise ConfigError(f"{config.recipe}: rule[{index}], match '{shown(rules[index].match)}', names no linear of this model")
    check_beside([METHODS[name] for name in dict.fromkeys(plan.method for plan in plans if plan.candidates)], config)
    plans = plans if read is None else [_by_weights(plan, read, target) if plan.name in open_grids else plan for plan in plans]
    return [with_activations(plan, target) for plan in _with_partners(plans, specs)]


def _by_weights(plan: TensorPlan, read: Callable[[str], F32], target: Target) -> TensorPlan:
    """As its method's own steps of planning have it."""
    steps = METHODS[plan.method].plans if plan.candidates else ()
    for step in steps:
        plan = step.planned(plan, read(plan.name), target)
    return plan


def _with_partners(plans: list[TensorPlan], specs: Mapping[str, TensorSpec]) -> list[TensorPlan]:
    """Where one of two that belong together stays floats, both do."""
    floats = {plan.name for plan in plans if not plan.candidates}

    def own(plan: TensorPlan) -> TensorPlan:
        partner = specs[plan.name].partner if plan.name in specs and plan.candidates else ""
        return as_floats(specs[plan.name], f"{partner} stays floats") if partner in floats else plan

    return [own(plan) for plan in plans]


def plan_notes(plans: Iterable[TensorPlan], config: QuantizeConfig, target: Target) -> list[str]:
    """What the summary has to say: every fallback, every axis that was no candidate, what ``ada`` means here."""
    plans = list(plans)
    notes = [f"{plan.name}: {plan.note}" for plan in plans if plan.note]
    grids = [grid for plan in plans if plan.name not in (EMBEDDING, HEAD) for grid in plan.candidates.values()]
    word = read_word(config.method)
    if word.method.plans and _Choice(config.method, config.grid).says_grid:
        notes.insert(0, f"{config.method}: the grid that was asked for stands in for its own choice of one")
    if word.adaptive and all(target.lacks(grid, Axis.PER_IC) is not None for grid in grids):
        means, levels = word_of(word.method, AXES["oc"]), sorted({grid.name for grid in grids if isinstance(grid, Levels)})
        of = f" of {', '.join(levels)}" if levels else ""
        notes.insert(0, f"{target.name} holds no per-IC groups{of}: {config.method} means {means} here")
    return notes


def _with_head(specs: Mapping[str, TensorSpec], config: QuantizeConfig) -> dict[str, TensorSpec]:
    out, tied = dict(specs), HEAD not in specs
    if config.head == "tied" and not tied:
        raise ConfigError(
            f"{asked('head', 'tied')}: this model's head differs from its embedding; drop {asked('head')} or name a grid"
        )
    if tied and config.head not in (None, "tied"):
        out[HEAD] = replace(specs[EMBEDDING], name=HEAD)
    return out


def _plan_table(spec: TensorSpec, config: QuantizeConfig, target: Target) -> TensorPlan:
    """Embedding and head: RTN per output channel (a token's row), on a grid of their own."""
    wanted = config.embedding if spec.name == EMBEDDING else (config.head or config.embedding)
    option = "embedding" if spec.name == EMBEDDING else "head"
    if wanted == "source":
        return as_floats(spec)
    grid = _table_grid(wanted, option, config.grid.scale_dtype, target)
    lack = target.lacks(grid, Axis.PER_OC)
    if lack is not None:
        raise ConfigError(f"{asked(option, wanted)}: {lack}; drop {asked(option)}")
    reason = target.refuses(grid, Axis.PER_OC, (spec.shape[0], spec.shape[1]))
    if reason is None:
        return TensorPlan(spec.name, spec.shape, {Axis.PER_OC: grid}, table_method(grid, config))
    if not config.allow_fallback:
        raise PlanError(f"{spec.name}: {reason}; pass {asked(option, 'source')}, or {asked('allow_fallback', True)}")
    return as_floats(spec, reason)


def table_method(grid: Grid, config: QuantizeConfig) -> str:
    """A second-order method for an embedding or a head too where it is coarse, and where gradients say what its errors cost."""
    method = method_of(read_word(config.method).method.name, config.around)
    careful = method.rounder.needs >= Need.HESSIAN and config.data.token_weight == "gradient" and grid.bits < FINE_BITS
    return method.name if careful else "rtn"


def as_floats(spec: TensorSpec, reason: str | None = None) -> TensorPlan:
    """The source's own values, whatever they are; those of a quantized source need float32."""
    dtype = spec.dtype if spec.dtype in ("F16", "BF16") else "F32"
    return TensorPlan(spec.name, spec.shape, dtype=dtype, note="" if reason is None else f"{reason}; kept as {dtype}")


def _table_grid(wanted: str | None, option: str, scale_dtype: str, target: Target) -> Grid:
    name = target.grid_name(8) if wanted is None else wanted
    choose = f"choose source, int4, int8 or one of {', '.join(BLOCK_GRIDS)}"
    if name.startswith("int"):
        bits = name[3:] or "8"
        if bits not in map(str, TABLE_BITS):
            raise ConfigError(f"{asked(option, name)}: {choose}")
        return make_grid("int", int(bits), EMBEDDING_GROUP, scale_dtype=scale_dtype)
    if name not in BLOCK_GRIDS:
        told = "levels are of linears alone; " if name in GRIDS else ""
        raise ConfigError(f"{asked(option, name)}: {told}{choose}")
    return BLOCK_GRIDS[name]


def _choose(name: str, config: QuantizeConfig, rules: list[Rule]) -> tuple[_Choice, set[int]]:
    """The first rule that matches wins; returns it and which rules matched."""
    matching = [i for i, rule in enumerate(rules) if fnmatchcase(name.removesuffix(".weight"), rule.match)]
    if not matching:
        return _Choice(config.method, config.grid), set()
    first = rules[matching[0]]
    return _Choice(first.method or config.method, first.over(config.grid)), set(matching)


def _plan_linear(spec: TensorSpec, choice: _Choice, allow_fallback: bool, target: Target) -> TensorPlan:
    shape = matrix(spec.shape)
    method, axes = read_word(choice.method)
    check_width(method, choice.grid.bits)
    choice = choice._replace(grid=static_grid(own_grid(method, choice.grid, target), target))
    grids = {axis: _linear_grid(choice.grid, axis, shape, target) for axis in Axis}
    _check_held(spec, choice, grids, target)
    held = [axis for axis in _axes_of(spec, axes) if target.lacks(grids[axis], axis) is None]
    reasons = {axis: target.refuses(grids[axis], axis, spec.shape) for axis in held}
    told = "; ".join(f"{axis} {reason}" for axis, reason in reasons.items() if reason is not None)
    fitting = {axis: grids[axis] for axis in held if reasons[axis] is None}
    if fitting:
        return TensorPlan(spec.name, spec.shape, fitting, method.name, note=f"no candidate: {told}" if told else "")
    if not allow_fallback:
        raise PlanError(
            f"{spec.name} {shape[0]}x{shape[1]}: {told}; pass {asked('allow_fallback', True)} to store it as what fits"
        )
    grid: Grid | None = grids[Axis.PER_OC]
    assert grid is not None
    if target.refuses(grid, Axis.PER_OC, spec.shape) is not None:
        grid = target.fallback(grid, Axis.PER_OC, spec.shape)
    if grid is None:
        return as_floats(spec, told)
    return TensorPlan(
        spec.name, spec.shape, {Axis.PER_OC: grid}, method.name, note=f"{told}; stored as {grid.name} {Axis.PER_OC}"
    )


def _axes_of(spec: TensorSpec, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Of a stack of experts no transposed form is known."""
    return axes if len(spec.shape) == 2 else (Axis.PER_OC,)


def _check_held(spec: TensorSpec, choice: _Choice, grids: Mapping[Axis, Grid], target: Target) -> None:
    """Raises ConfigError for a grid or an axis that the target holds in no shape: no fallback mends that."""
    lack = target.lacks(grids[Axis.PER_OC], Axis.PER_OC)
    if lack is not None:
        raise ConfigError(f"{spec.name}: {lack}; drop {asked('grid.name', choice.grid.name)}")
    method, axes = read_word(choice.method)
    lack = target.lacks(grids[Axis.PER_IC], Axis.PER_IC) if Axis.PER_OC not in axes else None
    lack = lack or (target.lacks_parts if method.leaves_parts else None)
    if lack is not None:
        mend = "another method" if method.axes else f"{method.name}-oc or {method.name}-ada"
        raise ConfigError(f"{asked('method', choice.method)}: {spec.name}: {lack}; choose {mend}")


def _linear_grid(spec: GridSpec, axis: Axis, shape: tuple[int, int], target: Target) -> Grid:
    bits, group = widest(spec.bits), spec.group_size
    name = spec.name or target.grid_name(bits or DEFAULT_BITS)
    own = GRIDS.get(name)
    if own is not None and not isinstance(own, type | Levels):
        return make_grid(name, bits or own.bits, own.group_size if group is None else group, spec.symmetric, spec.scale_dtype)
    width, least = (own.bits, LEAST_GROUP) if isinstance(own, Levels) else (DEFAULT_BITS, GROUP_SIZES[0])
    if group is None:
        group = WHOLE_CHANNEL if isinstance(own, Levels) else target.default_group_size
    if group == WHOLE_CHANNEL:
        group = one_group(shape[1] if axis is Axis.PER_OC else shape[0], least)
    return make_grid(name, bits or width, group, spec.symmetric, spec.scale_dtype)

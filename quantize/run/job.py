"""All that one store takes: what each of its blocks is made from, and what is known of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby
from typing import TYPE_CHECKING, Protocol

import numpy as np

from quantize.architecture.families import fold_sites
from quantize.block import Kit
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.checkpoint.template import Template
from quantize.config import QuantizeConfig
from quantize.errors import ConfigError, asked, shown
from quantize.methods import METHODS, Around, method_of, rounders_of, steps_of
from quantize.methods.around import BY_HESSIAN
from quantize.model_config import EMBEDDING, HEAD, ModelConfig, ModelSizes, block_index, block_prefix
from quantize.planning.plan import ModelPlan
from quantize.rounding.gptq import with_visits
from quantize.run.task import BlockTask, Result, run_block, run_chunks
from quantize.statistics.by_template import TemplateRun, check_template
from quantize.statistics.calibration import Coverage, calibration_data, rank_poor
from quantize.statistics.experts import ExpertStats
from quantize.statistics.imatrix import Imatrix, read_imatrix
from quantize.statistics.measured import Measured, Walk, blocks_of
from quantize.steps.descent import put_folded
from quantize.types import I64, Curvature, InputStats, Need, Target, TensorPlan
from quantize.weight import StoredWeight

if TYPE_CHECKING:
    from quantize.source import BlockRun

Text = tuple[I64, Coverage]
BLOCKS = 1  # their place in model order
OTHER_PARTS = 3  # parts beside the blocks, at most: embedding, final norm, head
SCOPE_SEQUENCES = 4  # 2,048 tokens judge a scope loss; the paper uses all, at 14 more passes through the block


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of inputs: by weight name what is known at once, each decoder block of the source as it is run, and the text
    that it all rests on."""

    known: Mapping[str, InputStats | ExpertStats] = field(default_factory=dict)
    blocks: Iterator[BlockRun | TemplateRun] | None = None
    coverage: Coverage | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """One model on its way into one store. ``known``: what the importance matrix says, by weight name."""

    source: Checkpoint
    plan: ModelPlan
    imatrix: Imatrix | None = None
    known: Mapping[str, InputStats | ExpertStats] = field(default_factory=dict)

    @property
    def config(self) -> QuantizeConfig:
        """What was asked for."""
        return self.plan.config

    @property
    def target(self) -> Target:
        """What it is for."""
        return self.plan.target

    @cached_property
    def assets(self) -> Mapping[str, bytes]:
        """Files of the store beside its tensors."""
        return {**self.source.assets(), **self.plan.assets}

    @property
    def orders(self) -> RowOrders:
        """Between the source's rows and the target's."""
        return RowOrders(self.source.config, self.target.row_order)

    @property
    def runs_source(self) -> bool:
        """Whether statistics are needed that no importance matrix gives: some step needs them, or a choice does."""
        methods = {plan.method for plan in self.plan.tensors if plan.candidates}
        wanted = steps_of(methods, replace(self.config.around, selection=BY_HESSIAN))
        chooses = self.chooses or any(plan.activations or plan.float_columns for plan in self.plan.tensors)
        return self.imatrix is None and (chooses or max(step.needs for step in wanted) > Need.WEIGHTS)

    @property
    def learns(self) -> bool:
        """Whether some step of its blocks does: then each block sees what those before it became."""
        methods = {plan.method for plan in self.plan.tensors if plan.candidates and block_index(plan.name) is not None}
        return any(step.needs >= Need.LEARNING for step in steps_of(methods, self.config.around))

    @property
    def chooses(self) -> bool:
        """Whether some linear may have more than one axis."""
        return any(len(plan.candidates) > 1 for plan in self.plan.tensors)

    def kit(self, run: BlockRun | TemplateRun | None) -> Kit:
        """What steps may use."""
        config, data = self.config, self.config.data
        depth = 0.0 if run is None else run.index / self.source.config.num_layers
        steps = config.around.block_steps
        rounders = rounders_of(config.around)
        return Kit(self.target, self.orders, rounders, config.max_slowdown, data.seed, steps, data.text, run, depth)


def make_job(source: Checkpoint, plan: ModelPlan) -> Job:
    """Raises CalibrationError for an importance matrix that is not this model's, ConfigError for a plan that needs more."""
    path, job = plan.config.data.imatrix, Job(source, plan)
    if isinstance(source, Template):
        check_template(source, plan.config, runs=path is None and job.runs_source)
        _check_methods(source, plan)
    if path is None:
        return job
    for one in plan.tensors:
        if one.activations:
            raise ConfigError(
                f"{asked('imatrix', str(path))}: {one.name}: a scale of its input has to be found, for which the source must run "
                f"over a text; drop {asked('imatrix')}"
            )
        method = method_of(one.method, plan.config.around)
        if one.candidates and block_index(one.name) is not None and method.needs > Need.IMPORTANCE:
            raise ConfigError(
                f"{asked('imatrix', str(path))}: {one.name} is to be rounded by {method.name}, for which the "
                f"source must run over a text; choose {asked('method', 'rtn-oc')}, rtn-ic or rtn-ada, or drop {asked('imatrix')}"
            )
    imatrix = read_imatrix(path)
    linears = [one.name for one in plan.tensors if one.candidates and block_index(one.name) is not None]
    return Job(source, plan, imatrix, imatrix.for_model(source.specs, linears))


def _check_methods(source: Template, plan: ModelPlan) -> None:
    """Raises ConfigError for a method that asks more than is known where the source is a template."""
    named, around = shown(source.config.model_type), plan.config.around
    learned = [option for option in ("block_steps", "tune_steps") if getattr(around, option)]
    for name in dict.fromkeys(one.method for one in plan.tensors if one.candidates):
        method, where = METHODS[name], f"{asked('method', name)}: {source.path}"
        if method.moves_norms:
            raise ConfigError(f"{where}: the norms of {named} are not known by name; choose another method")
        if method.folds and learned:
            raise ConfigError(f"{where}: a block whose basis changes does not learn; give {asked(learned[0], 0)}")


def calibration_text(job: Job) -> Text | None:
    """What statistics are measured on, if any are. Raises CalibrationError."""
    return calibration_data(job.config.data, job.source) if job.runs_source else None


def open_statistics(job: Job, text: Text | None, measured: Measured) -> Statistics:
    """What the steps of its blocks may know; nothing runs without a text."""
    source, config = job.source, job.config
    if text is None:
        return Statistics(job.known)
    tokens, coverage = text
    token_weight: str | Curvature = config.data.token_weight
    known: Mapping[str, InputStats] = {}
    if token_weight == "gradient":
        token_weight = curvature = measured.curvature(tokens, config.data.seed)
        known = curvature.tables
    sequences = SCOPE_SEQUENCES if config.around.by_scope and job.chooses else 0
    walk = blocks_of(source, tokens, token_weight, Walk(sequences, job.learns, config.data.max_memory))
    # Stores that are made together share what GPTQ makes of a Hessian.
    return Statistics(known, (replace(run, stats=with_visits(run.stats)) for run in walk), coverage)


class Made(Protocol):
    """What an earlier run has made of this one's results."""

    @property
    def done(self) -> Sequence[object]:
        """One for each, in their order."""

    def weight(self, name: str) -> StoredWeight:
        """Of theirs."""


def results(job: Job, statistics: Statistics, made: Made) -> Iterator[Result | None]:
    """Every tensor, or chunk of its rows, in model order: of the embedding, of each decoder block, and the rest; None for what is
    made already."""
    done = len(made.done)
    for index, ((place, _), group) in enumerate(groupby(sorted(job.plan.tensors, key=order_of), order_of)):
        plans = tuple(group)
        if index < done:
            if place == BLOCKS:
                _pass_over(job, plans, statistics, made)
            yield None
        elif place == BLOCKS:
            yield _block_result(job, plans, statistics)
        else:
            yield Result(chain.from_iterable(run_chunks(_table_tasks(job, plan, statistics), job.kit(None)) for plan in plans))


def _pass_over(job: Job, plans: tuple[TensorPlan, ...], statistics: Statistics, made: Made) -> None:
    """The source's next block; where rounding learns, the block after it sees what this one became."""
    run = None if statistics.blocks is None else next(statistics.blocks)
    if run is None or run.student is None:
        return
    tensors, index = {plan.name: made.weight(plan.name).dense() for plan in plans}, block_index(plans[0].name)
    assert index is not None
    at = fold_sites(job.source.config, block_prefix(index), {plan.name: plan.shape for plan in plans})
    norms = {} if at is None else {norm: job.source.read(norm) for norm in at.norms}
    put_folded(run.student, at, tensors, norms, job.orders)


def order_of(plan: TensorPlan) -> tuple[int, int]:
    """Where a tensor comes in model order: embedding, decoder blocks, final norm, head."""
    index = block_index(plan.name)
    if index is not None:
        return BLOCKS, index
    return (0, 0) if plan.name == EMBEDDING else (2, int(plan.name == HEAD))


def _block_result(job: Job, plans: tuple[TensorPlan, ...], statistics: Statistics) -> Result:
    run = None if statistics.blocks is None else next(statistics.blocks)
    stats, index = _of_weights(statistics.known) if run is None else run.stats, block_index(plans[0].name)
    assert index is not None
    stacks = [plan for plan in plans if plan.candidates and len(plan.shape) == 3]
    dense = tuple(plan for plan in plans if plan not in stacks)
    task = BlockTask(
        dense,
        {plan.name: job.orders.to_target(plan.name, job.source.read(plan.name)) for plan in dense},
        {plan.name: _in_target_rows(job, plan.name, stats[plan.name]) for plan in dense if plan.name in stats},
        () if run is None else run.sites,
        fold_sites(job.source.config, block_prefix(index), {plan.name: plan.shape for plan in plans}),
        index,
        Around() if run is None else job.config.around,
    )
    result = run_block(task, job.kit(run))
    experts = _of_stacks(statistics.known) if run is None else run.experts if isinstance(run, TemplateRun) else {}
    rounded = (run_chunks(_expert_tasks(job, plan, experts.get(plan.name)), job.kit(None)) for plan in stacks)
    pieces = chain(result.pieces, *rounded)
    if run is None:
        return replace(result, pieces=pieces)
    poor = rank_poor(run.stats, run.sites) + [line for name, own in experts.items() for line in own.rank_poor(name)]
    return Result(pieces, tuple({**report, "rank_poor": poor} for report in result.reports))


def _of_weights(known: Mapping[str, InputStats | ExpertStats]) -> dict[str, InputStats]:
    return {name: stats for name, stats in known.items() if isinstance(stats, InputStats)}


def _of_stacks(known: Mapping[str, InputStats | ExpertStats]) -> dict[str, ExpertStats]:
    return {name: stats for name, stats in known.items() if isinstance(stats, ExpertStats)}


def _expert_tasks(job: Job, plan: TensorPlan, known: ExpertStats | None) -> Iterator[BlockTask]:
    """A stack [experts, OC, IC], one expert after the other: each is rounded by what it saw."""
    for expert in range(plan.shape[0]):
        weight = job.source.read_rows(plan.name, expert, expert + 1)[0]
        yield BlockTask((plan,), {plan.name: weight}, {} if known is None else {plan.name: known.of(expert)})


def _table_tasks(job: Job, plan: TensorPlan, statistics: Statistics) -> Iterator[BlockTask]:
    """Embedding, head, final norm: in chunks of rows no larger than a decoder block."""
    source, config = job.source, job.source.config
    name = plan.name if plan.name in source.specs else EMBEDDING  # a head split off a tied embedding
    if len(plan.shape) == 1:
        yield BlockTask((plan,), {plan.name: job.orders.to_target(plan.name, source.read(name))}, {})
        return
    tables = _of_weights(statistics.known)
    known = tables.get(plan.name, tables.get(name))
    needs = method_of(plan.method, job.config.around).needs
    if known is not None and known.hessian.ndim == 1 and needs >= Need.HESSIAN:
        known = replace(known, hessian=np.diag(known.hessian))  # what is looked up has no channels that go together
    step = max(1, 4 * config.hidden_size * (config.hidden_size + _ffn(config)) // plan.shape[1])
    for start in range(0, plan.shape[0], step):
        rows = source.read_rows(name, start, min(start + step, plan.shape[0]))
        yield BlockTask((plan,), {plan.name: rows}, {} if known is None else {plan.name: _of_rows(known, start, step)})


def _ffn(config: ModelSizes) -> int:
    """Hidden channels of a block's MLP, or what most have."""
    return config.intermediate_size if isinstance(config, ModelConfig) else 4 * config.hidden_size


def _of_rows(stats: InputStats, start: int, step: int) -> InputStats:
    return stats if stats.row_weight is None else replace(stats, row_weight=stats.row_weight[start : start + step])


def _in_target_rows(job: Job, name: str, stats: InputStats) -> InputStats:
    return stats if stats.row_weight is None else replace(stats, row_weight=job.orders.to_target(name, stats.row_weight))

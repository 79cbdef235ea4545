"""One block from the source's weights to what a file stores: a function of its task alone, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quantize.activations import Activation
from quantize.architecture.families import FoldSites
from quantize.block import Block, Kit
from quantize.block_turn import BlockTurn, FoundTurn
from quantize.checkpoint.floats import from_f32
from quantize.methods import METHODS, Around, after, before
from quantize.model_config import part_name
from quantize.steps.activations import ChooseActivation
from quantize.steps.axis import ChooseAxis
from quantize.store.record import TensorRecord
from quantize.store.tensors import Piece
from quantize.turn import Rotation
from quantize.types import F32, Axis, Grid, InputStats, PartPlan, PlainTensor, TensorPlan
from quantize.weight import Part


@dataclass(frozen=True, eq=False)
class BlockTask:
    """What a block is made from, and what is asked beside its linears' methods.

    ``plans``: of all its tensors, in model order. ``tensors``: F32 by name, rows in the target's order. ``sites``: names that see
    the same input. ``index``: of a decoder block, else None.
    """

    plans: tuple[TensorPlan, ...]
    tensors: Mapping[str, F32]
    stats: Mapping[str, InputStats]
    sites: tuple[tuple[str, ...], ...] = ()
    fold_sites: FoldSites | None = None
    index: int | None = None
    around: Around = field(default_factory=Around)


@dataclass(frozen=True, eq=False)
class Result:
    """What goes into the store, and what its header has to know of each block, as JSON."""

    pieces: Iterable[Piece]
    reports: tuple[Mapping[str, Any], ...] = field(default=())


def run_block(task: BlockTask, kit: Kit) -> Result:
    """Raises PlanError for scales that overflow the file's dtype, CalibrationError for losses that do."""
    plans = {plan.name: plan for plan in task.plans if plan.candidates}
    block = Block(plans, task.tensors, task.stats, task.sites, task.fold_sites)
    for step in before(task.around, any(plan.float_columns for plan in plans.values())):
        block = step(block, list(plans), kit)
    names = {method: [name for name, plan in plans.items() if plan.method == method] for method in METHODS}
    present = [method.rounding_by(kit.rounders[method.name]) for method in METHODS.values() if names[method.name]]
    for method in present:
        for step in method.until_rounded:
            block = step(block, names[method.name], kit)
    block = ChooseAxis()(block, list(plans), kit)
    if any(plan.activations for plan in plans.values()):
        block = ChooseActivation()(block, list(plans), kit)
    for method in present:
        for step in method.after_rounded:
            block = step(block, names[method.name], kit)
    for step in after([method.name for method in present], task.around):
        block = step(block, list(plans), kit)
    pieces = [piece for plan in task.plans for piece in _pieces(block, plan)]
    return Result(pieces, ({"index": task.index, **block.report},))


def run_chunks(chunks: Iterable[BlockTask], kit: Kit) -> Iterator[Piece]:
    """Of a tensor in chunks of its rows, whose losses are not the tensor's."""
    for task in chunks:
        for part, record in run_block(task, kit).pieces:
            yield part, record.without_loss()


def _pieces(block: Block, plan: TensorPlan) -> list[Piece]:
    """A tensor as it is stored, in one part or several."""
    if plan.name not in block.rounded:
        tensor = PlainTensor(plan.name, from_f32(block.tensors[plan.name], plan.dtype), plan.dtype)
        return [(Part(tensor), TensorRecord(plan.name, plan.shape, dtype=plan.dtype, note=plan.note))]
    rounded, choice = block.rounded[plan.name], block.choices[plan.name]
    loss = {str(axis): value for axis, value in choice.loss.items()}
    grid, axis = rounded.tensor.grid, rounded.tensor.axis
    stored = block.stored(plan.name, rounded.tensor)
    if plan.name in block.beside:
        loss[str(axis)] = block.beside[plan.name].loss(stored.dense())
    first, *others = weight_records(block.plans[plan.name], axis, grid)
    records = (
        replace(
            first,
            rounder=rounded.rounder,
            loss=loss,
            activation=stored.parts[0].activation,
            activation_loss=block.activation_loss.get(plan.name, {}),
        ),
        *(record if record.grid is None else replace(record, rounder=rounded.rounder) for record in others),
    )
    return list(zip(stored.parts, records, strict=True))


def weight_records(plan: TensorPlan, axis: Axis, grid: Grid | None) -> list[TensorRecord]:
    """Of all that is stored of a tensor, the first on ``grid``; of what may round its input the first, before any was seen."""
    activation = next((Activation(word, scale=1.0) for word in plan.activations), None)
    first = TensorRecord(plan.name, plan.shape, grid, plan.dtype, axis, note=plan.note, activation=activation)
    if isinstance(plan.turn, Rotation):
        first = replace(first, turn=plan.turn)
    elif isinstance(plan.turn, BlockTurn) or plan.turn_blocks:
        first = replace(first, found_turn=plan.turn.found if isinstance(plan.turn, BlockTurn) else FoundTurn(plan.turn_blocks))
    inputs = plan.shape[-1]
    kept = PartPlan(plan.float_columns, None)
    others = plan.parts[1:] or ([kept] if plan.float_columns else [])
    if plan.parts:
        first = replace(first, shape=(plan.shape[0], plan.parts[0].count), inputs=inputs)
    return [first, *(_part_record(plan, axis, part, number) for number, part in enumerate(others, 1))]


def _part_record(plan: TensorPlan, axis: Axis, part: PartPlan, number: int) -> TensorRecord:
    name, shape, inputs = part_name(plan.name, number), (plan.shape[0], part.count), plan.shape[1]
    if part.grid is None:
        return TensorRecord(name, shape, dtype="F16", inputs=inputs)
    return TensorRecord(name, shape, part.grid, axis=axis, inputs=inputs)

"""For which target a store was made."""

from __future__ import annotations

from exporter.targets import TARGETS, GgufTarget, OnnxTarget
from quantize.errors import ExportError, StoreError, asked, shown
from quantize.grids.int_affine import one_scale
from quantize.store.record import TensorRecord
from quantize.store.tensors import QuantizedStore


def target_of(store: QuantizedStore) -> GgufTarget | OnnxTarget:
    """What the store was made for. Raises StoreError for a name that is none of ``TARGETS``, or a tensor that it cannot hold."""
    target = TARGETS.get(store.target)
    if target is None:
        told = f"target '{shown(store.target)}' in plan.json is not one of {', '.join(TARGETS)}"
        raise StoreError(f"{store.path}: {told}; quantize again")
    for record in store.records.values():
        reason = target.lacks_parts if record.inputs else None
        reason = reason or (target.lacks_turns if record.turn is not None else None)
        reason = reason or (target.lacks_block_turns if record.found_turn is not None else None)
        if record.grid is not None:
            reason = reason or target.lacks(record.grid, record.axis)
            reason = reason or target.refuses(record.grid, record.axis, record.shape) or _strange_activation(record, target)
        if reason is not None:
            raise StoreError(f"{store.path}: {record.name}: {reason}; plan.json is damaged, quantize again")
    return target


def _strange_activation(record: TensorRecord, target: GgufTarget | OnnxTarget) -> str | None:
    held = record.activation
    if held is None or (held.name in target.activations and record.grid and one_scale(record.grid, record.shape[-1])):
        return None
    return f"target {target.name} rounds the input of no such weight to {held.name}"


def check_target(store: QuantizedStore, allowed: tuple[str, ...]) -> None:
    """Raises ExportError for a store that was made for another writer, whose grids and row order are not this one's."""
    if target_of(store).name not in allowed:
        raise ExportError(
            f"{store.path}: was quantized for target {store.target}, not for {' or '.join(allowed)}; write it with "
            f"`adadim export {TARGETS[store.target].writer}`, or quantize again with {asked('target', allowed[0])}"
        )

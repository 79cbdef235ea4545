"""The files of a store's tensors: some rows of one, or a part, with what else is said of its input channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from quantize.block_turn import BlockTurn
from quantize.errors import StoreError, shown
from quantize.outside import sha256_of
from quantize.store.arrays import READS, TURN, Held, load_arrays
from quantize.store.record import TensorRecord
from quantize.turn import Turn
from quantize.types import PlainTensor, QuantizedTensor
from quantize.weight import Part

TENSORS = "tensors"  # the folder of their files
CHANGED = "has changed since it was written: its sha256 is another"


def file_name(name: str, chunk: int) -> str:
    """Of some rows of a tensor."""
    return f"{name}.{chunk:05d}.safetensors"


def read_chunk(store: Path, record: TensorRecord, index: int) -> Part:
    """Some of a tensor's rows, or a part; a turn that was found if its file holds it.

    Raises StoreError if the file is missing, damaged or has changed.
    """
    path = store / TENSORS / file_name(record.name, index)
    try:
        if record.sha256 and record.sha256[index : index + 1] != (sha256_of(path),):
            raise ValueError(CHANGED)
        columns = (record.shape[1], record.inputs) if record.inputs else None
        found = record.found_turn if holds_turn(record, index) else None
        turned = None if found is None else (found, record.shape[1])
        arrays = load_arrays(path, Held(record.grid, record.dtype, record.stored_shape, columns, turned))
        reads = arrays.pop(READS).astype(np.intp) if columns else None
        turn: Turn | None = record.turn
        if found is not None:
            own = {key.removeprefix(TURN): arrays.pop(key) for key in sorted(arrays) if key.startswith(TURN)}
            turn = BlockTurn.of_arrays(own, found)
        if record.grid is None:
            return Part(PlainTensor(record.name, arrays["values"], record.dtype), reads)
        tensor = QuantizedTensor(record.name, arrays.pop("codes"), record.axis, record.grid, arrays)
        return Part(tensor, reads, turn, record.activation)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({shown(error)}); quantize again") from error


def holds_turn(record: TensorRecord, index: int) -> bool:
    """Whether that chunk's file has the arrays of a turn in it."""
    return record.found_turn is not None and record.found_turn.site == record.name and index == 0


def held_turn(store: Path, record: TensorRecord, records: Mapping[str, TensorRecord]) -> Turn | None:
    """Of a tensor's input; one that was found from the file that holds it. Raises StoreError."""
    found = record.found_turn
    if found is None:
        return record.turn
    site = records.get(found.site)
    if site is None or site.found_turn != found or not site.chunks or site.shape[1:] != record.shape[1:]:
        raise StoreError(
            f"{store}: {record.name}: its input's turn is said to be with '{found.site}', where none is; quantize again"
        )
    return read_chunk(store, site, 0).turn

"""One layer's outliers, before and after: what comes in, its weights, and what rounding on each axis does to a slice of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantize.blocks import dequantize
from quantize.checkpoint.protocol import Checkpoint
from quantize.checkpoint.row_order import RowOrders
from quantize.config import DataSpec
from quantize.errors import ConfigError, asked
from quantize.model_config import block_index, is_linear
from quantize.progress import track
from quantize.rounding.rtn import rtn
from quantize.statistics.calibration import calibration_data
from quantize.store.record import TensorRecord
from quantize.store.tensors import QuantizedStore
from quantize.types import F32, Axis, Grid

CALIBRATION_TOKENS = 2048  # what an outlier channel is shows in a few sentences; a Hessian would need more
SLICE = (32, 96)  # output and input channels that are shown one by one


@dataclass(frozen=True, eq=False)
class Outliers:
    """One linear. ``inputs`` F32[IC]: each input channel's root mean square over a text, None if none was run.

    ``columns`` F32[IC]: the largest |weight| of each input channel. ``before``, ``after`` and ``errors`` are F32[rows, cols],
    the slice that begins at ``corner``: |weight| of the source and of the store (None in a folded layer, whose weights are in
    another basis), and |source - rounded to nearest| with the groups on each axis. ``mse``: the same over the whole tensor, and
    ``output_mse`` as the layer's output has it under ``inputs``.
    """

    name: str
    grid: Grid
    axis: Axis
    inputs: F32 | None
    columns: F32
    channel: int
    corner: tuple[int, int]
    before: F32
    after: F32 | None
    errors: Mapping[Axis, F32]
    mse: Mapping[Axis, float]
    output_mse: Mapping[Axis, float] | None

    @property
    def prominence(self) -> float:
        """How far the loudest channel stands out: by its size over the median's."""
        return _prominence(self.columns if self.inputs is None else self.inputs)


def find_outliers(store: QuantizedStore, source: Checkpoint, text: str | None, layer: str | None) -> Outliers:
    """Of the linear ``layer``, or of the one with the loudest channel: by its input over ``text``, or else by its weights.

    ``text`` is a file or "builtin". Raises ConfigError for a layer that is no quantized linear of the store and for a store of
    another model, CalibrationError for a text that is no use.
    """
    records = {  # of a stack each expert sees other tokens: it is no one matrix
        name: record
        for name, record in store.records.items()
        if record.grid is not None and is_linear(name, record.shape) and len(record.shape) == 2
    }
    if store.header["source"].get("sha256") != source.sha256:
        raise ConfigError(f"{source.path}: is not what {store.path} was quantized from; give that model as {asked('source')}")
    names = {name for name in records if layer in (None, name, name.removesuffix(".weight"))}
    if not names:
        raise ConfigError(
            f"{asked('layer', layer)}: is no quantized linear of {store.path}; name one as {next(iter(records), 'none')}"
        )
    inputs = {} if text is None else _input_sizes(source, text)
    loud = {
        name: _prominence(inputs[name] if inputs else _columns(source.read(name)))
        for name in track(sorted(names), "outliers", len(names))
    }
    name = max(loud, key=lambda name: loud[name])
    return _outliers(store, records[name], source.read(name), inputs.get(name))


def _prominence(sizes: F32) -> float:
    return float(sizes.max() / max(float(np.median(sizes)), 1e-30))


def _columns(weight: F32) -> F32:
    largest: F32 = np.abs(weight).max(0)
    return largest


def _input_sizes(source: Checkpoint, text: str) -> dict[str, F32]:
    """F32[IC] by weight name, over a few sequences of the text, one decoder block in memory at a time."""
    from quantize.source import walk_blocks

    tokens, _ = calibration_data(DataSpec(text, CALIBRATION_TOKENS), source)
    runs = track(walk_blocks(source, tokens, "none", 0), "activations", source.config.num_layers)
    return {name: np.sqrt(stats.importance) for run in runs for name, stats in run.stats.items()}


def _outliers(store: QuantizedStore, record: TensorRecord, weight: F32, inputs: F32 | None) -> Outliers:
    grid, name = record.grid, record.name
    assert grid is not None, name
    columns = _columns(weight)
    channel = int(np.argmax(columns if inputs is None else inputs))
    rows, cols = _window(weight, channel, grid)
    after = RowOrders(store.config, store.row_order).to_source(name, store.weight(name).dense())
    errors = {axis: weight - dequantize(rtn(name, weight, grid, axis)) for axis in Axis}
    return Outliers(
        name,
        grid,
        record.axis,
        inputs,
        columns,
        channel,
        (rows.start, cols.start),
        np.abs(weight[rows, cols]),
        None if _folded(store, name) else np.abs(after[rows, cols]),
        {axis: np.abs(error[rows, cols]) for axis, error in errors.items()},
        {axis: float(np.square(error).mean()) for axis, error in errors.items()},
        None if inputs is None else {axis: float(np.square(error * inputs).sum(1).mean()) for axis, error in errors.items()},
    )


def _window(weight: F32, channel: int, grid: Grid) -> tuple[slice, slice]:
    """The rows and columns around the channel and its largest weight, beginning where a group does."""
    row = int(np.argmax(np.abs(weight[:, channel])))
    return _around(row, weight.shape[0], SLICE[0], 1), _around(channel, weight.shape[1], SLICE[1], grid.group_size)


def _around(place: int, size: int, wanted: int, group: int) -> slice:
    length = min(size, wanted)
    group = group if group <= length else 1
    start = min(max(0, place - length // 2) // group * group, size - length)
    return slice(start, start + length)


def _folded(store: QuantizedStore, name: str) -> bool:
    index = block_index(name) or 0
    return any(digits[index] == "1" for digits in store.header.get("transforms", {}).values())

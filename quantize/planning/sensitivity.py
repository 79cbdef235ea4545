"""What each option of each tensor does to the model's output: the losses that an allocation weighs against bytes.

An option is a grid and an axis that the target holds for the tensor's shape, some with a turn or a scale of the input. Its loss
is the KL divergence in nats per token that rounding this one tensor is predicted to add (``output_loss``), by round-to-nearest
with searched params on a sample of the rows; and rounding its input, where files have scales of inputs. Losses of tensors add up
(arXiv 2411.17525, the linearity theorem). Measured once, and kept in a JSON file::

    {"format", "source": {"name", "sha256"}, "target", "calibration", "tensors": [a store's record with "loss", ...]}

By curvature an option is rounded and judged by the inputs' second moments and what errors of each output cost. By noise all of
a tensor's weights are alike: its loss is a slope, measured on the model (``quantize.source.noise``), times the option's relative
squared error; the file has the slopes too, as "noise".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from quantize.checkpoint import Checkpoint
from quantize.config import MOST_NOISE, NOISE, QuantizeConfig
from quantize.errors import ConfigError, asked, listed, shown
from quantize.kinds import readable
from quantize.loss import output_loss
from quantize.outside import Door
from quantize.planning.memory import check_backward
from quantize.planning.option_losses import OptionLosses, sample_of, sample_table
from quantize.planning.options import TABLES, option_problem, options_of, quick_enough
from quantize.progress import track
from quantize.statistics.by_template import check_gradients, check_passes
from quantize.statistics.calibration import data_or_random, rank_poor
from quantize.statistics.measured import Measured, Walk, blocks_of
from quantize.store.record import TensorRecord
from quantize.store.schema import CalibrationJson, Finite, SourceJson, Word, read_record
from quantize.types import I64, InputStats, Target

FORMAT = 1
DOOR = Door(ConfigError, "make it with `adadim sensitivity`")


class NoiseJson(msgspec.Struct, frozen=True):
    """``slopes`` by tensor, in nats a token for each unit of relative squared error, measured at ``levels`` of it; where one fell
    ``below`` 0, it is 0; of what is ``bent`` the slope rests on the first levels alone."""

    levels: tuple[Finite, ...]
    slopes: dict[Word, Finite]
    below: tuple[Word, ...] = ()
    bent: tuple[Word, ...] = ()

    def notes(self) -> list[str]:
        """What to know of single tensors before bytes are spent by their slopes."""
        of = f"noise of {self.levels[0]:.2g} to {self.levels[-1]:.2g} of its energy"
        below = [f"{listed(self.below)}: {of} does no harm; every option counts as free"] if self.below else []
        return below + ([f"{listed(self.bent)}: {of} is more than small; the first levels alone count"] if self.bent else [])


@dataclass(frozen=True)
class Sensitivity:
    """``options``: per tensor what it may become, each record's ``loss`` being the prediction for its axis."""

    source: Mapping[str, str]
    target: str
    calibration: Mapping[str, Any]
    options: Mapping[str, list[TensorRecord]]
    noise: NoiseJson | None = None

    def to_json(self) -> bytes:
        """The file's bytes."""
        header = {"format": FORMAT, "source": dict(self.source), "target": self.target, "calibration": dict(self.calibration)}
        if self.noise is not None:
            header["noise"] = msgspec.to_builtins(self.noise)
        tensors = [record.to_json() for records in self.options.values() for record in records]
        return (json.dumps({**header, "tensors": tensors}) + "\n").encode()


class SensitivityJson(msgspec.Struct):
    """The file; its tensors one by one, as a store has them."""

    format: int
    source: SourceJson
    target: Word
    calibration: CalibrationJson
    tensors: list[dict[str, Any]]
    noise: NoiseJson | None = None


def read_sensitivity(path: Path, source: Checkpoint, target: Target) -> Sensitivity:
    """A file of ``to_json``. Raises ConfigError if it is damaged, or was measured on another model or for another target."""
    raw = DOOR.load(path, SensitivityJson)
    if raw.format != FORMAT:
        raise ConfigError(f"{path}: format {shown(raw.format)}, not {FORMAT}; measure again with `adadim sensitivity`")
    if raw.source.sha256 != source.sha256:
        raise ConfigError(f"{path}: was measured on another model than {source.path}; measure again with `adadim sensitivity`")
    if raw.target != target.name:
        raise ConfigError(f"{path}: was measured for target {shown(raw.target)}, not for {target.name}; measure again")
    options: dict[str, list[TensorRecord]] = {}
    for index, item in enumerate(raw.tensors):
        where = f"{path}: tensors[{index}]"
        record = TensorRecord.from_json(read_record(item, DOOR, where))
        known = options.setdefault(record.name, [])
        problem = option_problem(record, source, target, known)
        if problem is not None:
            raise DOOR.refused(where, problem)
        known.append(record)
    about = msgspec.to_builtins((raw.source, raw.calibration))
    return Sensitivity(about[0], raw.target, about[1], options, raw.noise)


def possible(source: Checkpoint, target: Target, config: QuantizeConfig) -> Sensitivity:
    """Every option that ``measure_sensitivity`` tries, and no loss of any: what a file of the model may be at all."""
    options = {
        spec.name: [
            replace(option, loss={str(option.axis): 0.0})
            for option in options_of(spec, target, config.data.seed)
            if quick_enough(option, target, config.max_slowdown)
        ]
        for spec in source.specs.values()
        if len(spec.shape) == 2 and not spec.kept
    }
    return Sensitivity({"name": readable(source.path.name), "sha256": source.sha256}, target.name, {}, options)


def measure_sensitivity(measured: Measured, config: QuantizeConfig, target: Target, noise_levels: int = 0) -> Sensitivity:
    """Every option's loss within the ``max_slowdown`` of ``config``, on its text, or on random tokens: the linears', the
    embedding's and the head's. By noise of so many levels, or by curvature if there are none.

    Raises CalibrationError, CheckpointError, and ConfigError for a source that is too large for this machine's memory.
    """
    source = measured.source
    check_gradients(source)
    check_backward(source, config.data)
    if not noise_levels:
        check_passes(source, config.data)
    tokens, coverage = data_or_random(config.data, source)
    if noise_levels and target.activations:
        told = f"noise in weights does not say what target {target.name} loses by rounding what they read"
        raise ConfigError(f"{asked('by', NOISE)}: {told}; leave it out")
    options = OptionLosses(source, target, config)
    noise, poor = None, list[str]()
    if noise_levels:
        noise = _by_noise(options, tokens, noise_levels)
    else:
        poor = _by_curvature(options, measured, tokens)
    about = {"name": readable(source.path.name), "sha256": source.sha256}
    return Sensitivity(about, target.name, replace(coverage, rank_poor=tuple(poor)).to_json(), options.found, noise)


def _by_curvature(options: OptionLosses, measured: Measured, tokens: I64) -> list[str]:
    """Fills ``options``; what ``rank_poor`` says."""
    source, data, poor = measured.source, options.config.data, list[str]()
    curvature = measured.curvature(tokens, data.seed)
    walk = Walk(memory=data.max_memory)
    for run in track(blocks_of(source, tokens, curvature, walk), "sensitivity", source.config.num_layers):
        poor += rank_poor(run.stats, run.sites)
        turned = options.turned(run.stats)
        samples = {name: sample_of(source.read(name), stats) for name, stats in run.stats.items()}
        options.fit_inputs(run.sites, samples)
        for name, sample in samples.items():
            options.measure(name, sample, turned[name])
    for name, stats in curvature.tables.items():
        options.measure(name, sample_table(source, name, stats), stats)
    return poor


def _by_noise(options: OptionLosses, tokens: I64, count: int) -> NoiseJson:
    """Fills ``options``; every weight of a tensor matters like the others."""
    from quantize.source import measure_slopes

    levels = tuple(MOST_NOISE / 2**halvings for halvings in reversed(range(count)))
    source, slopes = options.source, measure_slopes(options.source, tokens, options.config.data.seed, levels)
    for name, slope in track(slopes.items(), "sensitivity"):
        outputs, inputs = source.specs[name].shape
        alike = InputStats(np.ones(inputs, np.float32), tokens.size, np.ones(outputs, np.float32))
        rows, known = sample_table(source, name, alike) if name in TABLES else sample_of(source.read(name), alike)
        energy = output_loss(rows, np.zeros_like(rows), known)
        turned = options.turned({name: alike})[name]
        options.measure(name, (rows, known), turned, slope.value / energy if energy else 0.0)
    return NoiseJson(
        levels,
        {name: slope.value for name, slope in slopes.items()},
        tuple(name for name, slope in slopes.items() if slope.below),
        tuple(name for name, slope in slopes.items() if slope.straight < count),
    )

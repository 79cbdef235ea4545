"""What rounding does to one tensor: the loss of each of its options, on a sample of its rows that stands for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quantize.activations import ACTIVATIONS, ActivationGrid
from quantize.block import as_multiplied
from quantize.blocks import dequantize
from quantize.checkpoint import Checkpoint
from quantize.config import QuantizeConfig
from quantize.errors import PlanError
from quantize.loss import activation_loss, output_loss
from quantize.planning.options import TABLES, options_of, quick_enough, turned_options
from quantize.rounding.exact import exact
from quantize.rounding.rtn import rtn
from quantize.steps.activations import Tried, tried
from quantize.steps.columns import Kept, absorbed, harm, loudest
from quantize.store.record import TensorRecord
from quantize.turn import Rotation
from quantize.types import F32, Axis, InputStats, Target, TensorPlan
from quantize.weight import turned

RUN = 256  # rows taken together, so that the groups of both axes are whole
SAMPLE = 1 << 17  # weights of a linear that are rounded, about
WORDS_SAMPLE = 1 << 18  # weights of a sample that are rounded on a grid of words, about
TABLE_ROWS = 2048
Sample = tuple[F32, InputStats]  # rows of a weight, and the statistics in which they stand for all


@dataclass(frozen=True)
class OptionLosses:
    """What is found of each tensor."""

    source: Checkpoint
    target: Target
    config: QuantizeConfig
    found: dict[str, list[TensorRecord]] = field(default_factory=dict)
    inputs: dict[str, Mapping[str, Tried]] = field(default_factory=dict)  # of a linear, by word: what rounds its input

    def fit_inputs(self, sites: Iterable[tuple[str, ...]], samples: Mapping[str, Sample]) -> None:
        """Scales that a file has of inputs, one for all linears of a site. Raises CalibrationError."""
        words = [word for word in self.target.activations if ACTIVATIONS[word].static]
        for site in sites if words else ():
            found = tried(words, {name: samples[name][0] for name in site}, {name: samples[name][1] for name in site})
            self.inputs.update(dict.fromkeys(site, found))

    def turned(self, stats: Mapping[str, InputStats]) -> Mapping[str, InputStats]:
        """Of inputs as the options turn them, once for all linears that share one; as they are where none does."""
        plans = dict[str, TensorPlan]()
        for name in stats:
            spec = self.source.specs[name]
            turn = next((one.turn for one in turned_options(spec, self.target, self.config.data.seed)), None)
            plans[name] = TensorPlan(name, spec.shape, turn=turn)
        return as_multiplied(stats, plans)

    def measure(self, name: str, sample: Sample, turned: InputStats, worth: float = 1.0) -> None:
        """Every option of ``name``, on a ``sample`` of its rows that stands for all; ``turned``: of its input as the options turn
        it; ``worth``: nats for each unit of loss."""
        spec, found, made = self.source.specs[name], self.found.setdefault(name, []), dict[Rotation | None, Sample]()
        beside, seen = _Beside(sample), dict[ActivationGrid, float]()
        for option in options_of(spec, self.target, self.config.data.seed):
            if quick_enough(option, self.target, self.config.max_slowdown):
                if option.turn not in made:
                    made[option.turn] = _turned_sample(sample, option.turn, turned)
                loss = worth * (_loss_of(option, *made[option.turn]) if not option.float_columns else beside.loss(option))
                rounded, more = self._rounded(option, sample, seen)
                if np.isfinite(loss):  # not where the weights overflow a float16 scale
                    found.append(replace(rounded, loss={str(option.axis): loss + more}))

    def _rounded(self, option: TensorRecord, sample: Sample, seen: dict[ActivationGrid, float]) -> tuple[TensorRecord, float]:
        """With what rounds its input, and the loss by that: a scale of the file, or what the runtime does by itself, which is
        looked up in ``seen``."""
        assert option.grid is not None
        if option.activation is not None:
            found = self.inputs[option.name][option.activation.name]
            return replace(option, activation=found.held), found.losses[option.name]
        grid = None if option.name in TABLES else self.target.rounds(option.grid, option.shape)
        if grid is None:
            return option, 0.0
        if grid not in seen:
            rows, known = sample
            assert known.inputs is not None, "no sample of the input was kept"
            seen[grid] = activation_loss(rows, grid.round(known.inputs.sample, {}), known)
        return option, seen[grid]


def _turned_sample(sample: Sample, turn: Rotation | None, stats: InputStats) -> Sample:
    rows, known = sample
    return sample if turn is None else (turned(rows, turn), replace(known, hessian=stats.hessian, visit=None))


def _loss_of(option: TensorRecord, rows: F32, stats: InputStats) -> float:
    """Of rounding a sample to nearest."""
    name, grid, axis = option.name, option.grid, option.axis
    assert grid is not None
    some, known = _fewer(rows, stats) if grid.formula.dims > 1 and axis is Axis.PER_OC else (rows, stats)
    return output_loss(some, dequantize(exact(name, some, grid, axis) or rtn(name, some, grid, axis, known)), known)


@dataclass(frozen=True, eq=False)
class _Beside:
    """Options of a tensor with input channels in float16, on a ``sample`` of its rows. Which channels, the first grid says."""

    sample: Sample
    kept: dict[int, tuple[Kept, InputStats]] = field(default_factory=dict)  # by how many; statistics of the others

    def loss(self, option: TensorRecord) -> float:
        """Of rounding the others to nearest; infinite where float16 does not hold those that are kept, or only a diagonal is
        known of the input, by which they absorb nothing."""
        rows, stats = self.sample
        name, grid, axis, count = option.name, option.grid, option.axis, option.float_columns
        assert grid is not None
        if stats.hessian.ndim == 1:
            return np.inf
        if count not in self.kept:
            columns = loudest(harm(rows, dequantize(rtn(name, rows, grid, axis, None)), stats), count)
            absorb, rest = absorbed(stats.hessian, columns)
            self.kept[count] = Kept(rows, stats, columns, absorb), replace(stats, hessian=rest, visit=None)
        kept, others = self.kept[count]
        try:
            return kept.loss(kept.stored(name, rtn(name, kept.others(), grid, axis, others)).dense())
        except PlanError:
            return np.inf


def sample_of(weight: F32, stats: InputStats) -> Sample:
    """Evenly spread runs of rows, and the statistics in which they stand for all rows."""
    runs = -(-len(weight) // RUN)
    count = min(runs, max(1, round(SAMPLE / (RUN * weight.shape[1]))))
    starts = [RUN * int((i + 0.5) * runs / count) for i in range(count)]
    return _standing(weight, stats, np.concatenate([np.arange(start, min(start + RUN, len(weight))) for start in starts]))


def _fewer(weight: F32, stats: InputStats) -> Sample:
    """Of a large sample some rows: words are slow to fit."""
    return _standing(weight, stats, np.arange(0, len(weight), max(1, weight.size // WORDS_SAMPLE)))


def _standing(weight: F32, stats: InputStats, rows: NDArray[np.intp]) -> Sample:
    """Some rows, and the statistics in which they stand for all."""
    assert stats.row_weight is not None
    own = stats.row_weight[rows]
    scale = stats.row_weight.sum() / max(own.sum(), np.finfo(np.float32).tiny)
    return weight[rows], replace(stats, row_weight=own * scale)


def sample_table(source: Checkpoint, name: str, stats: InputStats) -> Sample:
    """Rows drawn in proportion to their weights, which are as uneven as the words of a text."""
    assert stats.row_weight is not None
    upto = np.cumsum(stats.row_weight, dtype=np.float64)
    steps = (np.arange(TABLE_ROWS) + 0.5) * (upto[-1] / TABLE_ROWS)
    rows, drawn = np.unique(np.searchsorted(upto, steps), return_counts=True)
    weight = np.concatenate([source.read_rows(name, int(row), int(row) + 1) for row in rows])
    return weight, replace(stats, row_weight=(drawn * (upto[-1] / TABLE_ROWS)).astype(np.float32))

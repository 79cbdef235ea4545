"""Floats tuned by the whole model: all of a store's tensors at once, on more of the text that they were calibrated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby

from quantize.progress import track
from quantize.run.job import TABLES, Job, Statistics, results
from quantize.run.task import Result
from quantize.statistics.calibration import other_data
from quantize.steps.learn_floats import tune, tuning_schedule
from quantize.store.tensors import Piece, joined
from quantize.types import I64, QuantizedTensor


def tuning_tokens(job: Job) -> I64:
    """What tuning learns and judges by, I64[sequences, length]: text that rounding did not see, as far as there is any.

    Raises CalibrationError for a text that cannot be read or is too short.
    """
    config, schedule = job.config, tuning_schedule(job.config.tune_steps, job.config.seed)
    tokens = other_data(config, job.assets, str(job.source.path), schedule.wanted)
    schedule.check(len(tokens), config.calibration, "tune_steps", "give a longer text")
    return tokens


def tuned_results(job: Job, statistics: Statistics, tokens: I64) -> Iterator[Result]:
    """One, of every tensor whole."""
    from quantize.source import ModelStudent

    parts = list(track(_kept(results(job, statistics)), "rounding", job.source.config.num_layers + TABLES))
    pieces = whole_pieces(chain.from_iterable(part.pieces for part in parts))
    chosen = [index for index, (tensor, _) in enumerate(pieces) if isinstance(tensor, QuantizedTensor) or tensor.values.ndim == 1]
    student, steps = ModelStudent(job.source, tokens), job.config.tune_steps
    schedule = tuning_schedule(steps, job.config.seed)
    found = tune([pieces[index][0] for index in chosen], student, job.orders, schedule)
    tuned = dict(zip(chosen, found.tensors, strict=True))
    report = {"tuning": {"steps": steps, "before": found.before, "after": found.after}}
    reports = (*chain.from_iterable(part.reports for part in parts), report)
    yield Result([(tuned.get(index, tensor), record) for index, (tensor, record) in enumerate(pieces)], reports)


def whole_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """Tensors that came in chunks of rows, joined."""
    groups = [list(group) for _, group in groupby(pieces, key=lambda piece: piece[1].name)]
    return [(joined([tensor for tensor, _ in group]), group[0][1]) for group in groups]


def _kept(parts: Iterable[Result]) -> Iterator[Result]:
    for part in parts:
        yield Result(list(part.pieces), part.reports)

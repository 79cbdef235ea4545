"""Floats tuned by the whole model: all of a store's tensors at once, on more of the text that they were calibrated on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantize.model_config import HEAD
from quantize.run.job import Job
from quantize.statistics.calibration import other_data
from quantize.steps.learn_floats import tune, tuning_schedule
from quantize.store.tensors import Piece
from quantize.types import I64, QuantizedTensor


def tuning_tokens(job: Job) -> I64:
    """What tuning learns and judges by, I64[sequences, length]: text that rounding did not see, as far as there is any.

    Raises CalibrationError for a text that cannot be read or is too short.
    """
    data, schedule = job.config.data, tuning_schedule(job.config.around.tune_steps, job.config.data.seed)
    tokens = other_data(data, job.source, schedule.wanted)
    schedule.check(len(tokens), data.text, "tune_steps", "give a longer text")
    return tokens


def tuned(job: Job, pieces: list[Piece], tokens: I64) -> tuple[list[Piece], dict[str, Any]]:
    """The ``pieces`` of a store, every tensor whole, with other floats; and what the store's header has to know of it."""
    from quantize.source import ModelStudent

    tensors = [part.weight for part, _ in pieces]
    chosen = [index for index, one in enumerate(tensors) if isinstance(one, QuantizedTensor) or one.values.ndim == 1]
    student, steps = ModelStudent(job.source, tokens, any(one.name == HEAD for one in tensors)), job.config.around.tune_steps
    turns = {part.weight.name: part.turn for part, _ in pieces if part.turn is not None}
    schedule = tuning_schedule(steps, job.config.data.seed)
    found = tune([tensors[index] for index in chosen], student, job.orders, schedule, turns)
    moved = dict(zip(chosen, found.tensors, strict=True))
    report = {"tuning": {"steps": steps, "before": found.before, "after": found.after}}
    return [(replace(part, weight=moved.get(index, part.weight)), record) for index, (part, record) in enumerate(pieces)], report

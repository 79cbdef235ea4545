"""The loop: plan, then tensor by tensor (decoder layer by decoder layer where data is needed) into the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from itertools import tee, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from threadpoolctl import threadpool_limits

from quantize.checkpoint import Checkpoint
from quantize.config import QuantizeConfig
from quantize.planning.memory import check_memory
from quantize.planning.plan import ModelPlan, build_plan
from quantize.progress import track
from quantize.run.job import TABLES, Job, make_job, place_of
from quantize.statistics.calibration import SEQUENCE, Coverage, load_text, sequence_count
from quantize.store.tensors import QuantizedStore, StoreWriter, TensorRecord, write_headers
from quantize.types import Axis, Target, TensorPlan


def quantize_checkpoint(
    source: Checkpoint, out: Path, config: QuantizeConfig, target: Target, force: bool = False
) -> QuantizedStore:
    """Quantize ``source`` for ``target`` into a store at ``out``; the same inputs give the same bytes.

    Raises ConfigError and PlanError before any tensor is read, CalibrationError, CheckpointError, OutputError.
    """
    planned = {out: ModelPlan(config, target, build_plan(source.specs, config, target))}
    return quantize_planned(source, planned, force)[0]


def quantize_planned(source: Checkpoint, planned: Mapping[Path, ModelPlan], force: bool = False) -> list[QuantizedStore]:
    """``quantize_checkpoint`` for what is decided already, one store for each path, all in one walk through ``source``.

    What needs the same statistics shares them, so that a second store takes only its rounding.
    """
    jobs = [make_job(source, plan) for plan in planned.values()]
    for job in jobs:
        if job.runs_source or job.config.tune_steps:
            check_memory(source.specs, job.config, str(source.path))
    with ExitStack() as stack:
        writers = [stack.enter_context(StoreWriter(out, force)) for out in planned]
        _share_walks(jobs)
        # numpy's matrices are small: more threads only wait for one another. What overflows is refused by name, not warned of.
        with threadpool_limits(limits=1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
            together = zip_longest(*[job.parts() for job in jobs], fillvalue=())
            for parts in track(together, "quantizing", source.config.num_layers + TABLES):
                for writer, pieces in zip(writers, parts, strict=True):
                    for tensor, record in pieces:
                        writer.append(tensor, record)
        for writer, job in zip(writers, jobs, strict=True):
            writer.finish(job.header(), job.assets)
    return [QuantizedStore(out) for out in planned]


def _share_walks(jobs: list[Job]) -> None:
    """One walk for all that would see the same of it; rounding that learns changes what the next layer sees."""
    alike: dict[object, list[Job]] = {}
    for job in jobs:
        if job.runs_source and job.config.selection == "hessian" and not (job.config.block_steps or job.config.tune_steps):
            config = job.config
            key = config.calibration, config.calibration_tokens, config.seed, config.token_weight
            alike.setdefault(key, []).append(job)
    for first, *others in alike.values():
        if others:
            walks = tee(first.start_walk(), 1 + len(others))
            for job, walk in zip((first, *others), walks, strict=True):
                job.walk, job.known, job.coverage = walk, first.known, deepcopy(first.coverage)


@contextmanager
def planned_store(source: Checkpoint, plan: ModelPlan) -> Iterator[QuantizedStore]:
    """The store that ``quantize_planned`` would make, for a moment and without its tensors; writers can plan their files from it.

    Raises CalibrationError for a text that cannot be read.
    """
    job = make_job(source, plan)
    if job.runs_source:
        text = load_text(plan.config.calibration)
        job.coverage = Coverage(text.name, text.sha256, sequence_count(plan.config.calibration_tokens) * SEQUENCE, SEQUENCE)
    with TemporaryDirectory() as folder:
        write_headers(
            Path(folder), job.header(), [_planned_record(layer) for layer in sorted(plan.layers, key=place_of)], job.assets
        )
        yield QuantizedStore(Path(folder))


def _planned_record(plan: TensorPlan) -> TensorRecord:
    axis, grid = next(iter(plan.candidates.items()), (Axis.PER_OC, None))
    return TensorRecord(plan.name, plan.shape, grid, plan.dtype, axis, note=plan.note)

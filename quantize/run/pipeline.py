"""The loop: plan, then block by block into the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, tee, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from threadpoolctl import threadpool_limits

from quantize.checkpoint import Checkpoint
from quantize.config import QuantizeConfig
from quantize.planning.memory import check_memory
from quantize.planning.plan import ModelPlan, build_plan
from quantize.progress import track
from quantize.run.digest import run_digest
from quantize.run.header import header
from quantize.run.job import OTHER_PARTS, Job, Statistics, calibration_text, make_job, open_statistics, order_of, results
from quantize.run.task import weight_records
from quantize.run.tuning import tuned, tuning_tokens
from quantize.statistics.calibration import planned_coverage
from quantize.statistics.measured import Measured
from quantize.store.record import TensorRecord
from quantize.store.tensors import QuantizedStore
from quantize.store.writer import StoreWriter, write_headers
from quantize.types import Axis, Target, TensorPlan


def quantize_checkpoint(
    source: Checkpoint, out: Path, config: QuantizeConfig, target: Target, force: bool = False
) -> QuantizedStore:
    """Quantize ``source`` for ``target`` into a store at ``out``; the same inputs give the same bytes.

    Raises ConfigError and PlanError before any tensor is read, CalibrationError, CheckpointError, OutputError.
    """
    planned = {out: ModelPlan(config, target, build_plan(source.specs, config, target, source.read))}
    return quantize_planned(Measured(source), planned, force)[0]


def quantize_planned(measured: Measured, planned: Mapping[Path, ModelPlan], force: bool = False) -> list[QuantizedStore]:
    """``quantize_checkpoint`` for what is decided already, one store for each path, all in one walk through the source.

    What needs the same statistics shares them, so that a second store takes only its rounding.
    """
    source = measured.source
    jobs = [make_job(source, plan) for plan in planned.values()]
    for job in jobs:
        if job.runs_source or job.config.around.tune_steps:
            check_memory(source, job.config)
    # A bad text is refused before any work, and before anything is done to what an interrupted run left.
    tokens = [tuning_tokens(job) if job.config.around.tune_steps else None for job in jobs]
    groups = _alike(jobs)
    texts = [calibration_text(jobs[first]) for first, *_ in groups]
    with ExitStack() as stack:
        writers = [stack.enter_context(StoreWriter(out, force, run_digest(job))) for out, job in zip(planned, jobs, strict=True)]
        # numpy's matrices are small: more threads only wait for one another. What overflows is refused by name, not warned of.
        with threadpool_limits(limits=1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
            shared = [open_statistics(jobs[first], text, measured) for (first, *_), text in zip(groups, texts, strict=True)]
            known = _dealt_out(groups, shared)
            made = [results(job, own, writer) for job, own, writer in zip(jobs, known, writers, strict=True)]
            for parts in track(zip_longest(*made), "quantizing", source.config.num_layers + OTHER_PARTS):
                for writer, part in zip(writers, parts, strict=True):
                    if part is not None:
                        writer.add(part.pieces, part.reports)
            reports = [list(chain.from_iterable(writer.done)) for writer in writers]
            for job, writer, told, text in zip(jobs, writers, reports, tokens, strict=True):
                if text is not None:
                    pieces, report = tuned(job, list(writer.pieces()), text)
                    writer.rewrite(pieces)
                    told.append(report)
        for job, own, writer, told in zip(jobs, known, writers, reports, strict=True):
            writer.finish(header(job, own.coverage, told), job.assets)
    return [QuantizedStore(out) for out in planned]


def _alike(jobs: list[Job]) -> list[list[int]]:
    """Indices of those that see the same of one walk, and so share it; rounding that learns changes what the next block sees."""
    alike: dict[object, list[int]] = {}
    for index, job in enumerate(jobs):
        around = job.config.around
        shares = job.runs_source and not (around.by_scope or job.learns or around.tune_steps)
        alike.setdefault(job.config.data if shares else index, []).append(index)
    return list(alike.values())


def _dealt_out(groups: list[list[int]], shared: list[Statistics]) -> list[Statistics]:
    """Those of each group's jobs, in the order of the jobs: all walk through the blocks that are run once."""
    found = dict[int, Statistics]()
    for indices, opened in zip(groups, shared, strict=True):
        walks = (opened.blocks,) if len(indices) == 1 or opened.blocks is None else tee(opened.blocks, len(indices))
        found |= {index: replace(opened, blocks=walk) for index, walk in zip(indices, walks, strict=True)}
    return [found[index] for index in range(len(found))]


@contextmanager
def planned_store(source: Checkpoint, plan: ModelPlan) -> Iterator[QuantizedStore]:
    """The store that ``quantize_planned`` would make, for a moment and without its tensors; writers can plan their files from it.

    Raises CalibrationError for a text that cannot be read.
    """
    job = make_job(source, plan)
    coverage = planned_coverage(plan.config.data) if job.runs_source else None
    with TemporaryDirectory() as folder:
        records = [record for one in sorted(plan.tensors, key=order_of) for record in _planned_records(one)]
        write_headers(Path(folder), header(job, coverage), records, job.assets)
        yield QuantizedStore(Path(folder))


def _planned_records(plan: TensorPlan) -> list[TensorRecord]:
    axis, grid = next(iter(plan.candidates.items()), (Axis.PER_OC, None))
    return weight_records(plan, axis, grid)

"""What plan.json says of the whole: a fold over what each block has reported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from quantize.architecture.families import knows_folds
from quantize.checkpoint import Checkpoint
from quantize.config import GENERATED
from quantize.errors import shown
from quantize.kinds import readable
from quantize.methods import METHODS
from quantize.model_config import ModelSizes
from quantize.planning.plan import plan_notes
from quantize.run.job import Job
from quantize.statistics.calibration import SEQUENCE, Coverage, sequence_count
from quantize.steps.fold import ChangeBasis, Correction
from quantize.steps.learn_clips import LearnClips
from quantize.steps.scale_channels import ScaleChannels
from quantize.steps.tweak_norms import TweakNorms
from quantize.store.writer import Report


def header(job: Job, coverage: Coverage | None, reports: Iterable[Report] = ()) -> dict[str, Any]:
    """``reports`` of a run's blocks, in order; without any as long as after a run."""
    reports, config, source = list(reports), job.config, job.source
    budget = {} if job.plan.budget is None else {"budget": job.plan.budget}
    poor = [site for report in reports for site in report.get("rank_poor", ())]
    taken_back = sum(len(report.get("taken_back", ())) for report in reports)
    return (
        budget
        | _matched(reports)
        | {
            "version": version("adadim-edge"),
            "target": job.target.name,
            "row_order": str(job.target.row_order),
            "source": {"name": readable(source.path.name), "sha256": source.sha256},
            "config": config.to_json(),
            "calibration": None if coverage is None else {**coverage.to_json(), "rank_poor": poor},
            "imatrix": None if job.imatrix is None else job.imatrix.to_json(),
            "blocks": _learned(reports, config.around.block_steps),
            "tuning": next((report["tuning"] for report in reports if "tuning" in report), None),
            "transforms": {name: _digits(reports, name, source.config.num_layers) for name in _transforms(job)},
            "notes": plan_notes(job.plan.tensors, config, job.target) + _notes_of(job, taken_back),
        }
    )


def _transforms(job: Job) -> list[str]:
    """Those that were asked for, and those of the methods of its linears: known before any block is."""
    methods = [METHODS[name] for name in dict.fromkeys(plan.method for plan in job.plan.tensors if plan.candidates)]
    own = [
        step.name
        for method in methods
        for step in method.steps
        if isinstance(step, ChangeBasis | Correction | LearnClips | ScaleChannels | TweakNorms)
    ]
    return list(dict.fromkeys([*job.config.around.transforms, *own]))


def _digits(reports: list[Report], name: str, blocks: int) -> str:
    """A digit for each decoder block, 1 where the transform was applied: as long before quantizing as after it."""
    applied = {report["index"] for report in reports if name in report.get("applied", ())}
    return "".join(str(int(index in applied)) for index in range(blocks))


def _transforms_note(job: Job) -> list[str]:
    if not _transforms(job) or knows_folds(job.source.config):
        return []
    return [f"no transforms: where a block of {shown(job.source.config.model_type)} may change its basis is not known"]


def _learned(reports: list[Report], steps: int) -> dict[str, Any] | None:
    losses = [report["learned"] for report in reports if "learned" in report]
    if not losses:
        return None
    return {"steps": steps, "before": [before for before, _ in losses], "after": [after for _, after in losses]}


def _matched(reports: list[Report]) -> dict[str, Any]:
    """Of every block whose norms were tweaked: how far its output's statistics are from the source's, and its output's loss."""
    found = [report["matched"] for report in reports if "matched" in report]
    if not found:
        return {}
    distances, losses = zip(*found, strict=True)
    both = {"distance": distances, "loss": losses}
    return {"norms": {key: dict(zip(("before", "after"), zip(*pairs, strict=True), strict=True)) for key, pairs in both.items()}}


def _notes_of(job: Job, taken_back: int) -> list[str]:
    source, own = job.source, [*_slowdown_note(job, taken_back), *_written_note(job)]
    return [*own, *_transforms_note(job), *_window_note(source.config), *_kept_notes(source)]


def _written_note(job: Job) -> list[str]:
    data = job.config.data
    if data.text != GENERATED or not job.runs_source:
        return []
    tokens = sequence_count(data.tokens) * SEQUENCE
    return [f"calibrated on {tokens:,} tokens that the source wrote itself, drawn by seed {data.seed}"]


def _window_note(model: ModelSizes) -> list[str]:
    if model.context == model.max_position:
        return []
    return [f"context cut from {model.max_position} to the sliding window of {model.context}: no runtime here slides one"]


def _kept_notes(source: Checkpoint) -> list[str]:
    """A line for what stays floats in every block for the same reason."""
    alike = Counter((re.sub(r"\.\d+\.", ".*.", name, count=1), spec.kept) for name, spec in source.specs.items() if spec.kept)
    return [f"{name}: {count} kept as floats: {reason}" for (name, reason), count in alike.items()]


def _slowdown_note(job: Job, count: int) -> list[str]:
    bound = job.config.max_slowdown
    return [f"the bound on slowdown, {bound:g}, keeps {count} tensors per_oc whose per_ic loss is lower"] if count else []

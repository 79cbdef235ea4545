"""What a run is made from, in digits: another start of the same goes on with what an interrupted one left."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quantize.grids import grid_to_json
from quantize.run.job import Job
from quantize.statistics.calibration import planned_coverage, reads_once


def run_digest(job: Job) -> str:
    """Hex digits of all that the store's bytes follow from, but for the machine; "" where the text can be read but once.

    Raises CalibrationError for a text that cannot be read.
    """
    text = None
    if job.runs_source or job.config.around.tune_steps:
        if reads_once(job.config.data.text):
            return ""
        text = planned_coverage(job.config.data).sha256
    plans = [
        vars(plan)
        | {"candidates": {str(axis): grid_to_json(grid) for axis, grid in plan.candidates.items()}}
        | {"turn": None if plan.turn is None else plan.turn.to_json()}
        | {"parts": [(part.count, part.grid and grid_to_json(part.grid)) for part in plan.parts]}
        for plan in job.plan.tensors
    ]
    said = {
        "code": _code(),
        "source": job.source.sha256,
        "target": job.target.name,
        "config": job.config.to_json(),
        "text": text,
        "imatrix": None if job.imatrix is None else job.imatrix.sha256,
        "assets": {name: hashlib.sha256(data).hexdigest() for name, data in job.assets.items()},
        "plans": plans,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> dict[str, str]:
    """Of this package's files, and versions of what it computes with."""
    found, room = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(room.rglob("*.py")):
        found.update(path.relative_to(room).as_posix().encode() + path.read_bytes())
    versions = {}
    for package in ("adadim-edge", "numpy", "torch", "transformers", "xllamacpp"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {**versions, "quantize": found.hexdigest()}

"""What a run is made from, in digits: another start of the same goes on with what an interrupted one left."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

from quantize.grids import grid_to_json
from quantize.run.job import Job
from quantize.statistics.calibration import load_text, reads_once


def run_digest(job: Job) -> str:
    """Hex digits of all that the store's bytes follow from; "" where the text can be read but once.

    Raises CalibrationError for a text that cannot be read.
    """
    text = None
    if job.runs_source or job.config.tune_steps:
        if reads_once(job.config.calibration):
            return ""
        text = load_text(job.config.calibration).sha256
    plans = [
        {
            "name": plan.name,
            "shape": plan.shape,
            "grids": {str(axis): grid_to_json(grid) for axis, grid in plan.candidates.items()},
            "method": plan.method,
            "dtype": plan.dtype,
            "note": plan.note,
        }
        for plan in job.plan.tensors
    ]
    said = {
        "version": version("adadim-edge"),
        "source": job.source.sha256,
        "target": job.target.name,
        "config": job.config.to_json(),
        "text": text,
        "imatrix": None if job.imatrix is None else job.imatrix.sha256,
        "assets": {name: hashlib.sha256(data).hexdigest() for name, data in job.assets.items()},
        "plans": plans,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

"""Files -> verdict: ``runtime_checks.checks.verify.verify`` and ``runtime_checks.measure.evaluate.evaluate``."""

from __future__ import annotations

import quantize.telemetry  # noqa: F401 - switches off what other libraries report, before one is loaded
from runtime_checks.measure.results import Check

__all__ = ["Check"]

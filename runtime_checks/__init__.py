"""Files -> verdict: ``runtime_checks.verify.verify`` and ``runtime_checks.evaluate.evaluate``."""

from __future__ import annotations

import quantize.telemetry  # noqa: F401 - switches off what other libraries report, before one is loaded
from runtime_checks.results import Check

__all__ = ["Check"]

"""Files -> verdict: ``runtime_checks.verify.verify`` and ``runtime_checks.evaluate.evaluate``."""

from __future__ import annotations

from runtime_checks.results import Check

__all__ = ["Check"]

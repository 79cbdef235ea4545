from __future__ import annotations

import json
import math

import pytest

from runtime_checks.measure.results import within


@pytest.mark.parametrize(
    ("error", "tolerance", "ok"), [(0, 0, True), (1, 0, False), (0.1, 0.1, True), (math.nan, 1, False), (math.inf, 1, False)]
)
def test_within(error, tolerance, ok):
    check = within("name", "tensor", error, tolerance)
    assert check.ok is ok
    said = json.loads(json.dumps(check.to_json(), allow_nan=False))
    assert list(said) == ["name", "tensor", "error", "tolerance", "ok"]
    assert said["ok"] is ok

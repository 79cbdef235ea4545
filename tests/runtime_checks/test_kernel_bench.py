"""`adadim bench kernel` on a tiny shape: what it says, not how fast."""

from __future__ import annotations

import json

import pytest

from exporter.cli.main import main
from runtime_checks.measure import kernel_bench
from tests import native

KEYS = [
    "K",
    "N",
    "rows",
    "grid",
    "bits",
    "axis",
    "threads",
    "accuracy_level",
    "seconds",
    "matmulnbits_seconds",
    "ratio",
    "gb_per_s",
]


def test_rows(tmp_path, capsys, monkeypatch):
    native.library()
    monkeypatch.setattr(kernel_bench.BenchOptions, "seconds", 0.0)
    monkeypatch.setattr(kernel_bench, "ROWS", (1, 16))
    assert main(["bench", "kernel", "--shape", "64x96", "--threads", "1", "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [list(row) for row in rows] == [KEYS] * 36
    assert {(row["K"], row["N"], row["threads"], row["accuracy_level"]) for row in rows} == {(64, 96, 1, 4)}
    both, one = ("per_oc", "per_ic"), ("per_oc",)
    kinds = {"int": ((2, 3, 4, 8), both), "lm": ((2, 3, 4), both), "hg": ((2, 3), one), "nbits": ((8,), one), "qdq": ((8,), one)}
    assert {(row["grid"], row["bits"], row["axis"], row["rows"]) for row in rows} == {
        (grid, bits, axis, count)
        for grid, (widths, axes) in kinds.items()
        for bits in widths
        for axis in axes
        for count in (1, 16)
    }
    for row in rows:
        assert row["ratio"] == pytest.approx(row["matmulnbits_seconds"] / row["seconds"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "64 x 96" in lines[1]


@pytest.mark.parametrize("word", ["64", "64x", "ax3", "0x3"])
def test_a_shape_that_is_none(word, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "kernel", "--shape", word])
    assert f"{word!r} is no KxN" in capsys.readouterr().err

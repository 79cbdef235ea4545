"""The scripts behind docs/evidence/ still run: each prints its whole table, of a tiny model."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import compare_ggml_fit
import compare_group_sizes
import compare_predictions
import compare_sensitivities
import compare_systems
import compare_transforms
import pytest

from exporter.cli.main import main
from quantize.grids import BLOCK_GRIDS
from quantize.methods import WORDS
from quantize.transforms import NAMES
from tests.tiny import TEXT, make_tiny_model

FROM_CALIBRATION = ["--calibration-tokens", "1024", "--calibration"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", layers=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 40, encoding="utf-8")
    return str(path)


def test_ggml_fit(model, capsys):
    compare_ggml_fit.main([str(model)])
    _, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [row[0] for row in rows] == list(BLOCK_GRIDS)
    assert all(0.1 < float(row[2]) < 1.05 for row in rows)


def test_transforms(model, text, capsys, monkeypatch):
    monkeypatch.setattr(compare_transforms, "TOKENS", 1024)
    compare_transforms.main([str(model), text, "q4_0"])
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines())
    assert head == ["grid", "rounder", *NAMES, "all"]
    assert [row[:2] for row in rows] == [["q4_0", "rtn"], ["q4_0", "gptq"]]
    assert all(0.2 < float(cell) < 1.1 for row in rows for cell in row[2:])
    assert min(float(cell) for cell in rows[0][2:]) < 1  # a transform that changes nothing reads 1


def test_group_sizes(tmp_path, text, capsys):
    """At the same bytes no choice loses less than the knapsack's, and some lose more."""
    model = make_tiny_model(tmp_path / "wide", layers=1, hidden=256, ffn=320)
    words = [str(model), text, "--bits", "2,4", "--alpha", "0,0.1,inf", "--calibration-tokens", "1024"]
    compare_group_sizes.main(compare_group_sizes.arguments(words))
    _, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines())
    assert len(rows) == 2 * 3 * len(compare_group_sizes.LOSSES)
    assert all(float(rule) >= float(best) for *_, rule, best, _ in rows)
    assert any(float(row[-1].split()[0]) > 0 for row in rows)


def test_predictions(model, text, tmp_path, capsys, monkeypatch):
    sensitivity, plot = tmp_path / "sensitivity.json", tmp_path / "plot.svg"
    assert main(["sensitivity", str(model), "--out", str(sensitivity), "--quiet", *FROM_CALIBRATION, text]) == 0
    command = ["compare_predictions.py", str(model), str(sensitivity), text, "--target", "llama.cpp", "--svg", str(plot)]
    command += ["--target-size", "45kB", "--plans", "4", "--chunks", "1", *FROM_CALIBRATION, text]
    monkeypatch.setattr(sys, "argv", command)
    compare_predictions.main(compare_predictions.arguments())
    rows = re.findall(r"^\| \S+ [^|]+\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 4
    assert all(abs(math.log(float(measured) / float(predicted))) < math.log(2) for _, predicted, measured in rows)
    assert plot.read_text(encoding="utf-8").count('r="5"') == 4 + 3  # and the legend


def test_sensitivities(model, text, tmp_path, capsys, monkeypatch):
    """Of a file beside itself all is the same; what was measured is not measured again, nor mixed with something else."""
    files = [tmp_path / f"{name}.json" for name in ("curvature", "noise", "again")]
    for file in files[:2]:
        asked = ["--by", file.stem, *(["--noise-levels", "1"] if file.stem == "noise" else []), *FROM_CALIBRATION, text]
        assert main(["sensitivity", str(model), "--target", "onnxruntime", "--out", str(file), "--quiet", *asked]) == 0
    files[2].write_bytes(files[0].read_bytes())
    out = tmp_path / "out.json"
    command = ["compare_sensitivities.py", str(model), text, str(out), *map(str, files), "--bits", "12", "12.6"]
    monkeypatch.setattr(sys, "argv", [*command, "--chunks", "1", *FROM_CALIBRATION, text])
    compare_sensitivities.main(compare_sensitivities.arguments())
    said = capsys.readouterr().out
    assert "| again | 100% | 100% | 1.000 | 1.000 |" in said
    noise = re.search(r"^\| noise \| (\d+)% \| (\d+)% \| ([\d.]+) \| ([\d.]+) \|$", said, re.MULTILINE)
    assert 0.5 < float(noise[3]) < 1 and min(map(int, noise.groups()[:2])) < 100
    rows = re.findall(r"^\| (\w+), [\d.]+ \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", said, re.MULTILINE)
    assert len(rows) == 6 and all(0.3 < float(row[1]) / float(row[2]) < 3 for row in rows)
    kept = json.loads(out.read_text())
    kept["measured"]["noise, 12.6"] = 1.25
    out.write_text(json.dumps(kept))
    compare_sensitivities.main(compare_sensitivities.arguments())
    assert "| 1.2500 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--chunks", "2", *FROM_CALIBRATION, text])
    with pytest.raises(SystemExit, match="measurements of something else"):
        compare_sensitivities.main(compare_sensitivities.arguments())


def systems(model, text, out, *more):
    return ["compare_systems.py", str(model), text, "--calibration", text, "--out", str(out), "--chunks", "1", *more]


def test_systems_are_compared_one_after_the_other(model, text, tmp_path, monkeypatch, capsys):
    """A second run makes what is missing and nothing else; what is refused is a row; other questions are not mixed in."""
    out = tmp_path / "methods.md"
    for only, bits in (("finequant", "4"), ("finequant", "4,2")):
        words = systems(model, text, out, "--only", only, "--bits", bits, "--target", "onnxruntime")
        monkeypatch.setattr(sys, "argv", words)
        compare_systems.main(compare_systems.arguments(), words[1:])
    made = re.findall(r"^\| (\S+) \| (\d) \| ([\d.]+) \|", capsys.readouterr().out, re.MULTILINE)
    assert [row[:2] for row in made] == [("finequant", "4"), ("finequant", "2")]
    loss = {row[:2]: float(row[2]) for row in made}
    assert 0 < loss["finequant", "4"] < loss["finequant", "2"]
    said = out.read_text()
    assert "--only finequant --bits 4,2" in said and said.count("\n| finequant") == 2 and "- `finequant`: the rule" in said
    monkeypatch.setattr(sys, "argv", [*words, "--chunks", "2"])
    with pytest.raises(SystemExit, match="rows of another command"):
        compare_systems.main(compare_systems.arguments(), words)


def test_every_method_is_compared_and_a_refusal_is_a_row(model, text, tmp_path, monkeypatch):
    words = systems(model, text, tmp_path / "m.md", "--target", "llama.cpp")
    monkeypatch.setattr(sys, "argv", words)
    args = compare_systems.arguments()
    assert [(row["name"], bits) for row, bits in compare_systems.cases(args)] == [
        (word, bits) for word in WORDS for bits in (2, 3, 4)
    ]
    refused = next(case for case in compare_systems.cases(args) if case[0]["name"] == "rtn-ic")
    assert "cannot hold per-IC groups" in compare_systems.line(*refused, compare_systems.measured(args, *refused))

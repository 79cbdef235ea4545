"""The scripts behind docs/evidence/ still run: each prints its whole table, of a tiny model."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import compare_activation_predictions
import compare_ggml_fit
import compare_ggml_words
import compare_group_sizes
import compare_predictions
import compare_sensitivities
import compare_systems
import compare_transforms
import pytest
from systems_activations import activated_table
from systems_claims import CLAIMS, LESS_AT_MORE, MORE_AT_LESS, claims_table, judged, what_pays

from exporter.cli.main import main
from quantize.grids import BLOCK_GRIDS
from quantize.methods import METHODS, WORDS
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


def test_ggml_words(tmp_path, text, capsys, monkeypatch):
    wide = make_tiny_model(tmp_path / "wide", layers=1, hidden=256, heads=8, kv_heads=4, head_dim=32, ffn=256)
    command = ["compare_ggml_words.py", str(wide), text, "--out", str(tmp_path / "out"), "--types", "iq2_s,iq3_s"]
    monkeypatch.setattr(sys, "argv", [*command, "--chunks", "1", *FROM_CALIBRATION, text])
    compare_ggml_words.main(compare_ggml_words.arguments())
    _, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines())
    assert [row[0] for row in rows] == ["iq2_s", "iq3_s"]
    assert all(0 < float(row[2]) < float(row[1]) for row in rows)


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


def test_activation_predictions(model, text, capsys, monkeypatch):
    """Few bits of activations cost what is predicted, whatever the weights cost beside them."""
    command = ["compare_activation_predictions.py", str(model), text, "--plans", "4", "--chunks", "1", *FROM_CALIBRATION, text]
    monkeypatch.setattr(sys, "argv", command)
    compare_activation_predictions.main(compare_activation_predictions.arguments())
    rows = re.findall(r"^\| \d+: .+ \| ([\d.]+) \| ([\d.]+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 4
    assert all(abs(math.log(float(measured) / float(predicted))) < math.log(2) for predicted, measured in rows)


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
    out, group = tmp_path / "methods.md", "rtn-oc --symmetric --group-size 128"
    for only, bits in ((("finequant",), "4"), (("finequant", group), "4,2")):
        named = [word for name in only for word in ("--only", name)]
        words = systems(model, text, out, *named, "--bits", bits, "--target", "onnxruntime")
        monkeypatch.setattr(sys, "argv", words)
        compare_systems.main(compare_systems.arguments(), words[1:])
    made = re.findall(r"^\| ([^|]+) \| (\d) \| ([\d.]+) \|", capsys.readouterr().out, re.MULTILINE)
    assert [row[:2] for row in made] == [("finequant", "4"), ("finequant", "2"), (group, "4"), (group, "2")]
    loss = {row[:2]: float(row[2]) for row in made}
    assert 0 < loss["finequant", "4"] < loss["finequant", "2"] != loss[group, "2"]
    said = out.read_text()
    assert (
        "--only" not in said
        and "--bits 4,2 --target" in said
        and said.count("\n| finequant |") == 2 + 3
        and "Ours: groups merged" in said
    )
    assert f"| finequant 4: {loss['finequant', '4']:.4f} (" in said and f"| {group} 4: {loss[group, '4']:.4f} (" in said
    monkeypatch.setattr(sys, "argv", [*words, "--chunks", "2"])
    with pytest.raises(SystemExit, match="rows of another command"):
        compare_systems.main(compare_systems.arguments(), words)


def test_every_method_is_compared_and_a_refusal_is_a_row(model, text, tmp_path, monkeypatch):
    words = systems(model, text, tmp_path / "m.md", "--target", "llama.cpp")
    monkeypatch.setattr(sys, "argv", words)
    args = compare_systems.arguments()
    every = compare_systems.cases(args)
    assert [(case.name, case.bits) for case in every][: 3 * len(WORDS)] == [(word, bits) for word in WORDS for bits in (2, 3, 4)]
    assert {"cmpq 2.5", "higgs --grid hg2 2", "higgs --rounder gptq --grid hg3 3"} < {case.key for case in every}
    assert {rival for claim in CLAIMS for rival in (claim.row, *claim.rivals)} < {case.key for case in every}
    refused = next(case for case in every if case.name == "rtn-ic")
    assert "cannot hold per-IC groups" in compare_systems.line(refused, compare_systems.measured(args, [refused])[refused.key])
    monkeypatch.setattr(sys, "argv", [*words, "--only", "higgs --grid hg4", "--bits", "4"])
    with pytest.raises(SystemExit, match="--only higgs --grid hg4: no row of that name; there are rtn-oc, "):
        compare_systems.cases(compare_systems.arguments())


def test_rounded_activations_are_rows(model, text, tmp_path, monkeypatch):
    """Simulated, and as the target has it; both beside what the weights alone lose. Several of one file, which is made once."""
    monkeypatch.setattr(sys, "argv", systems(model, text, tmp_path / "m.md", *FROM_CALIBRATION[:2]))
    args, rows = compare_systems.arguments(), {}
    wanted = [
        one for one in compare_systems.cases(args) if one.key in ("rtn-oc 4", "rtn-oc 4 a4-token", "rtn-oc 8 onnxruntime-w8a8")
    ]
    files = compare_systems.of_one_file(args, wanted)
    assert sorted(map(len, files)) == [1, 2]
    for alike in files:
        rows |= compare_systems.measured(args, alike)
    assert not [row for row in rows.values() if "error" in row]
    assert rows["rtn-oc 4 a4-token"]["alone"] == rows["rtn-oc 4"]["kld"] and "alone" not in rows["rtn-oc 4"]
    for one in (one for one in wanted if one.key != "rtn-oc 4"):
        assert rows[one.key]["kld"] > rows[one.key]["alone"] > 0
    made = [line for line in activated_table(rows) if line.startswith("| rtn-oc | ")]
    assert [line.split(" | ")[1:3] for line in made] == [["8", "onnxruntime-w8a8"], ["4", "a4-token"]]


def test_each_system_has_a_page_and_a_section_beside_the_others(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare_systems.py", "m", "t", "--calibration", "c", "--out", "o.md"])
    made = compare_systems.page(compare_systems.arguments(), {}, "a command")
    shown = (compare_systems.PAGES.parent / "methods.md").read_text()
    systems = {name for name, method in METHODS.items() if method.axes}
    pages = {page.stem for page in compare_systems.PAGES.glob("*.md")}
    assert pages == systems | {"regularize"}  # which is a command
    for name in systems:
        assert f"\n## {name}\n" in made and f"\n## {name}\n" in shown and f"(methods/{name}.md)" in made
        assert f"(../methods.md#{name})" in (compare_systems.PAGES / f"{name}.md").read_text()


def test_what_pays_loses_less_in_a_file_that_is_no_larger():
    def row(kld: float, size: float) -> dict[str, float]:
        return {"kld": kld, "bytes": size, "bits_per_weight": size / 1e6}

    rows = {
        "rtn-oc 3": row(0.4, 3.5e6),
        "gptq-oc 3": row(0.2, 3.5e6),
        "a 3": row(0.1, 3.5e6 + 1),
        "b 3": row(0.3, 3.6e6),
        "c 2.5": row(0.3, 3e6),
        "d 3": row(0.1, 4e6),
    }
    line = what_pays(rows, {"rtn-oc 3", "gptq-oc 3"})[-1]
    assert line == "| 3 | gptq-oc 3 (0.2000) | a 3 (0.1000) | b 3 (0.3000) | d 3 (0.1000) | c 2.5 (0.3000) |"
    assert what_pays({"a 3": rows["a 3"]}, ())[-1] == "| 3 | not measured | | | | |"


def test_a_claim_holds_where_its_row_loses_less_at_no_more_bits():
    """Beside the best rival that is as small, else the smallest; what was not measured is not told of."""

    def row(kld: float, bits: float) -> dict[str, float]:
        return {"kld": kld, "bits_per_weight": bits}

    rows = {"higgs 3": row(0.2, 3.05), "rtn-oc 3": row(0.1, 3.5), "rtn-oc --symmetric --group-size channel 3": row(0.6, 3.05)}
    table = claims_table(rows)
    assert f"| higgs | without a text, than RTN | higgs 3: 0.2000 (3.05) | {list(rows)[2]}: 0.6000 (3.05) | yes |" in table
    assert any(line.endswith("| higgs --grid hg3 3 | higgs 3 | not measured |") for line in table)
    del rows["rtn-oc --symmetric --group-size channel 3"]
    assert any(line.endswith(f"| rtn-oc 3: 0.1000 (3.50) | {MORE_AT_LESS} |") for line in claims_table(rows))
    assert judged(row(0.1, 3.5), row(0.2, 3), equal=True) == LESS_AT_MORE
    assert judged(row(0.1, 3.5), row(0.2, 3), equal=False) == "yes"
    assert judged(row(0.2, 3), row(0.2, 3), equal=True) == "no"

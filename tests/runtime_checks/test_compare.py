"""Files of three tools beside each other, and what becomes of those that cannot be measured."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from exporter.cli.main import main
from exporter.gguf.file import write_gguf
from exporter.inspect import inspect
from exporter.targets import TARGETS
from quantize import Checkpoint, QuantizeConfig, open_checkpoint, quantize_checkpoint
from quantize.errors import CalibrationError, ConfigError, FileFormatError
from quantize.statistics.calibration import CalibrationText
from runtime_checks.measure import compare
from runtime_checks.measure.compare import compare_files, describe_files
from runtime_checks.measure.evaluate import EvalOptions, evaluate, score
from runtime_checks.report.compare import WIDTH, compare_page, compare_table
from tests.runtime_checks import reports
from tests.runtime_checks.other_tools import genai_builder, llama_quantize
from tests.tiny import TEXT, make_tiny_model

OPTIONS = EvalOptions(context=48, chunks=2)
LONG = CalibrationText("long.txt", TEXT, "")
EVALUATED = ("ppl", "source_ppl", "kld", "kld_p99", "top1", "tokens", "bytes", "runtime")


class Files(NamedTuple):
    source: Checkpoint
    ours: Path
    tq1_0: Path  # a type that our decoders do not know
    genai: Path

    @property
    def paths(self) -> list[Path]:
        return [self.tq1_0, self.genai, self.ours]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("compare")
    source = open_checkpoint(make_tiny_model(folder / "model", hidden=256, ffn=256))
    store = quantize_checkpoint(source, folder / "store", QuantizeConfig(method="rtn-oc"), TARGETS["llama.cpp"])
    ours = write_gguf(store, folder / "ours.gguf")
    return Files(source, ours, llama_quantize(ours, folder / "tq1_0.gguf", "TQ1_0"), genai_builder(source.path, folder / "genai"))


@pytest.fixture(scope="module")
def report(files) -> dict:
    return compare_files(files.paths, files.source, LONG, OPTIONS)


def test_rows_are_what_eval_says_of_each(files, report):
    assert [row["name"] for row in report["files"]] == [str(path) for path in files.paths]
    for path, row in zip(files.paths, report["files"], strict=True):
        alone = evaluate(path, files.source, TEXT, OPTIONS)
        assert {key: row[key] for key in EVALUATED} == {key: alone[key] for key in EVALUATED}
        assert row["tokens_per_s"] > 0
    assert {key: report[key] for key in ("source", "text", "chunks")} == {"source": "model", "text": "long.txt", "chunks": 2}


def test_what_the_files_hold(report):
    tq1_0, genai, ours = report["files"]
    assert tq1_0["grids"] == {"tq1_0": 15}
    assert tq1_0["bits_per_weight"] == 1.6875
    assert genai["grids"] == {"int4 group 32": 11}  # q, k and v are one, and so are embedding and head
    assert 5 < genai["bits_per_weight"] < 5.6  # float32 scales
    assert ours["grids"] == {"q4_0": 14, "q8_0": 1}
    assert ours["bits_per_weight"] == 4.5
    assert ours["kld"] < tq1_0["kld"]


def test_the_source_itself_differs_nowhere(files):
    class Same:
        def greedy(self, tokens, count):
            return [5, 6, 2, 7][:count]

    class Other:
        def greedy(self, tokens, count):
            return [5, 7, 2][:count]

    class Stops:
        def greedy(self, tokens, count):
            return [5, 6, 2][:count]  # 2 is the end

    continuation = compare._Continuation(files.source, "The", OPTIONS)
    continuation.listen(Same())
    assert [continuation.row(runner())["first_difference"] for runner in (Same, Other, Stops)] == [None, 1, None]
    assert continuation.row(Stops())["sample"] == continuation.sample


def test_the_source_runs_once(files, monkeypatch):
    calls = Counter()

    def counted(source, context):
        runner = compare_source(source, context)
        logits = runner.logits
        runner.logits = lambda *asked: calls.update(["chunk"]) or logits(*asked)
        calls.update(["source"])
        return runner

    compare_source = compare.source_runner
    monkeypatch.setattr(compare, "source_runner", counted)
    compare_files([files.ours, files.genai, files.ours], files.source, LONG, OPTIONS)
    assert calls == {"source": 1, "chunk": OPTIONS.chunks}


def other_vocabulary(files: Files, folder: Path) -> Path:
    return genai_builder(make_tiny_model(folder / "other", vocab=352, hidden=256, ffn=256), folder / "genai")


def other_sizes(files: Files, folder: Path) -> Path:
    source = open_checkpoint(make_tiny_model(folder / "other", hidden=64))
    store = quantize_checkpoint(source, folder / "store", QuantizeConfig(method="rtn-oc"), TARGETS["llama.cpp"])
    return write_gguf(store, folder / "other.gguf")


def truncated(files: Files, folder: Path) -> Path:
    path = folder / "truncated.gguf"
    path.write_bytes(files.ours.read_bytes()[:-4000])
    return path


def no_data(files: Files, folder: Path) -> Path:
    path = Path(shutil.copytree(files.genai, folder / "no_data"))
    (path / "model.onnx.data").unlink()
    return path


def no_head_size(files: Files, folder: Path) -> Path:
    path = Path(shutil.copytree(files.genai, folder / "no_head_size"))
    (path / "genai_config.json").write_text("{}")
    return path


def not_there(files: Files, folder: Path) -> Path:
    return folder / "nothing.gguf"


FAILURES = [
    (other_vocabulary, r"lm_head.weight is \(352, 256\), the source's is \(320, 256\); name the source"),
    (other_sizes, r"embed_tokens.weight is \(320, 64\), the source's is \(320, 256\)"),
    (truncated, "a damaged GGUF"),
    (no_data, "No such file"),
    (no_head_size, "does not say the head size"),
    (not_there, "not there"),
]


@pytest.mark.parametrize(("make", "reason"), FAILURES, ids=lambda item: getattr(item, "__name__", ""))
def test_a_file_that_cannot_be_measured_is_a_row_that_says_why(files, tmp_path, make, reason):
    path = make(files, tmp_path)
    bad, good = compare_files([path, files.ours], files.source, LONG, OPTIONS)["files"]
    assert set(bad) == {"name", "error"}
    assert bad["name"] == str(path) and "\n" not in bad["error"]
    assert re.search(reason, bad["error"])
    assert good["kld"] > 0


def test_another_vocabulary_under_names_that_nobody_knows():
    class Runner:
        def logits(self, tokens, skip):
            return np.zeros((len(tokens) - skip, 352), np.float32)

    with pytest.raises(FileFormatError, match="x: has 352 tokens, the source 320; name the source"):
        score(Path("x"), np.zeros((4, 320), np.float32), Runner(), np.arange(8))


@pytest.mark.parametrize(
    ("text", "prompt", "options", "error", "part"),
    [
        (TEXT, "", OPTIONS, ConfigError, "prompt: has 0 tokens, context=48 takes 1 to 47"),
        (TEXT, TEXT, OPTIONS, ConfigError, "prompt: has [0-9]+ tokens"),
        ("short", "The", OPTIONS, CalibrationError, "one chunk takes 48"),
        (TEXT, "The", replace(OPTIONS, context=4096), ConfigError, "holds 512 tokens at most"),
    ],
)
def test_what_no_file_could_be_measured_with(files, text, prompt, options, error, part):
    with pytest.raises(error, match=part):
        compare_files([files.ours], files.source, replace(LONG, text=text), options, prompt)


def test_without_a_source_only_what_the_files_are(files):
    rows = describe_files([*files.paths, files.ours.with_name("nothing.gguf")], OPTIONS)["files"]
    assert [set(row) for row in rows[:3]] == [{"name", "bits_per_weight", "grids", "bytes", "tokens_per_s", "runtime"}] * 3
    assert rows[0]["bytes"] == inspect(files.tq1_0)["totals"]["bytes"]
    assert set(rows[3]) == {"name", "error"}


def test_the_table_is_read_on_a_terminal(report):
    long = [{**row, "name": "a/very/long/path/" * 9 + row["name"]} for row in report["files"]]
    for rows in (report["files"], long):
        failed = {"name": "broken.gguf", "error": "not a GGUF, or a damaged one " * 5}
        lines = compare_table(report | {"files": [*rows, failed]}).splitlines()
        assert max(map(len, lines)) <= WIDTH
        assert lines[0].split()[0] == "file"
        assert [line.split()[0][-10:] for line in lines[1:4]] == [row["name"][-10:] for row in rows]
        assert lines[4].startswith("broken.gguf: not a GGUF")
    assert "14 q4_0, 1 q8_0" in " ".join(lines)


def test_the_command(files, tmp_path, capsys):
    (tmp_path / "long.txt").write_text(TEXT)
    written, page = tmp_path / "compare.json", tmp_path / "compare.html"
    chosen = ("--text", tmp_path / "long.txt", "--context", 48, "--chunks", 1, "--prompt", "The", "--quiet")
    command = ["compare", *files.paths, tmp_path / "<b>.gguf", "--source", files.source.path, *chosen]
    assert main([str(word) for word in (*command, "--json", written, "--html", page)]) == 1
    assert "\nfile" in "\n" + capsys.readouterr().out
    rows = json.loads(written.read_text())["files"]
    assert [len(row) for row in rows] == [14, 14, 14, 2]
    html = page.read_text()
    assert html.count("<svg") and "&lt;b&gt;.gguf" in html and "<b>.gguf" not in html
    assert all(row["name"] in html for row in rows[:3])


@pytest.mark.parametrize(
    ("klds", "line", "plot"),
    [
        ((0.09, 0.04, 0.02), "Best for its size is 92MB/model.gguf:</strong> it is the smallest file that is close", True),
        ((0.09, 0.3, 0.07), "None is close to the source:</strong> the closest is 105MB/model.gguf (105.0", True),
        ((0.04,), "Best for its size is model.gguf:</strong> it is", False),
        ((), "Cannot say which is good:</strong> nothing was measured against a source.", False),
    ],
)
def test_the_page_begins_with_what_is_best_for_its_size(klds, line, plot):
    rows = [
        reports.row(f"OUT/llama.cpp/{size}MB/model.gguf", size * 10**6, kld)
        for size, kld in zip((80, 92, 105), klds, strict=False)
    ]
    failed = {"name": "<b>.gguf", "error": "no <i>"}
    page = compare_page(reports.comparison(*rows, failed)).decode()
    assert page == compare_page(reports.comparison(*rows, failed)).decode()
    assert line in page
    assert ("<svg" in page) == plot
    assert page.index("<h1") < page.index(line) < page.index("<h2")
    assert page.count(": 92MB/model.gguf</text>") == (2 if line.startswith("Best for its size is 92MB") else 0)
    assert "<b>" not in page
    assert "<i>" not in page


def test_other_commands_say_that_it_is_not_ours(files, tmp_path, capsys):
    assert main(["verify", str(files.genai), "--source", str(files.source.path), "--quiet"]) == 2
    assert f"not written by adadim; measure it: adadim eval {files.genai}" in capsys.readouterr().err
    assert main(["bundle", str(files.genai), "--platform", "web", "--out", str(tmp_path / "bundle")]) == 2
    assert "not written by adadim; make one to bundle: adadim run" in capsys.readouterr().err


def test_the_command_without_a_source(files, capsys):
    assert main(["compare", str(files.ours), "--quiet"]) == 0
    assert "14 q4_0, 1 q8_0" in capsys.readouterr().out
    assert main(["compare", str(files.ours), "--chunks", "1"]) == 2
    assert "name it with --source DIR" in capsys.readouterr().err

"""What a report is made of: which inputs speak of one file, and what is said of those that are no use."""

from __future__ import annotations

import json

import pytest

from quantize.errors import AdaDimError, ConfigError, FileFormatError
from runtime_checks.report_data import Paths, Subject, read_inputs, shorten
from tests.runtime_checks.reports import MARKUP, check, comparison, measured, row, written
from tests.stores import rtn_store
from tests.tiny import make_tiny_model


def test_one_file_is_known_by_the_end_of_its_path(tmp_path):
    store = rtn_store(make_tiny_model(tmp_path / "model"), tmp_path / "a" / "store").path
    rows = written(
        tmp_path / "c.json", comparison(row("b/one.gguf", 5, 0.1), row("c/one.gguf", 6, 0.1), {"name": "x", "error": "no"})
    )
    checks = written(tmp_path / "v.json", {"ok": True, "checks": [check("codes", True)]})
    found = read_inputs(
        Paths(
            [store],
            [rows],
            [("a/store", written(tmp_path / "e.json", measured(7, 0.2)))],
            [("c/one.gguf", checks)],
            ["b/one.gguf"],
        )
    )
    assert [subject.name for subject in found.subjects] == ["store", "b/one.gguf", "c/one.gguf", "x"]
    first, second, third, last = found.subjects
    assert first.is_store and first.report and first.measured and first.measured.size == 7
    assert second.reference and not second.verified and third.verified and third.verified.checks == 1 and not third.reference
    assert last.error == "no" and (found.text, found.prompt, found.sample) == ("held-out.txt", f"Tell {MARKUP}", " of the sea")


def test_names_are_as_long_as_tells_them_apart():
    subjects = [Subject(name) for name in ("/a/b/onnx", "/a/c/onnx", "d.gguf", "/x/e.gguf")]
    shorten(subjects)
    assert [subject.name for subject in subjects] == ["b/onnx", "c/onnx", "d.gguf", "e.gguf"]


ROW = row("a", 5, 0.1)


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("comparisons", "{", "not JSON"),
        ("comparisons", "[1]", "no JSON object"),
        ("comparisons", "[" * 100_000, "not JSON"),
        ("comparisons", {"source": "m"}, "no list of files"),
        ("comparisons", {"source": None, "files": []}, "without --source"),
        ("comparisons", comparison({"error": "x"}), "has no name"),
        ("comparisons", comparison({"name": "a", "error": 3}), "error is 3"),
        ("comparisons", comparison(ROW | {"kld": None}), "kld of a is None"),
        ("comparisons", comparison(ROW | {"kld": "0"}), "kld of a is '0'"),
        ("comparisons", comparison(ROW | {"ppl": float("nan")}), "ppl of a is nan"),
        ("comparisons", comparison(ROW | {"top1": -1}), "top1 of a is -1"),
        ("comparisons", comparison(ROW | {"bytes": True}), "bytes of a is True"),
        ("comparisons", comparison(ROW | {"sample": ["x"]}), "sample is ['x']"),
        ("comparisons", comparison(ROW | {"first_difference": "x"}), "first_difference of a is 'x'"),
        ("comparisons", comparison(ROW, ROW), "a is measured twice"),
        ("comparisons", comparison(ROW, row("b", 5, 0.1) | {"tokens": 99}), "b was measured on 99 tokens"),
        (
            "comparisons",
            comparison(ROW, row("b", 5, 0.1) | {"source_ppl": 12.0}),
            "perplexity is 12.0000, the files before it on 1,536",
        ),
        ("evaluations", {"ppl": 3.0}, "source_ppl is None"),
        ("verifications", {"ok": True}, "no list of checks"),
        ("verifications", {"checks": [{"name": "x"}]}, "no list of checks"),
    ],
)
def test_what_is_no_use_is_one_line_with_the_file(tmp_path, kind, content, words):
    file = tmp_path / "input.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(AdaDimError, match=r"input\.json: ") as refused:
        read_inputs(Paths(**{kind: [file if kind == "comparisons" else ("a", file)]}))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_missing_or_contradicts_itself(tmp_path):
    compared = written(tmp_path / "c.json", comparison(row("a/x", 5, 0.1), row("b/x", 5, 0.1)))
    store = rtn_store(make_tiny_model(tmp_path / "model"), tmp_path / "store").path
    for error, paths, words in (
        (ConfigError, Paths(), "nothing to report on"),
        (ConfigError, Paths([store, store]), "given twice"),
        (ConfigError, Paths(comparisons=[compared], references=["y"]), "--reference y: is none of a/x, b/x"),
        (ConfigError, Paths(comparisons=[compared], references=["x"]), "x: may be any of a/x, b/x"),
        (FileFormatError, Paths(comparisons=[tmp_path / "none.json"]), "none.json: cannot be read"),
        (FileFormatError, Paths([tmp_path / "none.gguf"]), "none.gguf: not there"),
    ):
        with pytest.raises(error, match=words):
            read_inputs(paths)

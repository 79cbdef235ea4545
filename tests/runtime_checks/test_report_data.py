"""What a report is made of: which inputs speak of one file, and what is said of those that are no use."""

from __future__ import annotations

import json

import pytest

from quantize.errors import AdaDimError, ConfigError, FileFormatError
from runtime_checks.report.data import Paths, Subject, read_inputs, shorten
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
        ("comparisons", "[1]", "Expected object, got array"),
        ("comparisons", "[" * 100_000, "not JSON"),
        ("comparisons", '{"files": [], "files": []}', "the key files is twice in an object"),
        ("comparisons", '{"source": "\\ud800", "files": []}', "half of a surrogate pair"),
        ("comparisons", {"source": "m"}, "missing required field files"),
        ("comparisons", {"source": "m", "files": [{}] * 201}, "Expected array of length <= 200"),
        ("comparisons", {"source": None, "files": []}, "without source"),
        ("comparisons", comparison({"error": "x"}), "files[0]: Object missing required field name"),
        ("comparisons", comparison({"name": "a", "error": 3}), "files[0]: error is 3"),
        ("comparisons", comparison(ROW | {"name": ""}), "files[0]: name is '': Expected str matching regex"),
        ("comparisons", comparison(ROW | {"name": "a\0"}), "files[0]: name is 'a\\x00': Expected str matching regex"),
        ("comparisons", comparison(ROW | {"name": "a" * 10**6}), "Expected str of length <= 1000"),
        ("comparisons", comparison(ROW | {"kld": None}), "files[0]: kld is None"),
        ("comparisons", comparison(ROW | {"kld": "0"}), "files[0]: kld is '0'"),
        ("comparisons", comparison(ROW | {"ppl": float("nan")}), "files[0]: ppl is nan"),
        ("comparisons", comparison(ROW | {"ppl": float("inf")}), "files[0]: ppl is inf"),
        ("comparisons", comparison(ROW | {"ppl": 10**400}), "files[0]: ppl is 1000"),
        ("comparisons", comparison(ROW | {"top1": -1}), "files[0]: top1 is -1"),
        ("comparisons", comparison(ROW | {"bytes": True}), "files[0]: bytes is True"),
        ("comparisons", comparison(ROW | {"bytes": 1.5}), "files[0]: bytes is 1.5"),
        ("comparisons", comparison(ROW | {"sample": ["x"]}), "files[0]: sample is ['x']"),
        ("comparisons", comparison(ROW | {"first_difference": "x"}), "files[0]: first_difference is 'x'"),
        ("comparisons", comparison(ROW, ROW), "a is measured twice"),
        ("comparisons", comparison(ROW, row("b", 5, 0.1) | {"tokens": 99}), "b was measured on 99 tokens"),
        (
            "comparisons",
            comparison(ROW, row("b", 5, 0.1) | {"source_ppl": 12.0}),
            "perplexity is 12.0000, the files before it on 1,536",
        ),
        ("evaluations", {"ppl": 3.0}, "Object missing required field bytes"),
        ("evaluations", measured(2**63, 0.1), "bytes is 9223372036854775808"),
        ("verifications", {"ok": True}, "missing required field checks"),
        ("verifications", {"checks": [{"name": "x"}]}, "checks[0] is {'name': 'x'}: Object missing required field tensor"),
        ("verifications", {"checks": [check("c", False) | {"error": -1}]}, "checks[0].error is -1"),
        ("verifications", {"checks": [check("c", False) | {"ok": 0}]}, "checks[0].ok is 0: Expected bool"),
    ],
)
def test_what_is_no_use_is_one_line_with_the_file(tmp_path, kind, content, words):
    file = tmp_path / "input.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(AdaDimError, match=r"input\.json: ") as refused:
        read_inputs(Paths(**{kind: [file if kind == "comparisons" else ("a", file)]}))
    assert words in str(refused.value) and str(refused.value).isprintable() and len(str(refused.value)) < 1500


def test_what_is_missing_or_contradicts_itself(tmp_path):
    compared = written(tmp_path / "c.json", comparison(row("a/x", 5, 0.1), row("b/x", 5, 0.1)))
    store = rtn_store(make_tiny_model(tmp_path / "model"), tmp_path / "store").path
    for error, paths, words in (
        (ConfigError, Paths(), "nothing to report on"),
        (ConfigError, Paths([store, store]), "given twice"),
        (ConfigError, Paths(comparisons=[compared], references=["y"]), "reference='y': is none of a/x, b/x"),
        (ConfigError, Paths(comparisons=[compared], references=["x"]), "x: may be any of a/x, b/x"),
        (FileFormatError, Paths(comparisons=[tmp_path / "none.json"]), "none.json: cannot be read"),
        (FileFormatError, Paths([tmp_path / "none.gguf"]), "none.gguf: not there"),
    ):
        with pytest.raises(error, match=words):
            read_inputs(paths)

"""Which file a report says to ship: the smallest that is close and holds its checks, and else what is missing."""

from __future__ import annotations

import pytest

from runtime_checks.report.advice import CLOSE, RULE, advise
from runtime_checks.report.data import Measured, Miss, Paths, Subject, Verified
from runtime_checks.report.write import write_report
from tests.runtime_checks.reports import MARKUP, comparison, ladder, row, written
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

HELD = Verified(40, [])
MISS = Miss("logits", "blk.0", 0.5, 0.25, False)
MISSED = Verified(40, [MISS, MISS, MISS])
NOTHING = Verified(0, [])


def found(megabytes: float, kld: float, tokens: int = 2048) -> Measured:
    return Measured(int(megabytes * 1e6), 14.0, 13.0, kld, 6 * kld, 0.885, tokens, 120.0, "llama.cpp (1)")


def file(name: str, measured: Measured | None = None, verified: Verified | None = HELD, error: str | None = None) -> Subject:
    return Subject(name, measured=measured, verified=verified, error=error)


def reference(name: str, megabytes: float, kld: float) -> Subject:
    return Subject(name, measured=found(megabytes, kld), reference=True)


SMALL, MIDDLE, LARGE = file("80MB", found(80, 0.09)), file("92MB", found(92, 0.04)), file("105MB", found(105, 0.02))
NUMBERS = "(92.0\xa0MB, KL divergence 0.0400, same favourite token 88.5\xa0% of the time)"
CASES = {
    "the smallest that is close": (
        [LARGE, SMALL, MIDDLE],
        f"Ship 92MB: all 40 checks hold, and it is the smallest such file that is close to the source {NUMBERS}.",
    ),
    "at the bound": ([file("a", found(9, CLOSE)), LARGE], "Ship a: all 40 checks hold"),
    "just over it": ([file("a", found(9, CLOSE * 1.001)), LARGE], "Ship 105MB: all 40 checks hold"),
    "the closer of equals": ([file("a", found(92, 0.041)), MIDDLE], "Ship 92MB: "),
    "one file": ([MIDDLE], f"Ship it: all 40 checks hold, and it is close to the source {NUMBERS}."),
    "one check": ([file("a", found(92, 0.04), Verified(1, []))], "Ship it: its one check holds, and it is close"),
    "few tokens": ([file("a", found(92, 0.04, 512))], "of the time). Only 512 tokens were measured, which is few."),
    "a smaller one misses checks": (
        [file("85MB", found(85, 0.045), MISSED), MIDDLE],
        "Ship 92MB: all 40 checks hold, and it is the smallest such file that is close to the source "
        f"{NUMBERS}. Passed over: 85MB, which misses 3 of 40 checks (first: logits at blk.0).",
    ),
    "smaller ones are not verified": (
        [file("86MB", found(86, 0.045), None), file("85MB", found(85, 0.045), None), MIDDLE],
        "Ship 92MB: all 40 checks hold, and it is the smallest such file that is close to the source "
        f"{NUMBERS}. Passed over (and 1 more): 85MB, which is not verified.",
    ),
    "a larger one misses checks": ([MIDDLE, file("a", found(99, 0.01), MISSED)], f"close to the source {NUMBERS}."),
    "a closer reference, smaller": (
        [MIDDLE, reference("Q4_K", 91, 0.03)],
        f"Ship it: all 40 checks hold, and it is close to the source {NUMBERS}. "
        "But the reference Q4_K is smaller and closer (91.0 MB, 0.0300).",
    ),
    "a closer reference, as large": ([MIDDLE, reference("r", 92, 0.03)], "But the reference r is as large and closer (92.0 MB"),
    "a reference, as close and smaller": ([MIDDLE, reference("r", 91, 0.04)], "the reference r is smaller and as close (91.0 MB"),
    "a reference that the rule would take": (
        [MIDDLE, reference("r", 91, 0.05)],
        "But the reference r is smaller and close enough too (91.0 MB, 0.0500).",
    ),
    "a reference that is too far": ([MIDDLE, reference("r", 91, 0.06)], f"close to the source {NUMBERS}."),
    "a reference that is larger": ([MIDDLE, reference("r", 93, 0.01)], f"close to the source {NUMBERS}."),
    "a reference that is the same": ([MIDDLE, reference("r", 92, 0.04)], f"close to the source {NUMBERS}."),
    "none is verified": (
        [SMALL, file("92 MB", found(92, 0.04), None), file("105MB", found(105, 0.02), None)],
        f"Not yet: 92 MB is the smallest file that is close to the source {NUMBERS}, but whether its bytes are "
        "right is not verified. | adadim verify '92 MB' --source MODEL --json verify.json | "
        "adadim report ... --verify '92 MB=verify.json'",
    ),
    "one file, not verified": ([file("a", found(92, 0.04), None)], f"Not yet: it is close to the source {NUMBERS}, but"),
    "one that misses and one that is not verified": (
        [file("85MB", found(85, 0.04), MISSED), file("92MB", found(92, 0.04), None)],
        "not verified. Passed over: 85MB, which misses 3 of 40 checks",
    ),
    "all too far": (
        [SMALL, file("70MB", found(70, 0.3))],
        "Do not ship: no file is close enough to the source; the closest is 80MB (80.0\xa0MB, KL divergence 0.0900, "
        "same favourite token 88.5\xa0% of the time). At most 0.05 nats a token is close; a larger file is closer. | "
        "adadim run MODEL --target-size SIZE --out OUT",
    ),
    "one file, too far": ([SMALL], "Do not ship: it is too far from the source (80.0\xa0MB, KL divergence 0.0900"),
    "too far, not verified": ([file("80MB", found(80, 0.09), None)], "Do not ship: it is too far from the source"),
    "too far, and a close one that misses checks": (
        [SMALL, file("92MB", found(92, 0.04), MISSED)],
        "the closest without a fault is 80MB (80.0\xa0MB, KL divergence 0.0900, same favourite token 88.5\xa0% of the time). "
        "At most 0.05 nats a token is close; a larger file is closer. Passed over: 92MB, which misses 3 of 40 checks",
    ),
    "one that misses checks": (
        [file("a", found(92, 0.04), MISSED)],
        "Do not ship: a misses 3 of 40 checks (first: logits at blk.0). Make the file again.",
    ),
    "one that no check was made of": ([file("a", found(92, 0.04), NOTHING)], "Do not ship: a was verified by no check at all."),
    "one that could not be measured": (
        [file("a", error="a damaged GGUF")],
        "Do not ship: a could not be measured: a damaged GGUF. Make the file again.",
    ),
    "measured once, failed another time": ([file("a", found(92, 0.04), error="no")], "Do not ship: a could not be measured: no."),
    "all have faults": (
        [file("a", error="no"), file("b", found(9, 0.01), MISSED)],
        "Do not ship any: each of 2 files has a fault. a could not be measured: no.",
    ),
    "one that is not measured": (
        [file("a b.gguf")],
        "Cannot say: how close a b.gguf is to the source is not measured. | adadim compare 'a b.gguf' --source MODEL --text FILE "
        "--json compare.json | adadim report ... --compare compare.json",
    ),
    "not measured, misses checks": ([file("a", None, MISSED)], "Do not ship: a misses 3 of 40 checks"),
    "many that are not measured": (
        [file(name) for name in "abcd"],
        "Cannot say: how close a and 3 more are to the source is not measured. | adadim compare a b c ... --source MODEL",
    ),
    "one that is not measured and one that is too far": (
        [SMALL, file("a")],
        "not measured. Of what is measured nothing is close enough; 80MB is the closest (80.0\xa0MB",
    ),
    "one that is not measured and one that is close": ([MIDDLE, file("a")], "Ship 92MB: "),
    "only references": ([reference("r", 9, 0.01)], "Cannot say: only files of other tools were given"),
    "only a comparison of references and a file with a fault": (
        [reference("r", 9, 0.01), file("a", error="no")],
        "Do not ship: a could not be measured: no.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_line(case):
    subjects, words = CASES[case]
    answer = advise(subjects)
    if not case.startswith(("all have", "many")):  # which name the first that was given
        assert advise(subjects[::-1]) == answer
    line = " | ".join([f"{answer.head}: {answer.text}", *answer.commands])
    assert words in line
    assert line.startswith(words) or not words[0].isupper() or words.startswith(("But", "Passed"))
    if words.endswith(f"{NUMBERS}."):
        assert line.endswith(words)  # nothing more is to be said
    assert (answer.chosen is not None) == answer.head.startswith("Ship") == (answer.mood == "good")
    assert answer.mood == {"Sh": "good", "Do": "bad"}.get(answer.head[:2], "")


def test_a_store_is_not_shipped(tmp_path):
    model = make_tiny_model(tmp_path / "model")
    for target, form, out in (("llama.cpp", "gguf", "model.gguf"), ("onnxruntime", "onnx", "onnx")):
        store = rtn_store(model, tmp_path / target, target).path
        page = tmp_path / f"{form}.html"
        write_report(Paths([store], [], [(str(store), written(tmp_path / "e.json", row("x", 5, 0.01)))]), None, page)
        text = page.read_text(encoding="utf-8")
        assert f"Cannot say:</strong> {target} is a store" in text
        assert f"<code>adadim export {form} {target} --out {out}</code>" in text
        assert text.count("ship this") == 0


def test_the_page_begins_with_the_line_then_the_plot_then_the_cards(tmp_path):
    text = ladder(tmp_path, *(f"OUT/llama.cpp/{size}MB/model.gguf" for size in (80, 90, 100))).read_text(encoding="utf-8")
    order = ("<h1", "Ship 90MB/model.gguf:</strong> all 40 checks hold", 'id="quality"', 'class="card chosen"', "The rule: ")
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert text.count(RULE.replace("'", "&#39;")) == 1
    assert places[3] < text.index('class="card"')  # before the others
    assert text.count("ship: 90MB/model.gguf</text>") == 2  # a wide window's picture and a phone's
    assert "OUT/llama.cpp" not in text
    assert text.count("<figure") == 1


def test_one_measured_file_takes_no_plot(tmp_path):
    out = tmp_path / "report.html"
    titles = write_report(Paths((), [written(tmp_path / "c.json", comparison(row("a", 5, 0.01)))]), None, out)
    assert titles[0] == "What is known"
    assert "<svg" not in out.read_text(encoding="utf-8")


def test_names_of_files_stay_text(tmp_path):
    text = ladder(tmp_path, f"a{MARKUP}", f"b{MARKUP}", f"c{MARKUP}").read_text(encoding="utf-8")
    assert "<strong>Ship b&lt;img src=x" in text
    assert "<img" not in text

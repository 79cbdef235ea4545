"""The report as a person meets it: in Chromium, without a network, light and dark, wide and on a phone, by keys, by axe-core."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from runtime_checks.report.write import write_report
from tests.browser import axe_violations, opened
from tests.runtime_checks.reports import MARKUP, Given, give, ladder

SECTIONS = ("quality", "summary", "samples", "layers", "outliers", "bytes", "failures", "words")
WINDOWS = [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Given:
    return give(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def file(given) -> Path:
    out = given.folder / "report.html"
    write_report(given.paths, given.closeup, out)
    return out


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_it_is_whole_quiet_and_accessible(file, width, scheme):
    with opened(file, width, scheme) as (page, noise):
        assert page.locator("main > section").evaluate_all("all => all.map(one => one.id)") == list(SECTIONS)
        levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
        assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
        page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("figure").count() == page.locator("figure details table").count() > 5
        assert axe_violations(page) == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 300) == (scheme == "dark")
        assert noise == []


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_holds_the_line_and_the_plot(tmp_path, width, height):
    out = ladder(tmp_path, *(f"OUT/llama.cpp/{size}MB/model.gguf" for size in (80, 92, 105)))
    with opened(out, width) as (page, noise):
        bottom = "one => one.getBoundingClientRect().bottom"
        line, plot = page.locator(".answer"), page.locator("#quality .picture:visible svg")
        assert line.inner_text().startswith("Ship 92MB/model.gguf: all 40 checks hold, and it is the smallest")
        assert 0 < line.evaluate(bottom) < plot.evaluate(bottom) < height
        card = page.locator(".card").first
        assert card.inner_text().startswith("92MB/model.gguf ship this")
        assert width == 390 or card.evaluate("one => one.getBoundingClientRect().top") < height
        assert noise == []


@pytest.mark.parametrize("width", [360, 1280])
def test_one_shape_of_each_picture_is_shown(file, width):
    with opened(file, width) as (page, _):
        shown = page.locator(".picture:visible").evaluate_all("all => all.map(one => one.className.split(' ')[1])")
        assert set(shown) == {"panel", "narrow" if width == 360 else "wide"}
        sizes = page.locator(".picture:visible svg").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
        assert min(sizes) > 250 and page.locator(".picture:visible svg text").count() > 50


def test_strings_of_files_stay_text(file):
    with opened(file) as (page, noise):
        assert page.locator("script").count() == 1 and noise == []
        assert page.locator("img").count() == 0
        assert page.locator("#samples blockquote").nth(1).inner_text() == f" the sea <script>alert(1)</script> & {MARKUP}"
        for section in ("summary", "quality", "samples", "failures"):
            assert MARKUP in page.locator(f"#{section}").inner_text()


def test_keys_reach_everything_in_order(file):
    with opened(file) as (page, noise):
        focused = "(() => { const at = document.activeElement; return at.className || at.tagName; })()"
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#main"
        reached = []
        for _ in range(100):
            page.keyboard.press("Tab")
            place = page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY")
            reached.append((page.evaluate(focused), place))
            if page.evaluate("document.activeElement === [...document.querySelectorAll('.scroll')].at(-1)"):
                break
        kinds, places = {kind for kind, _ in reached}, [place for _, place in reached]
        assert kinds == {"scroll", "picture wide", "picture panel", "SUMMARY"} and len(reached) < 100
        assert all(after >= before - 1 for before, after in pairwise(places))
        assert noise == []


def test_marks_say_what_they_are(file):
    with opened(file) as (page, _):
        tip = page.locator("#tip")
        page.locator("#quality .wide").focus()
        assert tip.is_hidden()
        page.keyboard.press("ArrowRight")
        assert tip.inner_text() == "small.gguf: 80.0 MB, KL divergence 0.2000 nats a token, on the front"
        page.keyboard.press("End")
        assert tip.inner_text().startswith(f"apart {MARKUP}.gguf: 100.0 MB")
        assert tip.is_visible()
        page.keyboard.press("Escape")
        assert tip.is_hidden()
        page.locator("#layers .wide").first.locator(".role-mark [aria-label]").first.hover()
        assert re.fullmatch(
            r"layer 0, q: per [OI]C, int, 3 bits in groups of 32, loss per OC [\d.e-]+, per IC [\d.e-]+", tip.inner_text()
        )


def test_same_inputs_same_bytes_in_another_process(given, file):
    out = given.folder / "again.html"
    results = {name: given.folder / f"{name}.json" for name in ("compare", "eval", "held", "missed")}
    command = [
        sys.executable,
        "-m",
        "exporter.cli.main",
        "report",
        given.folder / "store",
        given.folder / "phone",
        "--out",
        out,
        "--quiet",
    ]
    command += ["--compare", results["compare"], "--eval", f"apart {MARKUP}.gguf={results['eval']}", "--reference", "Q4_0.gguf"]
    command += ["--verify", f"phone={results['held']}", "--verify", f"small.gguf={results['missed']}"]
    command += ["--source", given.closeup.source, "--calibration", str(given.closeup.text)]
    done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    assert out.read_bytes() == file.read_bytes()
    assert done.stdout.startswith(f"{out}: {out.stat().st_size:,} bytes, Quality against size, What is known")
    assert out.stat().st_size < 2e6 and not re.search(rb"https?://|file://|url\(", out.read_bytes())

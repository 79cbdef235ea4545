"""The page of apps/web in Chromium: tiny bundles in both runtimes, what a person does with it, and what it refuses."""

from __future__ import annotations

import re
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from screenshot_web import screenshot
from serve_web import serving

from exporter.bundle.folder import BundleOptions, sums_digest, write_bundle
from exporter.bundle.verify_bundle import verify
from quantize.checkpoint import open_checkpoint
from tests.apps.browser import PATIENCE, ask, change_byte, chromium, facts, load, opened, problems, read, settled
from tests.apps.desktop import check_greedy, prompt_ids
from tests.browser import axe_violations
from tests.exporter.bundles import edit_manifest
from tests.runtime_checks.made import make_from
from tests.tiny import Sizes, make_tiny_model, tiny_tokenizer, tiny_weights, write_weights

FORMS = ("llama.cpp", "onnx-oc", "onnx-split", "onnx-adadim")
QUESTION = 'What\'s <b>2 + 2</b>?\n\n  Say it in 日本語 & "quotes". '
COUNT = 32
PART = 1 << 14
SCHEMES = ("light", "dark")
WASM = re.compile(r"\.wasm$")
SIZES = Sizes(hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, layers=2, vocab=320)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """It answers in ASCII and never ends: llama.cpp's server tells of no token that ends or makes no whole character."""
    path = make_tiny_model(tmp_path_factory.mktemp("model"), tied=False)
    weights = tiny_weights(SIZES, "llama", tied=False, seed=3)
    tokenizer = tiny_tokenizer(SIZES.vocab)
    silent = [index for index in range(SIZES.vocab) if not tokenizer.decode([index]).isascii() or not tokenizer.decode([index])]
    weights["lm_head.weight"][silent] = 0
    write_weights(path, weights)
    return path


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> dict[str, Path]:
    """What was exported, by form."""
    folder = tmp_path_factory.mktemp("files")
    return {form: make_from(open_checkpoint(model), folder / form, form).file for form in FORMS}


@pytest.fixture(scope="module")
def bundles(files, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for form, file in files.items():
        write_bundle(file, folder / form, BundleOptions("web", part_size=PART))
    return {form: folder / form for form in FORMS}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, bundles) -> Iterator[Page]:
    """Of a server that isolates it and has every bundle."""
    with serving(list(bundles.values())) as address, opened(browser, address) as page:
        yield page


@pytest.mark.parametrize("form", FORMS)
def test_the_answer_is_the_desktop_runtimes(form, browser, model, files, bundles):
    with serving([bundles[form]], isolated=False) as address, opened(browser, address) as page:
        load(page, form)
        assert facts(page)["Runs in"].endswith(", 1 thread")
        assert facts(page)["Digest"] == sums_digest(bundles[form])
        answer = ask(page, QUESTION, COUNT)
        again = ask(page, QUESTION, COUNT)
    assert len(answer.tokens) == COUNT
    assert check_greedy(files[form], prompt_ids(model, QUESTION), answer.tokens, float_activations=True) > COUNT // 2
    assert again.tokens == answer.tokens
    assert answer.text == tiny_tokenizer(SIZES.vocab).decode(answer.tokens)


@pytest.mark.parametrize("form", ["llama.cpp", "onnx-oc"])
def test_an_isolated_page_uses_threads(form, page, model, files):
    load(page, form)
    assert re.search(r", [2-4] threads$", facts(page)["Runs in"])
    answer = ask(page, QUESTION, COUNT)
    assert check_greedy(files[form], prompt_ids(model, QUESTION), answer.tokens, float_activations=True) > COUNT // 2


def test_a_person_picks_types_reads_and_stops(page):
    expect(page.get_by_role("button", name="Ask")).to_be_disabled()
    load(page, "onnx-oc")
    expect(page.get_by_role("status")).to_have_text("Ready: ask something.")
    question = page.get_by_label("Your question")
    expect(question).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    expect(question).to_have_value("One line\nand another")
    page.get_by_label("At most").fill("400")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#tokens")).not_to_be_empty(timeout=PATIENCE)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    expect(question).to_be_focused()
    stopped = read(page)
    assert 0 < len(stopped.tokens) < 400
    assert re.fullmatch(r"\d+ tokens, \d+\.\d tokens/s, the first after \d+\.\d s", stopped.speed)
    assert ask(page, "One line\nand another", 8).tokens == stopped.tokens[:8]


def test_too_long_a_question_says_so(page):
    load(page, "onnx-oc")
    ask(page, "monkeys " * 600, 8)
    assert problems(page)[0].endswith("and there is room for 512; ask a shorter one")
    assert len(ask(page, "monkeys", 8).tokens) == 8


@pytest.mark.parametrize("form", ["llama.cpp", "onnx-oc"])
@pytest.mark.parametrize("pick", ["a folder", "a zip"])
def test_a_bundle_from_this_device(pick, form, page, bundles):
    load(page, form)
    expected = ask(page, "Hello", 8)
    page.reload()
    if pick == "a folder":
        page.get_by_label("A folder on this device").set_input_files(bundles[form])
    else:
        page.get_by_label("or its zip").set_input_files(zip_of(bundles[form]))
    settled(page)
    assert facts(page)["Digest"] == sums_digest(bundles[form])
    assert ask(page, "Hello", 8).tokens == expected.tokens


def zip_of(bundle: Path) -> Path:
    return bundle.with_name(bundle.name + ".zip")


def part_names(bundle: Path) -> list[str]:
    return sorted(path.relative_to(bundle).as_posix() for path in bundle.glob("model/*-of-*"))


def test_a_tampered_bundle_is_named_and_nothing_of_it_runs(browser, bundles, tmp_path):
    bundle = Path(shutil.copytree(bundles["onnx-oc"], tmp_path / "bundle"))
    name = part_names(bundle)[1]
    change_byte(bundle / name, 100)
    with serving([bundle]) as address, opened(browser, address) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        load(page, "bundle")
        assert problems(page) == verify(bundle)
        assert problems(page)[0].startswith(f"{name}: its sha256 is ")
        expect(page.get_by_role("alert")).to_be_focused()
        expect(page.get_by_role("button", name="Ask")).to_be_disabled()
        assert page.workers == [] and not [url for url in asked if WASM.search(url)]
        page.get_by_label("A folder on this device").set_input_files(bundle)
        settled(page)
        assert problems(page) == verify(bundle)


def test_a_bundle_sealed_anew_is_not_the_one_that_is_pinned(browser, bundles, tmp_path):
    bundle = Path(shutil.copytree(bundles["llama.cpp"], tmp_path / "50%25 é#"))
    pinned = sums_digest(bundle)
    edit_manifest(bundle, lambda manifest: manifest.update(name="Another"))
    with serving([bundle]) as address, opened(browser, address) as page:
        page.get_by_text("Digest and kept files").click()
        page.get_by_label("Only the bundle with this digest").fill(pinned)
        load(page, "50%25 é#")
        assert problems(page) == verify(bundle, pinned)
        page.get_by_label("Only the bundle with this digest").fill("no digest")
        page.get_by_role("button", name="Load").click()
        expect(page.get_by_role("alert")).to_be_visible()
        assert page.workers == []


def test_a_broken_download_goes_on_where_it_was(page, bundles):
    before, part = (name.rpartition("/")[2] for name in part_names(bundles["llama.cpp"])[1:3])
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1]))
    page.route(f"**/{part}", lambda route: route.abort())
    load(page, "llama.cpp")
    [problem] = problems(page)
    assert problem.startswith(f"/bundles/llama.cpp/model/{part}: did not arrive")
    asked.clear()
    page.unroute(f"**/{part}")
    load(page, "llama.cpp")
    assert len(ask(page, "Hello", 4).tokens) == 4
    assert part in asked and before not in asked
    page.reload()
    asked.clear()
    load(page, "llama.cpp")
    assert [name for name in asked if "model.gguf" in name] == []
    page.get_by_text("Digest and kept files").click()
    page.get_by_role("button", name="Delete kept files").click()
    expect(page.locator("#kept")).to_have_text(re.compile(r"^0\.0 MB"))


def test_what_is_kept_is_checked_again(page):
    load(page, "llama.cpp")
    page.evaluate("""async () => {
        const cache = await caches.open("adadim-files");
        for (const key of await cache.keys()) await cache.put(key, new Response("rubbish"));
    }""")
    load(page, "llama.cpp")
    expect(page.get_by_role("status")).to_have_text("Ready: ask something.")


def test_files_that_are_no_bundle(page, bundles, tmp_path):
    with zipfile.ZipFile(tmp_path / "squeezed.zip", "w", zipfile.ZIP_DEFLATED) as squeezed:
        squeezed.write(bundles["onnx-oc"] / "SHA256SUMS", "SHA256SUMS")
    (tmp_path / "cut.zip").write_bytes(zip_of(bundles["onnx-oc"]).read_bytes()[:-1000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "photo.jpg").write_bytes(b"")
    for pick, name, words in (
        ("or its zip", "squeezed.zip", "SHA256SUMS in it is compressed; `adadim bundle` stores files as they are"),
        ("or its zip", "cut.zip", "this is no zip of a bundle, or it is cut off"),
        ("A folder on this device", "empty", "SHA256SUMS: missing"),
    ):
        page.get_by_label(pick).set_input_files(tmp_path / name)
        settled(page)
        expect(page.get_by_role("alert")).to_be_visible()
        assert problems(page) == [words]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing(scheme, page):
    page.emulate_media(color_scheme=scheme)
    assert axe_violations(page) == []
    load(page, "llama.cpp")
    ask(page, "Hello", 8)
    for summary in page.locator("summary").all():
        summary.click()
    assert axe_violations(page) == []
    page.route("**/SHA256SUMS", lambda route: route.fulfill(body="changed"))
    load(page, "onnx-oc")
    assert len(problems(page)) == 1
    assert axe_violations(page) == []


def test_it_fits_a_phone_and_does_not_blink_at_those_who_mind(page):
    page.set_viewport_size({"width": 320, "height": 600})
    load(page, "onnx-oc")
    ask(page, "Hello", 8)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    blink = """() => {
        document.getElementById("answer").setAttribute("aria-busy", "true");
        return getComputedStyle(document.getElementById("answer"), "::after").animationName;
    }"""
    assert page.evaluate(blink) == "blink"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(blink) == "none"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_screenshot_of_the_documents_is_made_so(scheme, browser, bundles, tmp_path):
    screenshot(browser, bundles["onnx-oc"], tmp_path / "page.png", scheme, most=8)
    image = (tmp_path / "page.png").read_bytes()
    width, height = struct.unpack(">II", image[16:24])
    assert image.startswith(b"\x89PNG") and width > 600 and height > 600 and len(image) > 20_000

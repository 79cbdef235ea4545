"""The page of apps/web in Chromium: tiny bundles in both runtimes, what a person does with it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from exporter.bundle import BundleOptions, sums_digest, write_bundle
from exporter.verify_bundle import verify
from quantize.checkpoint import open_checkpoint
from tests.apps.browser import Answer, ask, chromium, facts, load, opened, problems, read, settled, tampered
from tests.apps.desktop import check_greedy, prompt_ids
from tests.native import built
from tests.runtime_checks.made import make_from
from tests.tiny import Sizes, make_tiny_model, tiny_tokenizer, tiny_weights, write_weights
from tools.serve_web import serving

FORMS = ("llama.cpp", "onnx-oc", "onnx-split", "onnx-adadim")
QUESTION = 'What\'s <b>2 + 2</b>?\n\n  Say it in 日本語 & "quotes". '
COUNT = 32
PART = 1 << 14
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

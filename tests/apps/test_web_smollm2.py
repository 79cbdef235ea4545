"""A real model in the browser: SmolLM2-135M, rounded in seconds, says in both runtimes what it says on the desktop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serve_web import serving
from tokenizers import Tokenizer

from exporter.bundle.folder import BundleOptions, write_bundle
from tests.apps.browser import Answer, ask, chromium, load, opened
from tests.apps.desktop import check_greedy, prompt_ids

QUESTION = "Why is the sky blue?"
COUNT = 32


@pytest.mark.slow
def test_smollm2_answers_as_on_the_desktop(kept, tmp_path):
    files = {"llama.cpp": kept.smollm2("llama.cpp"), "onnxruntime": kept.smollm2("onnx-oc")}
    for name, file in files.items():
        write_bundle(file, tmp_path / name, BundleOptions("web"))
    prompt = prompt_ids(files["onnxruntime"], QUESTION)
    tokenizer = Tokenizer.from_file(str(files["onnxruntime"] / "tokenizer.json"))
    for name, answer in answers([tmp_path / name for name in files]).items():
        assert check_greedy(files[name], prompt, answer.tokens, float_activations=True) > 0
        assert len(answer.tokens) == COUNT
        assert answer.text == tokenizer.decode(np.array(answer.tokens))


def answers(bundles: list[Path]) -> dict[str, Answer]:
    """One page, one bundle after another."""
    out = {}
    with chromium() as browser, serving(bundles) as address, opened(browser, address) as page:
        for bundle in bundles:
            load(page, bundle.name)
            out[bundle.name] = ask(page, QUESTION, COUNT)
    return out

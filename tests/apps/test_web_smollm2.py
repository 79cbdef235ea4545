"""A real model in the browser: SmolLM2-135M, rounded in seconds, says in both runtimes what it says on the desktop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from serve_web import serving
from tokenizers import Tokenizer

from exporter.bundle.folder import BundleOptions, write_bundle
from exporter.gguf.file import write_gguf
from exporter.onnx.file import write_onnx
from tests.apps.browser import Answer, ask, chromium, load, opened
from tests.apps.desktop import check_greedy, prompt_ids
from tests.stores import rtn_store
from tests.test_smollm2 import FETCH

QUESTION = "Why is the sky blue?"
COUNT = 32


@pytest.mark.slow
def test_smollm2_answers_as_on_the_desktop(tmp_path):
    fetched = subprocess.run([sys.executable, FETCH], check=True, capture_output=True, text=True)
    source = Path(fetched.stdout.strip())
    files = {
        "llama.cpp": write_gguf(rtn_store(source, tmp_path / "gguf"), tmp_path / "model.gguf"),
        "onnxruntime": write_onnx(rtn_store(source, tmp_path / "store", "onnxruntime", group_size=32), tmp_path / "onnx"),
    }
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

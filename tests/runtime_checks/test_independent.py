"""KL divergence as ``adadim eval`` has it, beside a path that shares nothing with it but gguf-py's reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exporter.gguf.file import write_gguf
from quantize import open_checkpoint
from quantize.statistics.calibration import held_out_text
from quantize.template.convert import convert
from quantize.template.converter import find_converter
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from tests.any_model import make_model
from tests.runtime_checks.independent import divergence
from tests.stores import rtn_store

FETCH = Path(__file__).parent.parent.parent / "tools" / "make_gemma.py"
# Relative: llama.cpp rounds activations to 8 bits, and looks gelu up in a table of half floats, in the file and its source.
EIGHT_BITS = 0.05


def check(source: Path, folder: Path, context: int, chunks: int) -> None:
    file = write_gguf(rtn_store(source, folder / "store"), folder / "model.gguf")
    text = held_out_text()
    ours = evaluate(file, open_checkpoint(source), text, EvalOptions(context, chunks))["kld"]
    theirs = divergence(source, file, text, context, chunks)
    assert theirs > 1e-3
    assert ours == pytest.approx(theirs, rel=EIGHT_BITS)


def test_a_small_gemma(tmp_path):
    heads = {"head_dim": 256, "query_pre_attn_scalar": 256}  # a GGUF does not say the second
    model = make_model(tmp_path / "model", "gemma3_text", "float32", **heads)
    convert(model, tmp_path / "source.gguf", find_converter(), "gpt-2")
    check(tmp_path / "source.gguf", tmp_path, 64, 4)


@pytest.mark.slow
@pytest.mark.gemma
def test_gemma_3_270m(tmp_path):
    fetched = subprocess.run([sys.executable, FETCH], check=True, capture_output=True, text=True)
    check(Path(fetched.stdout.strip()), tmp_path, 128, 2)

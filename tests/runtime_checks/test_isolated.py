"""A runtime that aborts takes nobody with it: two tokens of one text make llama.cpp assert."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from exporter.cli.main import main
from exporter.gguf.file import write_gguf
from exporter.targets import TARGETS
from quantize import Checkpoint, QuantizeConfig, open_checkpoint, quantize_checkpoint
from quantize.child import Child
from quantize.errors import FileFormatError
from quantize.gguf.container import parse_header
from runtime_checks.checks.verify import verify
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from runtime_checks.runtimes.exported import exported_runner
from runtime_checks.runtimes.isolated import IsolatedRunner, checking_children
from tests.runtime_checks.made import Made, make
from tests.tiny import TEXT, make_tiny_model

ASSERTS = r"was ended by SIGABRT \(.*GGML_ASSERT"


@pytest.fixture(scope="module", params=["llama.cpp", "onnx-oc"])
def made(request, tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("made"), request.param)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Checkpoint:
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def good(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    store = quantize_checkpoint(source, folder / "store", QuantizeConfig(method="rtn-oc"), TARGETS["llama.cpp"])
    return write_gguf(store, folder / "good.gguf")


@pytest.fixture(scope="module")
def aborting(good) -> Path:
    path = good.with_name("aborting.gguf")
    data, texts = good.read_bytes(), parse_header(good.read_bytes()).metadata["tokenizer.ggml.tokens"].decode()
    one, other = [text.encode() for text in texts if len(text) == 4 and text.isascii()][-2:]
    held = (4).to_bytes(8, "little")
    assert data.count(held + one) == 1 and one != other
    path.write_bytes(data.replace(held + one, held + other))
    return path


def test_a_file_in_a_child_gives_the_same_numbers(made):
    tokens = np.arange(3, 40)
    runner, alone = IsolatedRunner(made.file, 64), exported_runner(made.file, 64)
    assert runner.name == alone.name
    np.testing.assert_array_equal(runner.logits(tokens), alone.logits(tokens))
    assert runner.greedy(tokens, 4) == alone.greedy(tokens, 4)
    assert runner.speed(2) > 0
    for each in (runner, alone):
        each.close()


def test_what_a_runtime_refuses_is_said_as_without_a_child(good, tmp_path):
    (tmp_path / "short.gguf").write_bytes(good.read_bytes()[:-4000])
    said = []
    for runner in (IsolatedRunner, exported_runner):
        with pytest.raises(FileFormatError, match=r"short\.gguf: ") as refusal:
            runner(tmp_path / "short.gguf", 64)
        said.append(str(refusal.value))
    assert said[0] == said[1]


def test_eval_says_which_file_ended_its_runtime(aborting, source):
    with pytest.raises(FileFormatError, match=rf"aborting\.gguf: its runtime {ASSERTS}"):
        evaluate(aborting, source, TEXT, EvalOptions(context=48, chunks=1))


def test_compare_measures_the_others(aborting, good, source, tmp_path, capfd):
    (tmp_path / "text.txt").write_text(TEXT)
    on = ("--source", source.path, "--text", tmp_path / "text.txt", "--context", 48, "--chunks", 1, "--quiet")
    command = ("compare", aborting, good, *on, "--json", tmp_path / "compare.json")
    assert main([str(word) for word in command]) == 1
    failed, measured = json.loads((tmp_path / "compare.json").read_text())["files"]
    assert failed["name"] == str(aborting) and "was ended by SIGABRT" in failed["error"]
    assert measured["kld"] > 0
    assert capfd.readouterr().err == ""  # of llama.cpp's backtrace, and of what a debugger says


def test_verify_misses_what_could_not_be_looked_at(aborting, source, capfd):
    checks = {check.name: check for check in verify(aborting, source)}
    missed = {name for name, check in checks.items() if not check.ok}
    assert {"tokenizer: the file can be read and run", "model: the file can be read and run"} <= missed
    assert "GGML_ASSERT" in checks["model: the file can be read and run"].tensor
    assert checks["reference = our grid"].ok  # what needs no runtime is still checked
    assert capfd.readouterr() == ("", "")
    assert all(check.ok for check in verify(aborting.with_name("good.gguf"), source))


def test_the_children_that_check_are_kept(good, source):
    verify(good, source)
    before = [child._process for child in checking_children()]
    verify(good, source)
    assert [child._process for child in checking_children()] == before and all(isinstance(c, Child) for c in checking_children())

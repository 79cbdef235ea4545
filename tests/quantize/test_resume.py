"""A run that was interrupted goes on where it stopped, to the bytes of a run in one go; another run never takes its parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from exporter.targets import TARGETS
from quantize import QuantizeConfig, open_checkpoint, quantize_checkpoint
from quantize.errors import CalibrationError, OutputError
from quantize.planning.plan import ModelPlan, build_plan
from quantize.run import job
from quantize.run.pipeline import quantize_planned
from quantize.run.task import run_block
from quantize.statistics.measured import Measured
from quantize.store import output_place
from quantize.store.output_place import PARTS
from quantize.store.outputs import GOES_ON, Unfinished
from quantize.store.writer import StoreWriter
from tests.cases import config_of
from tests.tiny import make_tiny_model

TOKENS = {"calibration_tokens": 8192}
CONFIGS = {
    "gptq": {"calibration_tokens": 1024},
    "rtn": {"method": "rtn-oc"},
    "learned": {"block_steps": 10, **TOKENS},
    "tuned": {"tune_steps": 2, "embedding": "q4_0", "calibration_tokens": 6144},
    "columns": {"float_columns": 3, "selection": "scope", "calibration_tokens": 1024},
    "folded": {"transforms": ("norm-gains", "ffn-order"), "selection": "scope", "calibration_tokens": 1024},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("resume") / "m", layers=3, hidden=64, ffn=96))


def quantized(source, out, **config):
    target = "onnxruntime" if "float_columns" in config else "gguf-adadim"
    return quantize_checkpoint(source, out, config_of(**config), TARGETS[target])


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_linear_that_stays_in_floats_is_what_the_next_block_sees(tmp_path, monkeypatch):
    """BF16 is stored as its bits."""
    folder = make_tiny_model(tmp_path / "m", layers=3, ffn=80, dtype="BF16")  # 80 is no multiple of 32
    source, config = open_checkpoint(folder), {"allow_fallback": True, "method": "gptq-oc", **CONFIGS["learned"]}
    whole = quantized(source, tmp_path / "whole", **config)
    assert whole.records["model.layers.0.mlp.down_proj.weight"].dtype == "BF16"
    interrupted(source, tmp_path / "out", monkeypatch, 2, **config)
    assert files(quantized(source, tmp_path / "out", **config).path) == files(whole.path)


def test_a_run_that_may_not_write_removes_nothing(source, tmp_path, monkeypatch):
    """Its hidden folder would have the same name as that of the run that is alive."""
    with StoreWriter(tmp_path / "out", run="0123456789") as writer:
        writer.add([])
        for _ in range(2):
            with (
                pytest.raises(OutputError, match="another adadim is writing it"),
                Unfinished(tmp_path / "out", True, key="0123456789"),
            ):
                pass
        assert (tmp_path / ".out.01234567.adadim" / PARTS / "00000.json").is_file()


def test_where_there_are_no_locks_nothing_is_shared(source, tmp_path, monkeypatch):
    monkeypatch.setattr(output_place, "fcntl", None)
    interrupted(source, tmp_path / "out", monkeypatch, 2, method="rtn-oc")
    assert not list(tmp_path.iterdir())


def test_a_refused_run_takes_nothing_from_an_interrupted_one(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", monkeypatch, 2, method="rtn-oc")
    for config in ({"tune_steps": 1}, {"token_weight": "unit"}):
        with pytest.raises(CalibrationError, match=r"tokens, but|sequences, but"):
            quantized(source, tmp_path / "out", calibration_tokens=10**8, **config)
    again = Stopping(5)
    monkeypatch.setattr(job, "run_block", again)
    quantized(source, tmp_path / "out", method="rtn-oc")
    assert again.ran == [2]


def test_a_store_that_is_finished_is_not_gone_on_with(source, tmp_path, monkeypatch):
    """Stopped while the second of two is finished: the first is there, and nothing hidden is left of it."""
    plans = {}
    for name in ("a", "b"):
        config = QuantizeConfig("rtn-oc")
        plans[tmp_path / name] = ModelPlan(config, TARGETS["llama.cpp"], build_plan(source.specs, config, TARGETS["llama.cpp"]))
    finish = StoreWriter.finish

    def stopped(self, *args):
        if self.path.name == "b":
            raise Stopped
        finish(self, *args)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(StoreWriter, "finish", stopped)
        quantize_planned(Measured(source), plans)
    names = sorted(item.name.replace(".adadim", "") for item in tmp_path.iterdir())
    assert names[-1] == "a" and len(names) == 3 and all(name.startswith(".b") for name in names[:2])


class Stopped(BaseException):
    """As Ctrl-C and SIGTERM are: no Exception."""


class Stopping:
    """``run_block``, until it has run so often; then somebody stops it."""

    def __init__(self, blocks: int) -> None:
        self.left, self.ran = blocks, list[int | None]()

    def __call__(self, task, kit):
        if task.index is not None:
            if not self.left:
                raise Stopped
            self.left -= 1
            self.ran.append(task.index)
        return run_block(task, kit)


def interrupted(source, out, monkeypatch, blocks, **config):
    with monkeypatch.context() as patched, pytest.raises(Stopped) as stopped:
        patched.setattr(job, "run_block", Stopping(blocks))
        quantized(source, out, **config)
    return stopped.value


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_same_bytes_and_no_block_twice(source, tmp_path, monkeypatch, config):
    whole = quantized(source, tmp_path / "whole", **config)
    out = tmp_path / "out"
    error = interrupted(source, out, monkeypatch, 2, **config)
    assert not out.exists()
    assert error.__notes__ == [GOES_ON]
    again = Stopping(5)
    monkeypatch.setattr(job, "run_block", again)
    store = quantized(source, out, **config)
    assert again.ran == [2]
    assert files(store.path) == files(whole.path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "whole"]


def test_a_run_that_was_killed_while_it_was_interrupted_before(source, tmp_path, monkeypatch):
    """Twice interrupted, and what it had just begun to write is written again."""
    interrupted(source, tmp_path / "out", monkeypatch, 1, method="rtn-oc")
    interrupted(source, tmp_path / "out", monkeypatch, 1, method="rtn-oc")
    (left,) = tmp_path.glob(".out.*.adadim")
    half = left / "tensors" / "model.layers.2.mlp.up_proj.weight.00000.safetensors"
    half.write_bytes(b"half")
    last = Stopping(1)
    monkeypatch.setattr(job, "run_block", last)
    store = quantized(source, tmp_path / "out", method="rtn-oc")
    assert last.ran == [2]
    monkeypatch.undo()
    assert files(store.path) == files(quantized(source, tmp_path / "whole", method="rtn-oc").path)


@pytest.mark.parametrize("damage", ["tensor", "part"])
def test_what_is_damaged_is_made_again(source, tmp_path, monkeypatch, damage):
    interrupted(source, tmp_path / "out", monkeypatch, 2, method="rtn-oc")
    (left,) = tmp_path.glob(".out.*.adadim")
    path = (
        left / "tensors" / "model.layers.1.mlp.up_proj.weight.00000.safetensors"
        if damage == "tensor"
        else left / PARTS / "00002.json"
    )
    path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    again = Stopping(5)
    monkeypatch.setattr(job, "run_block", again)
    store = quantized(source, tmp_path / "out", method="rtn-oc")
    assert again.ran == [1, 2]
    monkeypatch.undo()
    assert files(store.path) == files(quantized(source, tmp_path / "whole", method="rtn-oc").path)


@pytest.mark.parametrize("other", [{"method": "rtn-ic"}, {"method": "rtn-oc", "bits": 5}, {"method": "rtn-oc", "seed": 1}])
def test_another_run_begins_anew_and_leaves_nothing_of_the_first(source, tmp_path, monkeypatch, other):
    interrupted(source, tmp_path / "out", monkeypatch, 2, method="rtn-oc")
    again = Stopping(5)
    monkeypatch.setattr(job, "run_block", again)
    quantized(source, tmp_path / "out", **other)
    assert again.ran == [0, 1, 2]
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_another_text_of_the_same_name_begins_anew(source, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    for words in ("one two three " * 1200, "three two one " * 1200):
        text.write_text(words)
        config = {"calibration": str(text), "calibration_tokens": 512, "token_weight": "unit"}
        if not list(tmp_path.glob(".out*")):
            interrupted(source, tmp_path / "out", monkeypatch, 2, **config)
    again = Stopping(5)
    monkeypatch.setattr(job, "run_block", again)
    quantized(source, tmp_path / "out", **config)
    assert again.ran == [0, 1, 2]


def test_what_fails_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(StoreWriter, "finish", full)
    with pytest.raises(OutputError, match="No space"):
        quantized(source, tmp_path / "out", method="rtn-oc")
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_is_gone_on_with(source, tmp_path):
    """No handler runs: the lock notes what is there, and nobody holds it."""
    code = (
        "import os, signal, sys; from pathlib import Path; from exporter.targets import TARGETS\n"
        "from quantize import *; from quantize.run import job; from quantize.run.task import run_block\n"
        "def stop(task, kit):\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if task.index == 2 else None\n"
        "    print(task.index, flush=True)\n"
        "    return run_block(task, kit)\n"
        "job.run_block = stop if sys.argv[3] == 'kill' else job.run_block\n"
        "quantize_checkpoint(open_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), QuantizeConfig('rtn-oc'), "
        "TARGETS['llama.cpp'])\n"
    )

    def run(kill: str, out: str) -> int:
        words = [sys.executable, "-c", code, str(source.path), str(tmp_path / out), kill]
        return subprocess.run(words, capture_output=True, check=False).returncode

    assert run("kill", "out") == -signal.SIGKILL
    assert len(list(tmp_path.glob(".out.*.adadim"))) == 1
    assert run("", "out") == run("", "whole") == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "whole"]

"""What a child does when it is asked for something that does not end well; functions stand here so that it can import them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from quantize.child import GIB, Child, ChildEnded, Limits
from quantize.errors import CheckpointError

ROOT = Path(__file__).parent.parent.parent
HERE = "tests.quantize.test_child"


def twice(value: np.ndarray) -> np.ndarray:
    print("noise")
    os.write(2, b"more noise\n")
    return value * 2


def abort() -> None:
    os.write(2, b"a line\nGGML_ASSERT(tokens.size() == n) failed\n")
    os.abort()


def overflow() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def wait() -> None:
    time.sleep(100)


def swell() -> int:
    return len(bytearray(3 * GIB))


def swell_in_numpy() -> int:
    return np.empty(3 * GIB, np.uint8).nbytes


def refuse() -> None:
    raise CheckpointError("config.json: is\nno config")


def fail() -> None:
    raise ZeroDivisionError("a bug of ours")


class Odd(ValueError):
    """Can be pickled, and then not be read."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one)


def fail_oddly() -> None:
    raise Odd("a bug", "of theirs")


class Counter:
    def __init__(self, start: int) -> None:
        self.count = start

    def add(self, much: int) -> int:
        self.count += much
        return self.count


ENDS = {
    abort: r"was ended by SIGABRT \(GGML_ASSERT\(tokens.size\(\) == n\) failed\)",
    overflow: "was ended by SIGSEGV",
    leave: "ended with exit code 3",
    wait: "took more than 5 s",
    swell: "needs more memory than it may have",
    swell_in_numpy: "needs more memory than it may have",
}


@pytest.fixture(scope="module")
def child():
    with Child(Limits(seconds=60, memory=GIB)) as child:
        child.call(twice, np.zeros(1))
        yield child


@pytest.mark.parametrize(("function", "reason"), ENDS.items(), ids=[function.__name__ for function in ENDS])
def test_what_ends_the_child_is_said_and_the_next_call_has_a_new_one(function, reason):
    with Child(Limits(seconds=5 if function is wait else 60, memory=GIB)) as child:
        with pytest.raises(ChildEnded, match=reason):
            child.call(function)
        assert child._process is None
        with Child() as other:  # not limited, as starting takes its time
            np.testing.assert_array_equal(other.call(twice, np.arange(3)), [0, 2, 4])


def test_errors_of_ours_arrive_as_they_are(child):
    with pytest.raises(CheckpointError, match="is no config"):
        child.call(refuse)


@pytest.mark.parametrize(("function", "words"), [(fail, "a bug of ours"), (fail_oddly, "a bug")])
def test_other_errors_arrive_with_their_trace(child, function, words):
    with pytest.raises(RuntimeError, match=rf"in {function.__name__}\n(?s:.*){words}"):
        child.call(function)


def test_what_is_not_limited_may_have_what_it_needs():
    with Child() as child:
        assert child.call(swell_in_numpy) == 3 * GIB  # none of which is touched


def test_an_object_is_held_between_calls():
    with Child() as child:
        child.hold(Counter, 3)
        assert (child.ask("add", 4), child.ask("count")) == (7, 7)


def test_what_the_child_prints_is_not_printed(capfd):
    with Child() as child:  # started here, where what it inherits is looked at
        child.call(twice, np.zeros(1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("busy", [False, True])
def test_a_child_ends_with_its_parent(busy):
    code = f"""
import os, threading, time
from quantize.child import Child
from {HERE} import twice, wait
child = Child(); child.call(twice, 1)
if {busy}:
    threading.Thread(target=child.call, args=(wait,), daemon=True).start(); time.sleep(0.5)
print(child._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    pid = int(said.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the child is still there")


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="this system does not name a process's own program")
def test_a_python_that_this_user_may_not_enter(tmp_path, monkeypatch):
    (tmp_path / "python").write_bytes(b"")  # not executable, as one in another user's home
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with Child() as child:
        assert child.call(abs, -3) == 3

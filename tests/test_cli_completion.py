"""Completion in real shells: a line is typed, the tab key pressed, and what the shell makes of it is read off its screen."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from exporter.cli.completion import SHELLS
from exporter.cli.main import main

READY, PATIENCE = "ready> ", 60
START = {  # how a shell is started without anybody's settings, and what it is told first
    "bash": (["bash", "--norc", "--noprofile", "-i"], "PS1='{ready}'; source {script}"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PS1='{ready}'; zle_highlight=(none); fpath=($PWD $fpath); autoload -Uz compinit; compinit -D -u",
    ),
    "tcsh": (["tcsh", "-f", "-i"], "set prompt='{ready}'; source {script}"),
}
LINES = [  # typed before the tab key, and what it becomes
    ("quant", "quantize "),
    ("export gg", "export gguf "),
    ("quantize model --target llama", "quantize model --target llama.cpp "),
    ("bundle ve", "bundle verify "),
    ("bundle --platf", "bundle --platform "),
    ("bundle verify some-b", "bundle verify some-bundle/"),
    ("inspect some-m", "inspect some-model.gguf "),
    ("compare a some-m", "compare a some-model.gguf "),
    ("eval a --text some-t", "eval a --text some-text.txt "),
    ("completion fi", "completion fish "),
]
NOT_IN_TCSH = ("export gg", "bundle ve", "bundle verify some-b", "compare a some-m")  # it knows one word before the one typed


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        (tmp_path / f"script.{shell}").write_text(capsys.readouterr().out)
    (tmp_path / "_adadim").symlink_to("script.zsh")
    (tmp_path / "some-bundle").mkdir()
    for name in ("some-model.gguf", "some-text.txt"):
        (tmp_path / name).touch()
    return tmp_path


class Terminal:
    """A shell that believes somebody sits before it."""

    def __init__(self, shell: str, folder: Path) -> None:
        words, setup = START[shell]
        pid, self._screen = pty.fork()
        if not pid:
            os.chdir(folder)
            os.execvpe(words[0], words, {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "vt100", "LC_ALL": "C"})
        self._pid = pid
        self.type(setup.format(ready=READY, script=f"script.{shell}") + "\n")
        self.read(f"[^']{READY}")  # the prompt, not the echo of the line that sets it

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def read(self, pattern: str) -> None:
        """Wait for it on the screen."""
        shown, end = "", time.monotonic() + PATIENCE
        while not re.search(pattern, shown) and time.monotonic() < end:
            if select.select([self._screen], [], [], 0.1)[0]:
                shown += os.read(self._screen, 4096).decode(errors="replace").replace("\r", "")
        assert re.search(pattern, shown), shown

    def close(self) -> None:
        os.close(self._screen)
        os.waitpid(self._pid, 0)


@pytest.mark.parametrize("shell", START)
def test_the_tab_key(shell, folder):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    terminal = Terminal(shell, folder)
    try:
        for typed, completed in LINES:
            if shell == "tcsh" and typed in NOT_IN_TCSH:
                continue
            terminal.type(f"adadim {typed}\t")
            terminal.read(re.escape(f"adadim {completed}"))
            terminal.type("\x15")  # the line is taken back
    finally:
        terminal.close()


@pytest.mark.parametrize(("typed", "completed"), LINES)
def test_fish_offers(folder, typed, completed):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    ask = ["fish", "--no-config", "-c", "source script.fish; complete -C $argv[1]", f"adadim {typed}"]
    done = subprocess.run(ask, cwd=folder, capture_output=True, text=True, check=True, env=os.environ | {"HOME": str(folder)})
    assert completed.split()[-1] in [line.split("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_the_same_each_time(shell, folder, capsys):
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == (folder / f"script.{shell}").read_text()

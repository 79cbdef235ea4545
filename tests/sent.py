"""A process under strace with an empty home: what it tried to connect to, and what libraries left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from quantize.telemetry import OFF, OFFLINE

STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg")
# Where onnxruntime takes the machine for a builder's it reports nothing; what is switched off by hand is ours to switch off.
HIDES = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "TRAVIS", "BUILDKITE", "JENKINS_URL", "CODEBUILD_BUILD_ID", "BITBUCKET_BUILD_NUMBER")
HIDES += ("CIRCLECI", "GITLAB_CI", "APPVEYOR", "TEAMCITY_VERSION", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME", "HF_HOME")


@dataclass(frozen=True)
class Traced:
    """``sent``: calls with an address of the internet. ``kept``: files below the home."""

    done: subprocess.CompletedProcess[str]
    sent: list[str]
    kept: list[str]


def traced(folder: Path, *command: str | Path) -> Traced:
    """Run it in ``folder``. Skips the test where there is no strace."""
    if shutil.which(STRACE[0]) is None:
        pytest.skip("strace is not there; tools/apt-packages.sh installs it")
    home = folder / "home"
    home.mkdir()
    hidden = {*HIDES, *OFF, *OFFLINE}
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"HOME": str(home)}
    calls = folder / "calls"
    done = subprocess.run(
        [*STRACE, "-o", calls, *command], cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=300
    )
    sent = [line for line in calls.read_text(encoding="utf-8").splitlines() if "AF_INET" in line]
    return Traced(done, sent, sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()))

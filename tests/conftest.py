"""What holds for every test: onnxruntime reports none of it, and where CI is set a test that is skipped has failed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator
from typing import TypeVar

import pytest

import quantize.telemetry  # noqa: F401 - before a test's own import of onnxruntime
from tests.kept import Kept, shared_folder

R = TypeVar("R", pytest.TestReport, pytest.CollectReport)


def has_node_20() -> bool:
    """What `make apps` needs, as the Makefile asks for it."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return False
    version = subprocess.run(["node", "--version"], check=False, capture_output=True, text=True).stdout
    return bool(re.match(r"v(2\d|[3-9]\d)\.", version))


# What a machine for CI may lack, and nothing else: the reason that a test gives -> whether the machine truly cannot.
MAY_BE_SKIPPED: dict[str, Callable[[], bool]] = {
    r"(build/)?apps/": lambda: not has_node_20(),  # Debian 12 brings Node 18
}


@pytest.fixture(autouse=True, scope="session")
def verdicts_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """What other runs have found out is not believed here, and what tests find out is nobody else's."""
    folder = shared_folder(tmp_path_factory) / "verdicts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantize.template.verdicts.home", lambda: folder)
        yield


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Models and templates that no test changes."""
    return Kept(shared_folder(tmp_path_factory) / "kept")


@pytest.fixture
def hangup_is_not_ignored() -> Generator[None]:
    """As in a terminal: also where the tests run under nohup, which a command heeds."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def pardoned(reason: str) -> bool:
    return any(re.match(pattern, reason) and cannot() for pattern, cannot in MAY_BE_SKIPPED.items())


def judged(report: R) -> R:
    """A skip as a failure, under CI."""
    if not report.skipped or hasattr(report, "wasxfail") or not os.environ.get("CI"):
        return report
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")
    if not pardoned(reason):
        report.outcome = "failed"
        report.longrepr = f"CI skips nothing that is not in tests/conftest.py: {reason}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end no process waits for another's minutes."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a module that skips itself while it is imported."""
    return judged((yield))

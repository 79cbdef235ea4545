"""A test that is skipped has failed where CI is set; elsewhere its reason is shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NO_NODE = "apps/node/dist/cli.js is not there; `make native apps` builds it"
SKIPS = {
    "in the test": 'import pytest\ndef test_it(): pytest.skip("no shell")',
    "in a fixture": 'import pytest\n@pytest.fixture\ndef f(): pytest.skip("no shell")\ndef test_it(f): pass',
    "by a mark": 'import pytest\n@pytest.mark.skip(reason="no shell")\ndef test_it(): pass',
    "by a condition": 'import pytest\n@pytest.mark.skipif(True, reason="no shell")\ndef test_it(): pass',
    "unittest's": 'import unittest\nclass Test(unittest.TestCase):\n    def test_it(self): self.skipTest("no shell")',
    "the module": 'import pytest\npytest.skip("no shell", allow_module_level=True)\ndef test_it(): pass',
    "a package": 'import pytest\npytest.importorskip("nobodys_package", reason="no shell")\ndef test_it(): pass',
    "a package in a test": 'import pytest\ndef test_it(): pytest.importorskip("nobodys_package", reason="no shell")',
    "like a pardoned one": 'import pytest\ndef test_it(): pytest.skip("no shell, nor apps/")',
}


def run(folder: Path, text: str | None, ci: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    if text is not None:
        (folder / "test_one.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
    environment = os.environ | {"CI": ci, "PATH": path, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    command += [f"--rootdir={folder}", "--continue-on-collection-errors", folder]
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)


def test_a_skip_fails_under_ci(tmp_path):
    for number, text in enumerate(SKIPS.values()):
        (tmp_path / f"test_{number}.py").write_text(text)
    done = run(tmp_path, None, ci="true")
    assert done.returncode == 1 and "skipped" not in done.stdout.splitlines()[-1], done.stdout
    assert done.stdout.count("CI skips nothing that is not in tests/conftest.py: no shell") >= len(SKIPS)
    for number, kind in enumerate(SKIPS):
        assert re.search(rf"^(FAILED|ERROR) test_{number}\.py", done.stdout, re.M), kind


def test_elsewhere_it_says_why(tmp_path):
    done = run(tmp_path, SKIPS["in a fixture"], ci="")
    assert done.returncode == 0 and "SKIPPED [1] test_one.py:4: no shell" in done.stdout


def test_what_may_be_skipped_is_only_where_the_machine_cannot(tmp_path):
    """A PATH with Node 20 of its own, and one with Node 18."""
    text = f"import pytest\ndef test_it(): pytest.skip({NO_NODE!r})"
    for version, code in (("v20.1.0", 1), ("v18.20.4", 0), (None, 0)):
        tools = tmp_path / str(version)
        tools.mkdir()
        for name in ("npm", "node") if version else ():
            (tools / name).write_text(f"#!/bin/sh\necho {version}\n")
            (tools / name).chmod(0o755)
        assert run(tmp_path, text, "true", str(tools)).returncode == code


def test_what_is_expected_to_fail_is_no_skip(tmp_path):
    text = "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_it(): assert False"
    assert run(tmp_path, text, ci="true").returncode == 0


@pytest.mark.parametrize(("ci", "code", "said"), [("", 0, "going on without"), ("1", 1, "cannot be built")])
def test_a_library_that_cannot_be_built_stops_ci(ci, code, said, tmp_path):
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    environment = os.environ | {"CI": ci, "PATH": str(tmp_path)}
    done = subprocess.run([ROOT / "tools/build_native.sh"], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stdout + done.stderr and "cmake is not there (docs/reference/custom-op.md)" in done.stdout + done.stderr

"""The quickstart works when it is copied line by line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)


@pytest.mark.slow
def test_the_lines_as_they_stand(tmp_path):
    (lines,) = BLOCK.findall((ROOT / "docs" / "guides" / "quickstart.md").read_text())
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "build").mkdir()
    cache = ROOT / "build" / "smollm2"
    cache.mkdir(parents=True, exist_ok=True)
    (tmp_path / "build" / "smollm2").symlink_to(cache)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-c", lines]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "quickstart/model.gguf: ok" in done.stdout
    assert done.stdout.endswith("quickstart/bundle: ok\n")
    assert (tmp_path / "quickstart" / "compare.html").stat().st_size > 10_000

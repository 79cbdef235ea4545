"""A real model all the way: SmolLM2-135M from its GGUF through both writers and every check, a layer at a time within 2 GiB."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

FETCH = Path(__file__).parent.parent / "tools" / "fetch_smollm2.py"
PEAK_BYTES = 2 * 2**30


def fetched() -> Path:
    """Its GGUF, brought once."""
    done = subprocess.run([sys.executable, FETCH], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


@pytest.mark.slow
def test_smollm2_through_both_writers_and_all_checks(tmp_path):
    code = "import sys; from exporter.cli.main import main; sys.exit(main(sys.argv[1:]))"
    options = ("--method", "rtn-ada", "--token-weight", "unit", "--calibration-tokens", "2048", "--quiet")
    args = ["run", str(fetched()), "--out", str(tmp_path / "out"), *options]
    done = subprocess.run([sys.executable, "-c", code, *args], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for target in ("llama.cpp", "onnxruntime"):
        verdict = json.loads((tmp_path / "out" / target / "verify.json").read_text())
        assert verdict["ok"] is True
        assert len(verdict["checks"]) > 500  # 210 linears, several checks each
    assert "per_ic" in done.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= PEAK_BYTES

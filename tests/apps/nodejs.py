"""What is run in Node: packages of apps/, which `make apps` installs, and scripts that esbuild bundles."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.apps.answering import Answering
from tests.native import built

APPS = Path(__file__).parent.parent.parent / "apps"


def bundle_script(source: Path, out: Path) -> Path:
    """A TypeScript file and all it imports as one file for Node. Skips the test where esbuild was not installed."""
    esbuild = built("apps/node_modules/.bin/esbuild")
    options = ("--bundle", "--platform=node", "--format=esm", "--log-level=warning", f"--outfile={out}")
    subprocess.run([esbuild, source, *options], check=True, cwd=APPS)
    return out


class NodeScript(Answering):
    """A script in a process of its own that answers each line of JSON with one. Use as a context manager."""

    def __init__(self, script: Path) -> None:
        super().__init__(["node", script])

"""What is run in Node: packages of apps/, which `make apps` installs, and scripts that esbuild bundles."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.native import built

APPS = Path(__file__).parent.parent.parent / "apps"


def bundle_script(source: Path, out: Path) -> Path:
    """A TypeScript file and all it imports as one file for Node. Skips the test where esbuild was not installed."""
    esbuild = built("apps/node_modules/.bin/esbuild")
    options = ("--bundle", "--platform=node", "--format=esm", "--log-level=warning", f"--outfile={out}")
    subprocess.run([esbuild, source, *options], check=True, cwd=APPS)
    return out


class NodeScript:
    """A script in a process of its own that answers each line of JSON with one. Use as a context manager."""

    def __init__(self, script: Path) -> None:
        self._process = subprocess.Popen(["node", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> Any:
        """Its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> NodeScript:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.communicate()

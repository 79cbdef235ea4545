"""Code of others in a Python of its own: a request goes in as JSON, the last line of what comes out is the answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from quantize.telemetry import OFF, OFFLINE

SERVE = Path(__file__).with_name("serve.py")
T = TypeVar("T", bound="Answer")


class Answer(msgspec.Struct):
    """``error``: why there is none. ``ended``: the process said nothing of its own, as where memory is short."""

    error: str | None = None
    ended: bool = False


def ask(adapter: Path, request: Mapping[str, Any], answer: type[T]) -> T:
    """What the script ``adapter`` says to ``request``, under ``serve.py``; that it ended otherwise is an error of the answer."""
    done = subprocess.run(
        [sys.executable, str(SERVE), str(adapter)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **OFF, **OFFLINE},
    )
    try:
        return msgspec.json.decode((done.stdout.splitlines() or [""])[-1], type=answer)
    except msgspec.ValidationError as error:
        return answer(error=f"its answer is strange: {error}")
    except msgspec.DecodeError:
        words = (done.stderr.splitlines() or [""])[-1] if done.returncode >= 0 else ""
        return answer(error=f"it ended: {words or f'exit code {done.returncode}'}", ended=True)

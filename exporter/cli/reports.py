"""``--json`` and ``--html``: reports that take the place of an earlier report of the same command, and of nothing else."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantize.outside import open_regular
from quantize.store.outputs import Foreign, new_file

Json = dict[str, Any] | list[dict[str, Any]]
Save = Callable[[Json], None]
MOST = 256 << 20  # bytes of an earlier report that are read
HEAD = 4096
KEYS = {  # of which an earlier report is known
    "verify": {"ok", "checks"},
    "eval": {"ppl", "source_ppl", "kld", "tokens", "runtime"},
    "compare": {"source", "files"},
    "bench": {"K", "N", "threads", "rows", "ratio"},
}
PAGE = (b"<!doctype html>", b"Content-Security-Policy", b"script-src 'sha256-", b"<title>")


def report_of(command: str) -> Foreign:
    """Why a file is no JSON that ``command`` wrote, nor empty."""

    def foreign(path: Path) -> str | None:
        try:
            with open_regular(path) as file:
                data = file.read(MOST)
            found = json.loads(data) if data else None
        except (OSError, ValueError, RecursionError):
            found = ""
        if isinstance(found, list):  # rows
            found = found[0] if found else ""
        ours = found is None or (isinstance(found, dict) and found.keys() >= KEYS[command])
        return None if ours else f"is there, and no report of `adadim {command}`"

    return foreign


def page_of(path: Path) -> str | None:
    """Why a file is no page of ours, nor empty."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
    except OSError:
        head = b"?"
    ours = not head or (head.startswith(PAGE[0]) and all(part in head for part in PAGE))
    return None if ours else "is there, and no page of `adadim compare`"


@contextmanager
def json_output(args: Namespace) -> Iterator[Save]:
    """``--json`` of a command, looked at before its work: gives what saves the report there, or does nothing without it.

    Raises OutputError.
    """
    if args.json is None:
        yield lambda _: None
        return
    with new_file(args.json, args.force, report_of(args.command)) as file:

        def save(report: Json) -> None:
            file.write(json_bytes(report))

        yield save


def json_bytes(report: Json) -> bytes:
    """As it stands in a file."""
    return (json.dumps(report, indent=1) + "\n").encode()

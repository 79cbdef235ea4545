"""Texts that can be read only once, as ``<(zcat text.gz)``: kept in a file for as long as the command runs."""

from __future__ import annotations

import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantize.config import BUILTIN, GENERATED
from quantize.statistics.calibration import copy_text, reads_once

OPTIONS = ("calibration", "text")


@contextmanager
def kept_texts(args: Namespace) -> Iterator[None]:
    """Where a text comes through a pipe, ``args`` names a copy of it, of the same name. Raises CalibrationError."""
    words = {name: getattr(args, name, None) for name in OPTIONS}
    once = {name: word for name, word in words.items() if word not in (None, BUILTIN, GENERATED) and reads_once(word)}
    if not once:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="adadim-text-"))
    try:
        for name, word in once.items():
            copy = folder / Path(word).name
            copy_text(word, copy)
            setattr(args, name, str(copy))
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)

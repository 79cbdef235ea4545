"""What several tests read and none changes, made once for all of pytest's processes, whichever comes first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quantize.checkpoint.gguf_template import GgufTemplate


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Of this run, for all of its processes."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """``folder`` as ``make`` fills it; whoever asks meanwhile waits."""
    done, lock = (folder.with_name(f"{folder.name}.{word}") for word in ("done", "lock"))
    with lock.open("w") as held:
        flock(held, LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


class Kept:
    """Random models of ``tests.any_model.MODELS``, and what their converters make of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def model(self, model_type: str, dtype: str = "bfloat16") -> Path:
        """A Hugging Face folder."""
        from tests.any_model import make_model

        place = self._folder / f"{model_type}-{dtype}"
        return once(place, lambda folder: make_model(folder / "model", model_type, dtype)) / "model"

    def gguf(self, model_type: str, dtype: str = "float32") -> GgufTemplate:
        """One that torch runs, too; a template even if its family is known by name."""
        from tests.any_model import gguf_template, opened_template

        model = self.model(model_type, dtype)
        place = self._folder / f"{model_type}-{dtype}-gguf"
        return opened_template(once(place, lambda folder: gguf_template(model, folder)) / "model.gguf", model)

    def onnx(self, model_type: str, dtype: str = "bfloat16") -> Path:
        """A float folder of the first graph that computes what torch does."""
        from quantize.template.onnx_convert import convert_onnx

        model = self.model(model_type, dtype)
        place = self._folder / f"{model_type}-{dtype}-onnx"
        return once(place, lambda folder: convert_onnx(model, folder / "onnx")) / "onnx"

    def smollm2(self, form: str) -> Path:
        """SmolLM2-135M, rounded in seconds, as a file of one of ``made.FORMS``."""
        from quantize.checkpoint import open_checkpoint
        from tests.runtime_checks.made import make_from
        from tests.test_smollm2 import fetched

        place = once(self._folder / f"smollm2-{form}", lambda folder: make_from(open_checkpoint(fetched()), folder, form))
        return place / ("file.gguf" if form == "llama.cpp" else "onnx")

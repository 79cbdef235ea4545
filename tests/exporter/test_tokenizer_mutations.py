"""A model's tokenizer files under seeded changes: each is exported, or refused in one clean line that names the folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest

from exporter.gguf.file import write_gguf
from exporter.onnx.file import write_onnx
from quantize.errors import AdaDimError
from tests.mutations import mutate_bytes, mutate_json
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

TRIES = 20
LONGEST = 2000
FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
WRITERS = {"llama.cpp": write_gguf, "onnxruntime": write_onnx}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("whole") / "m", hidden=32, heads=2, kv_heads=1, ffn=32, layers=1)


@pytest.mark.parametrize("target", WRITERS)
@pytest.mark.parametrize("name", FILES)
def test_every_change_is_exported_or_refused(whole, tmp_path, capfd, name, target):
    """Nothing else is printed, as Rust's panics are."""
    data, refused = (whole / name).read_bytes(), 0
    for index in range(TRIES):
        rng, work = Random(f"{name} {index}"), tmp_path / str(index)
        shutil.copytree(whole, work / "m", copy_function=os.link)
        (work / "m" / name).unlink()
        (work / "m" / name).write_bytes(mutate_json(data, rng) if rng.random() < 0.8 else mutate_bytes(data, rng))
        try:
            WRITERS[target](rtn_store(work / "m", work / "store", target), work / "out")
        except AdaDimError as error:
            assert str(work) in str(error) and str(error).isprintable() and len(str(error)) < LONGEST, (index, str(error))
            refused += 1
        shutil.rmtree(work)
    assert capfd.readouterr().err == ""
    assert refused  # the changes reach what is read

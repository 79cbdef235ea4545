"""A GGUF's metadata against its source: right for every architecture and container, and every wrong number is seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from exporter.gguf.file import write_gguf
from quantize import open_checkpoint
from runtime_checks.checks.metadata_check import check_metadata
from tests.runtime_checks.made import make, make_from
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}
SCALINGS = [
    None,
    LLAMA3,
    {"rope_type": "linear", "factor": 2.0},
    YARN,
    YARN | {"attention_factor": 1.0},
    YARN | {"factor": None, "mscale": 2.0, "mscale_all_dim": 0.5},
    {"type": "yarn", "factor": 3.0, "attention_factor": 0.25},
    {"rope_type": "default", "rope_theta": 500000.0},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 77},
]


def misses(path: Path, source: Path) -> set[str]:
    checks = check_metadata(path, open_checkpoint(source))
    assert len(checks) > 10
    return {check.tensor for check in checks if not check.ok}


@pytest.mark.parametrize("form", ["llama.cpp", "gguf-adadim"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_architecture(tmp_path, model_type, form):
    item = make(tmp_path, form, model_type)
    assert not misses(item.file, item.source.path)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_every_rotary_scaling_from_both_containers(tmp_path, scaling):
    model = make_tiny_model(tmp_path / "model", rope_scaling=scaling)
    first = write_gguf(rtn_store(model, tmp_path / "store"), tmp_path / "first.gguf")
    second = make_from(open_checkpoint(first), tmp_path / "second", "llama.cpp").file
    assert not misses(first, model)
    assert not misses(second, first)
    assert not misses(second, model)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Path]:
    item = make(tmp_path_factory.mktemp("metadata"), "gguf-adadim")
    return item.file, item.source.path


def changed(path: Path, out: Path, key: str, value: float) -> Path:
    shutil.copy(path, out)
    reader = gguf.GGUFReader(out, "r+")
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value
    reader.data.flush()
    return out


CHANGES = {
    "rope.freq_base": 50000,
    "attention.layer_norm_rms_epsilon": 0.5,
    "attention.head_count": 2,
    "attention.head_count_kv": 4,
    "attention.key_length": 32,
    "block_count": 3,
    "context_length": 64,
    "rope.dimension_count": 8,
    "vocab_size": 319,
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_wrong_number_is_seen(plain, tmp_path, key):
    path, source = plain
    assert misses(changed(path, tmp_path / "f.gguf", f"llama.{key}", CHANGES[key]), source) == {f"llama.{key}"}


@pytest.mark.parametrize("key", ["factor", "attn_factor", "original_context_length"])
def test_a_wrong_number_of_yarn_is_seen(tmp_path, key):
    model = make_tiny_model(tmp_path / "model", "qwen3", rope_scaling=YARN | {"attention_factor": 1.5})
    path = write_gguf(rtn_store(model, tmp_path / "store"), tmp_path / "first.gguf")
    assert misses(changed(path, tmp_path / "f.gguf", f"qwen3.rope.scaling.{key}", 3), model) == {f"qwen3.rope.scaling.{key}"}


def test_a_factor_that_is_missing_is_seen(plain, tmp_path):
    source = Path(shutil.copytree(plain[1], tmp_path / "model"))
    config = json.loads((source / "config.json").read_text()) | {"rope_scaling": YARN | {"attention_factor": 1.5}}
    (source / "config.json").write_text(json.dumps(config))
    missing = {f"llama.rope.scaling.{key}" for key in ("type", "factor", "attn_factor", "original_context_length")}
    assert misses(plain[0], source) == missing


def test_a_key_that_the_source_says_nothing_of(plain, tmp_path):
    """Another name of the same length stands for a key too many and a key too few."""
    path = tmp_path / "f.gguf"
    path.write_bytes(plain[0].read_bytes().replace(b"llama.rope.freq_base", b"llama.rope.fraq_base", 1))
    assert misses(path, plain[1]) == {"llama.rope.fraq_base"}  # freq_base has the default, which is this model's


def test_rotary_factors(tmp_path):
    model = make_tiny_model(tmp_path / "llama3", rope_scaling=LLAMA3)
    path = write_gguf(rtn_store(model, tmp_path / "store"), tmp_path / "f.gguf")
    (factors,) = [item for item in gguf.GGUFReader(path, "r+").tensors if item.name == "rope_freqs.weight"]
    factors.data[1] *= np.float32(1.001)
    factors.data.flush()
    assert misses(path, model) == {"rope_freqs.weight"}


def test_rotary_factors_that_are_missing(plain, tmp_path):
    source = Path(shutil.copytree(plain[1], tmp_path / "model"))
    config = json.loads((source / "config.json").read_text()) | {"rope_scaling": LLAMA3}
    (source / "config.json").write_text(json.dumps(config))
    assert misses(plain[0], source) == {"rope_freqs.weight"}

"""What the source alone says of a file: every form passes, and what rounding cannot have done is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter.writers import writer_of
from quantize import open_checkpoint
from runtime_checks.checks import source_check
from runtime_checks.checks.source_check import ROUNDING_TOLERANCE, check_source
from tests.runtime_checks.made import FORMS, Made, make, make_from, tensor
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

WHOLE_CHANNEL = 128  # more than any length here
ONCE, VALUES, ROUNDED = "in the file and in the source, once", "values = source's", "decoded = source, but for rounding"
TUNED, SIZE = "values = source's, but for tuning", "decoded as large as source's"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """With biases, and lengths that leave ragged groups."""
    return make_tiny_model(tmp_path_factory.mktemp("source") / "model", "qwen2", dtype="F16", layers=1)


def written(model: Path, folder: Path, target: str, **options) -> Path:
    store = rtn_store(model, folder / "store", target, **options)
    return writer_of(target).write(store, folder / "file")


def misses(path: Path, model: Path) -> set[tuple[str, str]]:
    checks = check_source(path, open_checkpoint(model))
    assert len(checks) > 20
    return {(check.name, check.tensor) for check in checks if not check.ok}


@pytest.mark.parametrize("method", ["rtn-oc", "rtn-ic"])
@pytest.mark.parametrize("group", [16, WHOLE_CHANNEL])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_width_stays_within_its_bound(model, tmp_path, bits, group, method):
    path = written(model, tmp_path, "onnxruntime", method=method, bits=bits, group_size=group)
    checks = [check for check in check_source(path, open_checkpoint(model)) if check.name == ROUNDED]
    assert all(check.ok for check in checks)
    linears = {check.tolerance for check in checks if "proj" in check.tensor}
    assert linears == {ROUNDING_TOLERANCE[bits]}


@pytest.mark.parametrize("embedding", ["source", None])
@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime"])
def test_kept_floats_are_equal(model, tmp_path, target, embedding):
    options = {} if embedding is None else {"embedding": embedding}
    path = written(model, tmp_path, target, **options)
    checks = check_source(path, open_checkpoint(model))
    assert all(check.ok for check in checks)
    kept = {check.tensor for check in checks if check.name == VALUES}
    assert ("model.embed_tokens.weight" in kept) == (embedding == "source")
    assert {"model.norm.weight", "model.layers.0.self_attn.q_proj.bias"} <= kept


def test_a_matrix_kept_as_f16_of_a_source_in_f32(tmp_path):
    model = make_tiny_model(tmp_path / "odd", ffn=100)
    path = written(model, tmp_path, "llama.cpp", allow_fallback=True)
    assert not misses(path, model)
    tensor(path, "blk.0.ffn_down.weight").view(np.uint16)[5] ^= 1
    assert misses(path, model) == {(VALUES, "model.layers.0.mlp.down_proj.weight")}


LAYER = "model.layers.0."
CHANGES = {  # (target, tensor in the file, dtype, change, the check that sees it)
    "a norm twice as large": ("llama.cpp", "blk.0.attn_norm.weight", np.float32, lambda x: x * 2, VALUES),
    "a norm's one number": ("llama.cpp", "output_norm.weight", np.float32, lambda x: x + 0.01 * (np.arange(len(x)) == 3), VALUES),
    "a bias twice as large": ("llama.cpp", "blk.0.attn_q.bias", np.float32, lambda x: x * 2, VALUES),
    "a bias in onnx": ("onnxruntime", f"{LAYER}self_attn.q_proj.bias", np.float32, lambda x: x * 2, VALUES),
    "a norm in onnx": ("onnxruntime", f"{LAYER}input_layernorm.weight", np.float32, lambda x: x * 2, VALUES),
    "scales": ("onnxruntime", f"{LAYER}mlp.up_proj.weight.scale", np.float16, lambda x: x * 2, SIZE),
    "adadim's scales": ("onnxruntime+adadim", f"{LAYER}mlp.up_proj.weight.scale", np.float16, lambda x: x * 2, SIZE),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_rounding_cannot_have_done(model, tmp_path, change):
    target, name, dtype, edit, miss = CHANGES[change]
    path = written(model, tmp_path, target)
    assert not misses(path, model)
    values = tensor(path, name).view(dtype)
    values[:] = edit(np.array(values))
    assert {found for found, _ in misses(path, model)} - {ROUNDED} == {miss}


@pytest.mark.parametrize(
    ("target", "norm"), [("llama.cpp", "blk.0.attn_norm.weight"), ("onnxruntime", f"{LAYER}input_layernorm.weight")]
)
def test_tuned_norms_are_nearly_the_sources(model, tmp_path, target, norm):
    path = written(model, tmp_path, target, tune_steps=2, calibration_tokens=6144)
    checks = check_source(path, open_checkpoint(model))
    assert all(check.ok for check in checks)
    assert {check.tensor for check in checks if check.name == TUNED} >= {"model.norm.weight", f"{LAYER}input_layernorm.weight"}
    tensor(path, norm).view(np.float32)[:] *= 1.2
    assert misses(path, model) == {(TUNED, f"{LAYER}input_layernorm.weight")}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("method", ["rtn-oc", "rtn-ic"])
def test_twice_the_scale_at_every_width(model, tmp_path, bits, method):
    path = written(model, tmp_path, "onnxruntime", method=method, bits=bits)
    tensor(path, f"{LAYER}mlp.up_proj.weight.scale").view(np.float16)[:] *= 2
    up = f"{LAYER}mlp.up_proj.weight"
    assert misses(path, model) - {(ROUNDED, up)} == {(SIZE, up)}


def test_some_scales_of_the_other_sign(model, tmp_path):
    """Too few for the slope."""
    path = written(model, tmp_path, "onnxruntime", bits=8)
    scale = tensor(path, f"{LAYER}mlp.up_proj.weight.scale").view(np.float16)
    scale[: len(scale) // 8] *= -1
    assert misses(path, model) == {(ROUNDED, f"{LAYER}mlp.up_proj.weight")}


def test_twice_the_scale_in_a_gguf(model, tmp_path):
    path = written(model, tmp_path, "llama.cpp")
    blocks = tensor(path, "blk.0.attn_q.weight").reshape(-1, 18)
    blocks[:, :2] = (blocks[:, :2].copy().view(np.float16) * np.float16(2)).view(np.uint8)
    query = f"{LAYER}self_attn.q_proj.weight"
    assert misses(path, model) - {(ROUNDED, query)} == {(SIZE, query)}


def test_a_tensor_that_the_source_does_not_have(model, tmp_path):
    path = written(model, tmp_path, "onnxruntime")
    proto = onnx.load(path / "model.onnx", load_external_data=False)
    extra = f"{LAYER}mlp.extra.weight"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), extra))
    (path / "model.onnx").write_bytes(proto.SerializeToString())
    assert misses(path, model) == {(ONCE, extra)}


def test_another_name_in_a_gguf(model, tmp_path):
    path = written(model, tmp_path, "llama.cpp")
    path.write_bytes(path.read_bytes().replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_uq.weight", 1))
    assert misses(path, model) == {(ONCE, f"{LAYER}mlp.up_proj.weight"), (ONCE, f"{LAYER}ffn_uq.weight")}


@pytest.mark.parametrize("vocab", [352, 300])
def test_another_shape(model, tmp_path, vocab):
    """The file has 320 rows: fewer, and more."""
    path = written(model, tmp_path, "llama.cpp")
    other = make_tiny_model(tmp_path / "other", "qwen2", vocab=vocab, layers=1)
    (found,) = {name for name, tensor in misses(path, other) if "embed" in tensor}
    assert found == f"shape = source's ({vocab}, 64)"


@pytest.mark.parametrize("form", ["llama.cpp", "onnx-oc"])
def test_a_large_embedding_goes_by_rows(tmp_path, monkeypatch, form):
    """No more of it is read at a time, on either side, than a decoder block takes."""
    item = make_from(open_checkpoint(make_tiny_model(tmp_path / "model", vocab=4000, layers=1)), tmp_path, form)
    whole = check_source(item.file, item.source)
    layer = sum(spec.size for name, spec in item.source.specs.items() if name.startswith(LAYER))
    sizes, read = [], type(item.source).read_rows

    def read_rows(self, name, start, stop):
        sizes.append(read(self, name, start, stop).size)
        return read(self, name, start, stop)

    monkeypatch.setattr(source_check, "CHUNK_WEIGHTS", 1)
    monkeypatch.setattr(type(item.source), "read_rows", read_rows)
    again = check_source(item.file, item.source)
    assert max(sizes) <= layer < item.source.specs["model.embed_tokens.weight"].size
    assert [check.error for check in again] == pytest.approx([check.error for check in whole])


@pytest.mark.parametrize("form", FORMS)
def test_a_gguf_as_source(tmp_path, form):
    first: Made = make(tmp_path, "llama.cpp", "qwen2", tied=False)
    item = make_from(open_checkpoint(first.file), tmp_path / "second", form)
    checks = check_source(item.file, item.source)
    assert checks and all(check.ok for check in checks)

"""Files whose layers were folded pass by what the source's layers compute; what no fold does is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from exporter.cli.summary import store_summary
from exporter.inspect import inspect
from exporter.targets import TARGETS
from exporter.writers import writer_of
from quantize import QuantizedStore, open_checkpoint, quantize_checkpoint
from quantize.errors import FileFormatError
from quantize.transforms import NAMES
from runtime_checks.checks.fold_check import _compare, check_folds
from runtime_checks.checks.source_check import check_source
from runtime_checks.checks.verify import verify
from runtime_checks.runtimes.decoded import folded_layers
from tests.cases import config_of
from tests.runtime_checks.made import tensor
from tests.tiny import make_tiny_model

FORMS = {  # target, method, bits
    "llama.cpp": ("gptq-oc", 4),
    "gguf-adadim": ("rtn-ada", 4),
    "onnxruntime": ("rtn-oc", 3),
    "onnxruntime+adadim": ("gptq-ic", 2),
}
PATH, SIZE = "decoded path = source's, but for rounding", "decoded path as large as source's"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """With biases."""
    return make_tiny_model(tmp_path_factory.mktemp("folds") / "model", "qwen2", dtype="BF16")


def written(model: Path, folder: Path, target: str, transforms: tuple[str, ...] = NAMES) -> tuple[Path, QuantizedStore]:
    method, bits = FORMS[target]
    config = config_of(method, bits=bits, group_size=32, calibration_tokens=512, transforms=transforms)
    store = quantize_checkpoint(open_checkpoint(model), folder / "store", config, TARGETS[target])
    return writer_of(target).write(store, folder / "file"), store


@pytest.mark.parametrize("target", FORMS)
def test_every_form_passes(model, tmp_path, target):
    path, store = written(model, tmp_path, target)
    checks = verify(path, open_checkpoint(model), store)
    assert [check for check in checks if not check.ok] == []
    layers = folded_layers(path)
    assert layers and sum(check.name == PATH for check in checks) == 4 * len(layers)
    exact = {check.tensor for check in checks if check.name == "values = source's"}
    assert "model.layers.0.self_attn.q_proj.bias" in exact
    assert ("model.layers.0.input_layernorm.weight" in exact) == (0 not in layers)


def test_what_was_applied_is_said(model, tmp_path):
    path, store = written(model, tmp_path, "llama.cpp", ("norm-gains", "ffn-scales"))
    counts = inspect(store.path)["transforms"]
    assert list(counts) == ["norm-gains", "ffn-scales"] and counts["ffn-scales"] == 2
    assert f"norm-gains in {counts['norm-gains']} layers, ffn-scales in 2 layers" in store_summary(store)
    assert folded_layers(path) == {0, 1}


def test_a_file_without_folds_is_compared_tensor_by_tensor(model, tmp_path):
    path, store = written(model, tmp_path, "onnxruntime", ())
    assert not folded_layers(path) and not check_folds(path, open_checkpoint(model))
    assert "transforms" not in store_summary(store)
    assert any(
        check.tensor.endswith("down_proj.weight") and check.error > 0 for check in check_source(path, open_checkpoint(model))
    )


LAYER = "model.layers.0."
CHANGES = {  # (tensor in the file, what becomes of its numbers, the paths that see it)
    "a norm": ("attn_norm.weight", lambda x: x * 2, "q_proj k_proj values"),
    "the other norm": ("ffn_norm.weight", lambda x: x * 2, "mlp"),
    "a bias": ("attn_v.bias", lambda x: x + 5, "values"),
    "scales": ("ffn_up.weight", lambda x: x * 2, "mlp"),
    "scales of one head": ("attn_v.weight", lambda x: x * np.repeat([2, 1], len(x) // 2), "values"),
    "no change": ("ffn_gate.weight", lambda x: x, ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_folding_and_rounding_cannot_have_done(model, tmp_path, change):
    name, edit, paths = CHANGES[change]
    path, _ = written(model, tmp_path, "llama.cpp")
    assert 0 in folded_layers(path)
    data = tensor(path, f"blk.0.{name}").reshape(-1)
    if name.count(".weight") and "norm" not in name:  # Q4_0: a float16 before 16 bytes of codes
        blocks = data.reshape(-1, 18)
        blocks[:, :2] = edit(blocks[:, :2].copy().view(np.float16).ravel()).astype(np.float16).view(np.uint8).reshape(-1, 2)
    else:
        data.view(np.float32)[:] = edit(data.view(np.float32).copy())
    missed = {check.tensor for check in check_folds(path, open_checkpoint(model)) if not check.ok}
    assert missed == {LAYER + each for each in paths.split()}


def test_another_order_of_the_hidden_channels_on_one_side_only(model, tmp_path):
    path, _ = written(model, tmp_path, "llama.cpp")
    rows = tensor(path, "blk.1.ffn_up.weight").reshape(96, -1)
    rows[:] = rows[::-1].copy()
    missed = {check.tensor for check in check_folds(path, open_checkpoint(model)) if not check.ok}
    assert missed == {"model.layers.1.mlp"}


def test_damaged_metadata_is_an_error(model, tmp_path):
    path, _ = written(model, tmp_path, "onnxruntime")
    proto = onnx.load(path / "model.onnx", load_external_data=False)
    for entry in proto.metadata_props:
        entry.value = "[1" if entry.key == "adadim.transforms" else entry.value
    (path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(FileFormatError, match=r"adadim\.transforms in its metadata: not JSON"):
        folded_layers(path)


@pytest.mark.parametrize("off", [0.0, 0.2, 0.9, 1.5])
def test_an_error_is_a_share_of_what_was_expected(off):
    """Of the part that is worst: every part counts by itself."""
    expected = np.random.default_rng(0).standard_normal((3, 40, 16)).astype(np.float32)
    held = expected.copy()
    held[1] *= np.float32(1 + off)
    error, slope = _compare(held, expected)
    assert error == pytest.approx(off, rel=1e-5, abs=1e-6)
    assert slope == pytest.approx(off, rel=1e-5, abs=1e-6)

"""Whole files through ``verify``: good ones pass, and every way to spoil one that was thought of is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest

from exporter.onnx.file import write_onnx
from quantize import open_checkpoint
from quantize.errors import CheckpointError, FileFormatError
from runtime_checks.checks.verify import verify
from runtime_checks.measure.results import Check
from tests.runtime_checks.made import FORMS, Made, make, make_from
from tests.tiny import make_tiny_model

GATE, UP, QUERY = "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Made]:
    known: dict[str, Made] = {}

    def get(form: str) -> Made:
        if form not in known:
            known[form] = make(tmp_path_factory.mktemp(form), form)
        return known[form]

    return get


def copied(made: Made, folder: Path) -> Path:
    target = folder / made.file.name
    if made.file.is_dir():
        shutil.copytree(made.file, target)
    else:
        shutil.copy(made.file, target)
    return target


def misses(checks: list[Check]) -> list[Check]:
    return [check for check in checks if not check.ok]


@pytest.mark.parametrize("form", FORMS)
def test_a_good_file_passes(made, form):
    item = made(form)
    checks = verify(item.file, item.source, item.store)
    assert not misses(checks)
    names = {check.name for check in checks}
    assert {"codes = store's", "values = store's", "reference = our grid", "in the file and in the store, once"} <= names
    assert ("onnxruntime = reference" in names) == form.startswith("onnx")
    assert ("mean KL to torch, as shipped" in names) == (form != "gguf-adadim")
    assert not misses(verify(item.file, item.source))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("form", ["llama.cpp", "onnx-split"])
def test_other_architectures_untied(tmp_path, model_type, form):
    item = make(tmp_path, form, model_type, tied=False)
    assert not misses(verify(item.file, item.source, item.store))


@pytest.mark.parametrize("form", FORMS)
def test_a_gguf_as_source(made, tmp_path, form):
    item = make_from(open_checkpoint(made("llama.cpp").file), tmp_path, form)
    assert not misses(verify(item.file, item.source, item.store))


def gguf_data(path: Path, name: str) -> np.memmap:
    """The tensor's bytes, writable in the file."""
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return np.memmap(path, np.uint8, "r+", int(tensor.data_offset), int(tensor.n_bytes))


def onnx_data(folder: Path, name: str) -> np.memmap:
    """The initializer's bytes, writable in the external file."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    return np.memmap(folder / place["location"], np.uint8, "r+", int(place["offset"]), int(place["length"]))


def flip_gguf_code(path: Path) -> None:
    gguf_data(path, "blk.0.ffn_up.weight")[5] ^= 0x10


def swap_gguf_scales(path: Path) -> None:
    blocks = gguf_data(path, "blk.0.ffn_up.weight").reshape(-1, 18)
    blocks[[0, 1], :2] = blocks[[1, 0], :2]


def swap_gguf_gate_and_up(path: Path) -> None:
    gate, up = (gguf_data(path, f"blk.0.{name}.weight") for name in ("ffn_gate", "ffn_up"))
    gate[:], up[:] = up.copy(), gate.copy()


def skip_gguf_permutation(path: Path) -> None:
    """Rows of each of the 4 heads of 16 as Hugging Face has them."""
    rows = gguf_data(path, "blk.1.attn_q.weight").reshape(4, 8, 2, -1)
    rows[:] = rows.swapaxes(1, 2).copy().reshape(rows.shape)


def drop_gguf_special_token(path: Path) -> None:
    data = np.memmap(path, np.uint8, "r+")
    place = data.tobytes().index(b"<|im_end|>")
    data[place : place + 10] = np.frombuffer(b"<|in_end|>", np.uint8)


def flip_gguf_transposed_code(path: Path) -> None:
    gguf_data(path, "blk.0.ffn_up.weight_ic")[5] ^= 0x10


def flip_onnx_code(folder: Path) -> None:
    onnx_data(folder, f"{GATE}.weight.codes")[7] ^= 0x10


def flip_split_code(folder: Path) -> None:
    onnx_data(folder, f"{GATE}.weight.codes_00001")[7] ^= 0x10


def swap_onnx_scales(folder: Path) -> None:
    scales = onnx_data(folder, f"{GATE}.weight.scale").reshape(-1, 4)
    scales[[0, 1]] = scales[[1, 0]]


def change_onnx_zero_point(folder: Path) -> None:
    onnx_data(folder, f"{GATE}.weight.zero_point")[0] ^= 0x01


def swap_onnx_gate_and_up(folder: Path) -> None:
    for part in ("codes", "scale", "zero_point"):
        gate, up = (onnx_data(folder, f"{name}.weight.{part}") for name in (GATE, UP))
        gate[:], up[:] = up.copy(), gate.copy()


def permute_onnx_query(folder: Path) -> None:
    """Rows of each head interleaved as llama.cpp has them, where the graph rotates halves."""
    for part in ("codes", "scale", "zero_point"):
        rows = onnx_data(folder, f"{QUERY}.weight.{part}").reshape(4, 2, 8, -1)
        rows[:] = rows.swapaxes(1, 2).copy().reshape(rows.shape)


def drop_onnx_special_token(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<|im_end|>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


SPOILED = [
    ("llama.cpp", flip_gguf_code, "codes = store's"),
    ("llama.cpp", swap_gguf_scales, "d = store's"),
    ("llama.cpp", swap_gguf_gate_and_up, "codes = store's"),
    ("llama.cpp", skip_gguf_permutation, "codes = store's"),
    ("llama.cpp", drop_gguf_special_token, "special tokens"),
    ("gguf-adadim", flip_gguf_transposed_code, "codes = store's"),
    ("onnx-oc", flip_onnx_code, "codes = store's"),
    ("onnx-oc", swap_onnx_scales, "scales = store's"),
    ("onnx-oc", change_onnx_zero_point, "zero points = store's"),
    ("onnx-oc", swap_onnx_gate_and_up, "codes = store's"),
    ("onnx-oc", permute_onnx_query, "codes = store's"),
    ("onnx-oc", drop_onnx_special_token, "special tokens"),
    ("onnx-split", flip_split_code, "codes = store's"),
    ("onnx-split", swap_onnx_scales, "scales = store's"),
    ("onnx-split", change_onnx_zero_point, "zero points = store's"),
    ("onnx-adadim", flip_onnx_code, "codes = store's"),
    ("onnx-adadim", swap_onnx_scales, "scales = store's"),
]


@pytest.mark.parametrize(("form", "spoil", "miss"), SPOILED, ids=lambda item: getattr(item, "__name__", None))
def test_a_spoiled_file_is_seen(made, tmp_path, form, spoil, miss):
    item = made(form)
    path = copied(item, tmp_path)
    spoil(path)
    found = misses(verify(path, item.source, item.store))
    assert any(miss in check.name for check in found), found


@pytest.mark.parametrize(
    ("form", "spoil"),
    [
        ("llama.cpp", swap_gguf_gate_and_up),
        ("llama.cpp", skip_gguf_permutation),
        ("onnx-oc", swap_onnx_gate_and_up),
        ("onnx-oc", permute_onnx_query),
    ],
)
def test_large_spoils_are_seen_without_the_store(made, tmp_path, form, spoil):
    item = made(form)
    path = copied(item, tmp_path)
    spoil(path)
    found = {check.name for check in misses(verify(path, item.source))}
    told = {"decoded = source, but for rounding", "decoded as large as source's"}
    assert found == {*told, "sha256 of the data = the file's seal"}


def test_another_source_is_seen(made, tmp_path):
    other = open_checkpoint(make_tiny_model(tmp_path / "other", seed=1))
    assert misses(verify(made("onnx-oc").file, other))


@pytest.mark.parametrize("context", [1, 2, 16, 100])
def test_an_export_of_a_short_context_passes(made, tmp_path, context):
    item = made("onnx-oc")
    folder = write_onnx(item.store, tmp_path / "onnx", context=context)
    checks = verify(folder, item.source, item.store)
    assert not misses(checks)
    assert any(check.name == "genai's tokens = onnxruntime's, as shipped" for check in checks) == (context > 1)


@pytest.mark.parametrize("form", ["llama.cpp", "gguf-adadim", "onnx-oc", "onnx-adadim"])
def test_a_source_of_another_vocabulary_is_a_miss(made, tmp_path, form):
    other = open_checkpoint(make_tiny_model(tmp_path / "other", vocab=352))
    found = {check.name: check.tensor for check in misses(verify(made(form).file, other))}
    assert found["shape = source's (352, 64)"] == "model.embed_tokens.weight (320, 64)"
    if form != "gguf-adadim":
        assert "(320, 64), the source's is (352, 64)" in found["model: the file can be read and run"]


BAD_SOURCES = {  # what is changed, to what, and what the message says
    "no tokenizer": ("tokenizer.json", None, r"no tokenizer\.json"),
    "no JSON": ("tokenizer.json", "{", r"tokenizer\.json: not JSON"),
    "another JSON": ("tokenizer.json", "{}", r"tokenizer\.json: the tokenizers library cannot read it"),
    "garbage tokenizer config": ("tokenizer_config.json", "{", r"tokenizer_config\.json: not JSON"),
    "a strange template": ("tokenizer_config.json", '{"chat_template": [3]}', r"chat_template\[0\] is 3"),
    "garbage generation config": ("generation_config.json", "{", r"generation_config\.json: not JSON"),
    "no context": ("config.json", '"max_position_embeddings": 0', "max_position_embeddings"),
}


@pytest.mark.parametrize("form", ["llama.cpp", "onnx-oc"])
@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_source_that_is_no_measure(made, tmp_path, case, form):
    item, (name, content, message) = made(form), BAD_SOURCES[case]
    model = Path(shutil.copytree(item.source.path, tmp_path / "model"))
    if content is None:
        (model / name).unlink()
    elif name == "config.json":
        (model / name).write_text((model / name).read_text().replace('"max_position_embeddings": 512', content))
    else:
        (model / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        verify(item.file, open_checkpoint(model))


def test_a_runtime_that_refuses_the_file_is_a_miss(made, tmp_path):
    item = made("onnx-oc")
    path = copied(item, tmp_path)
    data = path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    found = [check for check in misses(verify(path, item.source)) if not check.name.startswith("sha256")]
    assert found and all("can be read and run" in check.name for check in found)
    assert "which has 1,000 bytes" in found[0].tensor


@pytest.mark.parametrize("name", ["nothing.gguf", "empty"])
def test_no_file(made, tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match="write one: adadim export gguf STORE"):
        verify(tmp_path / name, made("onnx-oc").source)

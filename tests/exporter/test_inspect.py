"""What ``inspect`` says of stores, GGUF files and ONNX folders: the fixed keys, and numbers that follow from the bytes."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest

from exporter.cli.main import main
from exporter.gguf.file import write_gguf
from exporter.inspect import inspect
from exporter.onnx.file import write_onnx
from exporter.targets import TARGETS
from quantize import open_checkpoint, quantize_checkpoint
from quantize.errors import FileFormatError, StoreError
from quantize.gguf import names as gguf_names
from tests.cases import config_of
from tests.mutations import GgufParts, text
from tests.runtime_checks.made import FORMS, Made, make
from tests.tiny import make_tiny_model

TENSOR_KEYS = {"name", "grid", "bits", "group_size", "axis", "shape", "bytes"}
QUERY = {"llama.cpp": "blk.0.attn_q.weight", "gguf-adadim": "blk.0.attn_q.weight_ic"}
EXPECTED = {  # grid, bits, group size, axis
    "llama.cpp": ("q4_0", 4, 32, "per_oc"),
    "gguf-adadim": ("q4_0", 4, 32, "per_ic"),
    "onnx-oc": ("int", 4, 32, "per_oc"),
    "onnx-split": ("int", 4, 32, "per_ic"),
    "onnx-adadim": ("int", 3, 32, "per_ic"),
}


@pytest.fixture(scope="module", params=FORMS)
def made(request, tmp_path_factory) -> tuple[str, Made]:
    return request.param, make(tmp_path_factory.mktemp("inspect"), request.param)


def test_a_file(made):
    form, item = made
    report = inspect(item.file)
    json.dumps(report)
    tensors = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert len(tensors) == len(item.store.records)
    assert all(set(tensor) >= TENSOR_KEYS for tensor in tensors.values())
    query = tensors[QUERY.get(form, "model.layers.0.self_attn.q_proj.weight")]
    assert tuple(query[key] for key in ("grid", "bits", "group_size", "axis")) == EXPECTED[form]
    assert query["shape"] == [64, 64]
    norm = tensors["output_norm.weight" if "model.norm.weight" not in tensors else "model.norm.weight"]
    assert (norm["grid"], norm["bits"], norm["axis"], norm["shape"], norm["bytes"]) == ("f32", 32, None, [64], 256)


def test_totals_follow_from_the_bytes(made):
    form, item = made
    report = inspect(item.file)
    totals = report["totals"]
    assert set(totals) == {"bytes", "weights", "bits_per_weight"}
    on_disk = [path for path in item.file.iterdir() if path.name.startswith("model.onnx")] if item.file.is_dir() else [item.file]
    assert totals["bytes"] == sum(path.stat().st_size for path in on_disk)
    assert totals["weights"] == sum(spec.size for spec in item.source.specs.values())
    linears = [
        tensor for tensor in report["tensors"] if "proj" in tensor["name"] or tensor["name"].split(".")[2:3] in LINEAR_PARTS
    ]
    assert len(linears) == 14
    bits = 8 * sum(tensor["bytes"] for tensor in linears) / sum(prod(tensor["shape"]) for tensor in linears)
    assert totals["bits_per_weight"] == pytest.approx(bits)
    if form in QUERY:
        assert bits == 4.5
    else:
        assert report["nodes"] > 20
        assert (
            bits > {"onnx-adadim": 3.5, "onnx-oc": 4.6, "onnx-split": 4.7}[form]
        )  # codes, scales, zero points; nodes come on top


LINEAR_PARTS = [[part] for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")]


def test_a_store(made):
    form, item = made
    report = inspect(item.store.path)
    assert report["target"] == item.store.target
    tensors = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert list(tensors) == list(item.store.records)
    query = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert tuple(query[key] for key in ("grid", "bits", "group_size", "axis")) == EXPECTED[form]
    assert set(query) >= TENSOR_KEYS | {"rounder", "loss", "note"}
    written = {tensor["name"]: tensor["bytes"] for tensor in inspect(item.file)["tensors"]}
    for name, tensor in tensors.items():
        in_file = written[name if name in written else to_gguf_name(name, tensor["axis"])]
        nodes = 0 if form in QUERY or tensor["axis"] is None else 4000 if form == "onnx-split" else 1200
        assert tensor["bytes"] + nodes // 12 <= in_file <= tensor["bytes"] + nodes, name


def to_gguf_name(name: str, axis: str | None) -> str:
    return gguf_names.to_gguf_name(name) + ("_ic" if axis == "per_ic" else "")


@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime"])
def test_an_embedding_that_stays_as_it_was(tmp_path, target):
    source = open_checkpoint(make_tiny_model(tmp_path / "model", layers=1, dtype="F16"))
    config = config_of(method="rtn-oc", group_size=32, embedding="source")
    store = quantize_checkpoint(source, tmp_path / "store", config, TARGETS[target])
    file = (write_gguf if target == "llama.cpp" else write_onnx)(store, tmp_path / "file")
    for path in (store.path, file):
        entry = next(tensor for tensor in inspect(path)["tensors"] if "embd" in tensor["name"] or "embed" in tensor["name"])
        assert (entry["grid"], entry["bits"], entry["group_size"], entry["axis"]) == ("f16", 16, None, None)
        assert entry["shape"] == [320, 64]
        assert 0 <= entry["bytes"] - 320 * 64 * 2 < 1000  # and in ONNX its nodes


def test_the_choice_and_its_losses_are_shown(tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path / "model", layers=1))
    config = config_of(method="rtn-ada", selection="hessian", calibration_tokens=512)
    quantize_checkpoint(source, tmp_path / "store", config, TARGETS["onnxruntime+adadim"])
    shown = [tensor for tensor in inspect(tmp_path / "store")["tensors"] if tensor.get("loss")]
    assert len(shown) == 7
    for tensor in shown:
        assert set(tensor["loss"]) == {"per_oc", "per_ic"}
        assert tensor["loss"][tensor["axis"]] == min(tensor["loss"].values())


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("nothing", None, FileFormatError),
        ("text.gguf", b"no model at all", FileFormatError),
        ("folder/readme", b"", FileFormatError),
        ("onnx/model.onnx", b"\xff\xff\xff", FileFormatError),
        ("foreign/model.onnx", b"", FileFormatError),
        ("store/plan.json", b"{}", StoreError),
    ],
)
def test_what_is_neither(tmp_path, name, content, error):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(error, match=str(Path(name).parts[0])):
        inspect(path if path.parent == tmp_path else path.parent)


def pair(parts: GgufParts, key: str) -> list[Any]:
    """[key, type, payload]."""
    return next(item for item in parts.pairs if item[0] == key.encode())


def named(parts: GgufParts, name: str) -> list[Any]:
    """[name, dims innermost first, type, offset]."""
    return next(item for item in parts.tensors if item[0] == name.encode())


def renamed(name: bytes) -> Callable[[GgufParts], None]:
    return lambda parts: named(parts, "blk.0.attn_q.weight").__setitem__(0, name)


LOADS: dict[str, tuple[Callable[[GgufParts], object], str | None]] = {
    "a model": (lambda parts: None, None),
    "a tensor of no layer": (renamed(b"blk.7.attn_q.weight"), "q_proj.weight is missing"),
    "a name in capitals": (renamed(b"BLK.0.ATTN_Q.WEIGHT"), "not part of a supported decoder"),
    "another shape": (lambda parts: named(parts, "blk.0.ffn_down.weight")[1].reverse(), "has shape"),
    "no layers": (lambda parts: parts.pairs.remove(pair(parts, "llama.block_count")), r"'llama\.block_count' is missing"),
    "a model of no decoder": (
        lambda parts: parts.pairs.remove(pair(parts, "general.architecture")),
        "'general.architecture' is missing",
    ),
    "layers without end": (
        lambda parts: pair(parts, "llama.block_count").__setitem__(2, b"\xff\xff\xff\x7f"),
        r"block_count is 2147483647, where \d+ tensors are",
    ),
    "no word on a tokenizer": (lambda parts: parts.pairs.remove(pair(parts, "tokenizer.ggml.model")), "model' is missing"),
    "a type that is a list": (
        lambda parts: pair(parts, "general.type").__setitem__(slice(1, 3), [9, struct.pack("<IQ2I", 4, 2, 0, 0)]),
        "metadata key general.type is of type array",
    ),
    "a tokenizer of nobody": (
        lambda parts: pair(parts, "tokenizer.ggml.model").__setitem__(2, text(b"abc")),
        r"tokenizer\.ggml\.model is 'abc'; llama\.cpp has llama, gpt2",
    ),
    "an adapter": (
        lambda parts: (renamed(b"x.lora_a")(parts), pair(parts, "general.type").__setitem__(2, text(b"adapter"))),
        None,
    ),
    "a vocabulary alone": (lambda parts: (parts.tensors.clear(), setattr(parts, "body", b"")), None),
    "another decoder": (lambda parts: pair(parts, "general.architecture").__setitem__(2, text(b"gemma3")), None),
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> bytes:
    return make(tmp_path_factory.mktemp("loads"), "llama.cpp").file.read_bytes()


@pytest.mark.parametrize("case", LOADS)
def test_what_llama_cpp_would_not_load_is_shown_and_refused(case, gguf, tmp_path, capsys):
    change, words = LOADS[case]
    parts = GgufParts(gguf)
    change(parts)
    path = tmp_path / "file.gguf"
    path.write_bytes(parts.encode())
    code = main(["inspect", str(path)])
    out, err = capsys.readouterr()
    assert "file.gguf" in out
    assert code == (0 if words is None else 2)
    assert (err == "") if words is None else re.search(words, err), err

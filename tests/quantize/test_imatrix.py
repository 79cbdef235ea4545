"""llama.cpp's importance matrices: both forms read, ours written, damage named, and what they do to a quantized model."""

from __future__ import annotations

import json
import os
import struct
import sys
from random import Random

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from exporter.cli.main import main
from exporter.inspect import inspect
from exporter.targets import TARGETS
from quantize import Axis, DataSpec, dequantize, open_checkpoint, quantize_checkpoint
from quantize.errors import CalibrationError, ConfigError
from quantize.gguf.names import to_gguf_name
from quantize.statistics.imatrix import CHUNKS, DATASETS, make_imatrix, read_imatrix
from tests.cases import config_of
from tests.mutations import GgufParts, mutate_bytes, mutate_gguf
from tests.tiny import make_tiny_model

Q, DOWN = "blk.0.attn_q.weight", "blk.1.ffn_down.weight"
HF_Q = "model.layers.0.self_attn.q_proj.weight"
HIDDEN, FFN, LAYERS = 64, 96, 2
TOKENS, CALLS = 1024, 2


def means(rng=None) -> dict[str, np.ndarray]:
    """Mean squares of every linear of the tiny model, a few channels far above the rest."""
    rng = np.random.default_rng(3) if rng is None else rng
    out = {}
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            values = rng.random(FFN if part == "ffn_down" else HIDDEN).astype(np.float32)
            values[rng.choice(len(values), 3, replace=False)] *= 1000
            out[f"blk.{layer}.{part}.weight"] = values
    return out


def write_gguf_form(path, values, **changed):
    """By gguf-py, as llama-imatrix writes it: sums over tokens and their number. ``changed``: other tensors, None: left out."""
    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", CALLS)
    writer.add_uint32("imatrix.chunk_size", TOKENS // CALLS)
    tensors = {}
    for name, mean in values.items():
        tensors[f"{name}.in_sum2"] = mean * np.float32(TOKENS)
        tensors[f"{name}.counts"] = np.array([TOKENS], np.float32)
    for name, tensor in (tensors | changed).items():
        if tensor is not None:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def binary_form(values, tail=True) -> bytes:
    """By struct, as llama-imatrix wrote it until 2025: means times the number of calls."""
    out = struct.pack("<i", len(values))
    for name, mean in values.items():
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", CALLS, len(mean))
        out += (mean * np.float32(CALLS)).astype("<f4").tobytes()
    return out + (struct.pack("<ii", CALLS, 8) + b"wiki.txt" if tail else b"")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_checkpoint(make_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_gguf_form(tmp_path_factory.mktemp("imatrix") / "imatrix.gguf", means())


def quantized(source, out, imatrix, target="onnxruntime+adadim", **config):
    return quantize_checkpoint(source, out, config_of(imatrix=imatrix, **config), TARGETS[target])


@pytest.mark.parametrize("tail", [True, False], ids=["with the text's name", "of the oldest kind"])
def test_the_binary_form_says_the_same_as_the_gguf(written, tmp_path, tail):
    (tmp_path / "imatrix.dat").write_bytes(binary_form(means(), tail))
    old, new = read_imatrix(tmp_path / "imatrix.dat"), read_imatrix(written)
    assert old.entries.keys() == new.entries.keys() == means().keys()
    for name, mean in means().items():
        np.testing.assert_allclose(new.entries[name].squares, mean, rtol=1e-6)
        np.testing.assert_allclose(old.entries[name].squares, mean, rtol=1e-6)
    assert (new.datasets, new.chunks) == (["wiki.txt"], CALLS)
    assert (old.datasets, old.chunks) == ((["wiki.txt"], CALLS) if tail else ([], 0))


def test_sums_without_calls_are_taken_as_they_are(tmp_path):
    (tmp_path / "imatrix.dat").write_bytes(struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", 0, 1, 2.5))
    assert read_imatrix(tmp_path / "imatrix.dat").entries["w"].squares.tolist() == [2.5]


DAMAGED = {
    "is cut off": (lambda data: data[:-3], "truncated"),
    "goes on": (lambda data: data + b"xyz", "goes on for 3 bytes after its end"),
    "is empty": (lambda data: b"", "empty"),
    "has no entries": (lambda data: struct.pack("<i", 0) + data[4:], "0 entries"),
    "has fewer than none": (lambda data: struct.pack("<i", -5) + data[4:], "-5 entries"),
    "has fewer entries than it says": (lambda data: struct.pack("<i", 1 << 30) + data[4:], "truncated|bytes of a name"),
    "lies about a name": (lambda data: data[:4] + struct.pack("<i", 1 << 30) + data[8:], "truncated"),
    "has a name of no length": (lambda data: data[:4] + struct.pack("<i", -1) + data[8:], "-1 bytes of a name"),
    "lies about its values": (lambda data: data[: 12 + len(Q)] + struct.pack("<i", 1 << 30) + data[16 + len(Q) :], "truncated"),
    "has fewer values than none": (
        lambda data: data[: 12 + len(Q)] + struct.pack("<i", -1) + data[16 + len(Q) :],
        f"-1 values of {Q}",
    ),
    "is a text": (lambda data: b"Once upon a time, there was a model.", "truncated"),
    "names a weight twice": (lambda data: struct.pack("<i", 28) + 2 * data[4:-16], f"{Q} is twice in it"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_of_the_binary_form_is_named(tmp_path, damage):
    change, words = DAMAGED[damage]
    path = tmp_path / "imatrix.dat"
    path.write_bytes(change(binary_form(means())))
    with pytest.raises(CalibrationError, match=rf"imatrix\.dat: no intact importance matrix \(.*({words}).*adadim imatrix"):
        read_imatrix(path)


WRONG = {
    "not a number": ({f"{Q}.in_sum2": np.full(HIDDEN, np.nan, np.float32)}, f"{Q}: value 0 is nan, no sum of squares"),
    "negative": ({f"{Q}.in_sum2": np.arange(HIDDEN, dtype=np.float32) - 1}, f"{Q}: value 0 is -1, no sum of squares"),
    "without tokens": ({f"{Q}.counts": np.zeros(1, np.float32)}, f"{Q}: its count is 0, so nothing was measured"),
    "without a count": ({f"{Q}.counts": None}, f"no {Q}.counts"),
    "without sums": ({f"{Q}.in_sum2": None}, f"no {Q}.in_sum2"),
    "of experts": ({f"{Q}.counts": np.ones((5, 1), np.float32)}, f"{Q} has 64 values of 5 experts"),
    "of another type": ({f"{Q}.in_sum2": np.ones(HIDDEN, np.float16)}, f"{Q}.in_sum2 is F16, not F32"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_faults_of_a_gguf_are_named(tmp_path, fault):
    changed, words = WRONG[fault]
    path = write_gguf_form(tmp_path / "imatrix.gguf", means(), **changed)
    with pytest.raises(CalibrationError, match=rf"imatrix\.gguf: no intact importance matrix \({words}"):
        read_imatrix(path)


MUTANTS = 150


@pytest.mark.parametrize("form", ["dat", "gguf"])
def test_mutants_of_either_form_are_read_or_named(tmp_path, form):
    """Nothing but the one error, whatever is in the file."""
    path = tmp_path / f"m.{form}"
    data = binary_form(means()) if form == "dat" else write_gguf_form(path, means()).read_bytes()
    refused = 0
    for seed in range(MUTANTS):
        rng = Random(seed)
        path.write_bytes(mutate_gguf(data, rng) if form == "gguf" and seed % 2 else mutate_bytes(data, rng, 2000))
        try:
            read = read_imatrix(path)
        except CalibrationError as error:
            refused += str(error).startswith(f"{path}: no intact importance matrix (")
        else:
            assert all(np.isfinite(stats.squares).all() for stats in read.entries.values())
            assert all(isinstance(name, str) for name in read.datasets) and isinstance(read.chunks, int)
    assert refused > MUTANTS / 3


@pytest.mark.parametrize("key", [DATASETS, CHUNKS])
def test_metadata_of_another_type_are_named(tmp_path, key):
    path = write_gguf_form(tmp_path / "imatrix.gguf", means())
    parts = GgufParts(path.read_bytes())
    parts.pairs = [pair for pair in parts.pairs if pair[0] != key.encode()] + [[key.encode(), 7, b"\x01"]]
    path.write_bytes(parts.encode())
    with pytest.raises(CalibrationError, match=rf"no intact importance matrix \({key} is of type bool, not"):
        read_imatrix(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "imatrix.gguf")
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_imatrix(tmp_path / "imatrix.gguf")


def test_a_gguf_that_is_cut_off_or_holds_something_else_is_named(written, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(written.read_bytes()[:-100])
    with pytest.raises(CalibrationError, match=r"cut\.gguf: no intact importance matrix \(truncated"):
        read_imatrix(tmp_path / "cut.gguf")
    with pytest.raises(CalibrationError, match=r"without a tensor NAME\.in_sum2"):
        read_imatrix(write_gguf_form(tmp_path / "model.gguf", {}, **{Q: np.ones(HIDDEN, np.float32)}))
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_imatrix(tmp_path)


MISFITS = {
    "a longer row": ({Q: np.ones(65, np.float32)}, f"{Q} has 65 channels, this model's has 64"),
    "a layer too many": ({"blk.2.ffn_up.weight": np.ones(64, np.float32)}, "blk.2.ffn_up.weight is no weight of this model"),
    "experts": ({"blk.0.ffn_up_exps.weight": np.ones(64, np.float32)}, "blk.0.ffn_up_exps.weight is no weight of this model"),
    "no name of a weight": ({"blk": np.ones(64, np.float32)}, "blk is no weight of this model"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_matrix_of_another_model_is_refused_before_anything_is_written(source, tmp_path, misfit):
    changed, words = MISFITS[misfit]
    path = write_gguf_form(tmp_path / "imatrix.gguf", means() | changed)
    with pytest.raises(CalibrationError, match=rf"imatrix\.gguf: {words}; use one that was made from this very model"):
        quantized(source, tmp_path / "s", path, method="rtn-oc")
    assert not (tmp_path / "s").exists()


def test_a_missing_weight_is_named(source, tmp_path):
    some = {name: mean for name, mean in means().items() if name != DOWN}
    path = write_gguf_form(tmp_path / "imatrix.gguf", some)
    with pytest.raises(CalibrationError, match=f"nothing in it on {DOWN}"):
        quantized(source, tmp_path / "s", path, method="rtn-oc")


@pytest.mark.parametrize("method", ["gptq-oc", "gptq-ada"])
def test_gptq_is_told_what_to_do(source, written, tmp_path, method):
    with pytest.raises(
        ConfigError, match=r"imatrix=.*imatrix\.gguf': .*q_proj.* gptq.*choose method='rtn-oc', rtn-ic or rtn-ada"
    ):
        quantized(source, tmp_path / "s", written, method=method)


def weighted_error(source, store, values) -> float:
    """Of all linears, by the importance and relative to the weights' own size under it."""
    total = 0.0
    for name in store.records:
        mean = values.get(to_gguf_name(name))
        if mean is not None:
            weight = source.read(name)
            error = weight - dequantize(store.read(name))
            total += float((error**2 @ mean).sum() / (weight**2 @ mean).sum())
    return total


@pytest.mark.parametrize("method", ["rtn-oc", "rtn-ic", "rtn-ada"])
def test_it_lowers_the_error_that_it_weighs(source, written, tmp_path, method):
    store = quantized(source, tmp_path / "s", written, method=method, bits=3, max_slowdown=1e9)
    plain = quantized(source, tmp_path / "p", None, method="rtn-ic" if method == "rtn-ic" else "rtn-oc", bits=3)
    assert weighted_error(source, store, means()) < 0.95 * weighted_error(source, plain, means())


def test_the_axis_is_chosen_by_the_diagonal(source, written, tmp_path):
    store = quantized(source, tmp_path / "s", written, method="rtn-ada", max_slowdown=1e9)
    for name, record in store.records.items():
        if record.loss:
            error = source.read(name) - dequantize(store.read(name))
            loss = float((error**2 @ means()[to_gguf_name(name)]).sum() / len(error))
            assert record.loss[str(record.axis)] == pytest.approx(loss, rel=1e-4) == pytest.approx(min(record.loss.values()))
    assert {record.axis for record in store.records.values() if record.loss} == set(Axis)


def test_the_head_is_weighed_where_the_matrix_knows_it(source, tmp_path):
    head = np.where(np.arange(HIDDEN) == 5, 1e6, 1).astype(np.float32)
    with_head = write_gguf_form(tmp_path / "head.gguf", means() | {"output.weight": head})
    without = write_gguf_form(tmp_path / "imatrix.gguf", means())
    errors = []
    for path in (without, with_head):
        store = quantized(source, tmp_path / path.stem, path, method="rtn-oc", head="int4")
        error = source.read("model.embed_tokens.weight") - dequantize(store.read("lm_head.weight"))
        errors.append(float((error**2 @ head).sum()))
    assert errors[1] < 0.5 * errors[0]


def test_neither_torch_nor_a_tokenizer_is_needed_and_the_store_says_what_was_used(written, tmp_path, capsys, monkeypatch):
    folder = make_tiny_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    monkeypatch.setitem(sys.modules, "quantize.source", None)  # importing it fails
    store = quantized(open_checkpoint(folder), tmp_path / "s", written, method="rtn-ada")
    known = store.header["imatrix"]
    assert known["name"] == "imatrix.gguf" and known["sha256"] == read_imatrix(written).sha256 and known["chunks"] == CALLS
    assert store.header["config"]["imatrix"] == "imatrix.gguf" and store.header["calibration"] is None
    assert inspect(tmp_path / "s")["imatrix"] == known
    assert main(["inspect", str(tmp_path / "s")]) == 0
    assert f"imatrix.gguf (sha256 {known['sha256'][:16]}), 2 chunks of wiki.txt" in capsys.readouterr().out


def test_what_we_write_is_the_sum_of_squares_and_is_read_by_gguf_py_and_by_us(source, tmp_path):
    path = tmp_path / "imatrix.gguf"
    coverage = make_imatrix(source, path, DataSpec(tokens=TOKENS))
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert len(stored) == 2 * 7 * LAYERS
    first = stored[f"{Q}.in_sum2"].data
    assert first.dtype == np.float32 and first.shape == (HIDDEN,)
    assert stored[f"{Q}.counts"].data.tolist() == [TOKENS]
    assert np.array_equal(first, stored["blk.0.attn_k.weight.in_sum2"].data)
    read = read_imatrix(path)
    assert (read.datasets, read.chunks) == ([coverage.text], TOKENS // 512)
    np.testing.assert_allclose(read.entries[Q].squares, first / TOKENS, rtol=1e-6)
    norm = source.read("model.layers.0.input_layernorm.weight")  # the input of q is this times rows of mean square 1
    assert float((read.entries[Q].squares / norm**2).mean()) == pytest.approx(1, rel=0.01)


def test_the_command_writes_the_same_bytes_twice_and_quantize_takes_them(tmp_path, capsys):
    folder = make_tiny_model(tmp_path / "m")
    for name in ("a.gguf", "b.gguf"):
        assert main(["imatrix", str(folder), "--out", str(tmp_path / name), "--calibration-tokens", "512", "--quiet"]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert "512 tokens" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "s"), "--method", "rtn-oc", "--imatrix", str(tmp_path / "a.gguf"), "--quiet"]
    assert main(["quantize", str(folder), *out]) == 0
    assert json.loads((tmp_path / "s" / "plan.json").read_text())["imatrix"]["name"] == "a.gguf"
    assert main(["imatrix", str(folder), "--out", str(tmp_path / "a.gguf")]) == 2
    assert "exists already" in capsys.readouterr().err

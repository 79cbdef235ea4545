"""Hugging Face directories: what is read, and every way in which one can lie."""

from __future__ import annotations

import json
import os
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest

from quantize.checkpoint import open_checkpoint
from quantize.errors import CheckpointError
from quantize.model_config import EMBEDDING, HEAD
from tests.tiny import DTYPES, Sizes, make_tiny_model, tiny_weights, write_weights

SIZES = Sizes(64, 4, 2, 16, 96, 2, 320)
INDEX = "model.safetensors.index.json"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def model(tmp_path):
    return make_tiny_model(tmp_path / "m")


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not ...}))


def edit_weights(path, change, **kwargs):
    weights = tiny_weights(SIZES, "llama", True, 0)
    change(weights)
    write_weights(path, weights, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_values_are_exact(tmp_path, model_type, dtype):
    source = open_checkpoint(make_tiny_model(tmp_path / "m", model_type, dtype=dtype, tied=False, seed=3))
    expected = tiny_weights(SIZES, model_type, False, 3)
    assert list(source.specs) == sorted(source.specs, key=list(source.specs).index) and set(source.specs) == set(expected)
    for name, weight in expected.items():
        stored = weight.astype(DTYPES[dtype][1])
        np.testing.assert_array_equal(source.read(name), stored.astype(np.float32))
        np.testing.assert_array_equal(source.read_rows(name, 3, 9), stored[3:9].astype(np.float32))
        raw = source.raw(name)
        assert raw.dtype == dtype == source.specs[name].dtype
        bits = raw.values.view(ml_dtypes.bfloat16) if dtype == "BF16" else raw.values
        np.testing.assert_array_equal(bits, stored)


def test_order_is_the_model_s(model):
    names = list(open_checkpoint(model).specs)
    assert (names[0], names[1], names[-1]) == (EMBEDDING, "model.layers.0.input_layernorm.weight", "model.norm.weight")


def test_shards_hold_the_same(tmp_path):
    whole = open_checkpoint(make_tiny_model(tmp_path / "a"))
    parts = open_checkpoint(make_tiny_model(tmp_path / "b", shards=3))
    assert whole.specs == parts.specs
    assert all(np.array_equal(whole.read(name), parts.read(name)) for name in whole.specs)


@pytest.mark.parametrize("flag", [True, False])
def test_tied_is_decided_by_the_tensors(model, flag):
    edit_config(model, tie_word_embeddings=flag)
    edit_weights(model, lambda w: w.update({HEAD: w[EMBEDDING].copy()}))
    source = open_checkpoint(model)
    assert source.tied and HEAD not in source.specs
    edit_weights(model, lambda w: w.update({HEAD: np.roll(w[EMBEDDING], 1)}))
    assert not open_checkpoint(model).tied


def leftovers(path, *names):
    """Files of older saves beside a sharded model of seed 1: what each would give is told by its embedding."""
    make_tiny_model(path, seed=1, shards=2)
    for seed, name in enumerate(names, 2):
        (path / "old").mkdir()
        (make_tiny_model(path / "old", seed=seed) / "model.safetensors").rename(path / name)
        shutil.rmtree(path / "old")
    return path


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        ((), {}),
        (("model.safetensors",), {}),
        (("model.fp16.safetensors", "consolidated.safetensors"), {}),
        (("tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "pytorch_model.bin.index.json"), {}),
        (("pytorch_model.bin", "model.safetensors"), {}),
        (("model.safetensors", "other.safetensors"), {"transformers_weights": "other.safetensors"}),
        (("model.safetensors",), {"transformers_weights": INDEX}),
    ],
)
def test_the_weights_are_those_that_transformers_loads(tmp_path, names, changes):
    from transformers import AutoModelForCausalLM

    path = leftovers(tmp_path / "m", *names)
    edit_config(path, **changes)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype="float32").model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(open_checkpoint(path).read(EMBEDDING), theirs)


def test_a_whole_file_needs_no_shards_of_an_old_index(tmp_path):
    path = leftovers(tmp_path / "m", "model.safetensors")
    for shard in path.glob("model-*.safetensors"):
        shard.unlink()
    assert open_checkpoint(path).specs


@pytest.mark.parametrize("flag", [False, ...])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_head_is_missing_where_transformers_would_draw_one(tmp_path, model_type, flag):
    path = make_tiny_model(tmp_path / "m", model_type, tied=True)
    edit_config(path, tie_word_embeddings=flag)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        open_checkpoint(path)


def test_digest_follows_content(tmp_path):
    first, again, other = (make_tiny_model(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    digests = [open_checkpoint(path).sha256 for path in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_assets_are_verbatim(model):
    assets = open_checkpoint(model).assets()
    assert set(assets) == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert all(data == (model / name).read_bytes() for name, data in assets.items())


def test_old_buffers_are_ignored(model):
    edit_weights(model, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}))
    assert not [name for name in open_checkpoint(model).specs if "inv_freq" in name]


def header_of(path):
    data = (path / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path, header, data):
    text = header if isinstance(header, str) else json.dumps(header)
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)


def lie_about(**changes):
    def spoil(path):
        header, data = header_of(path)
        header[Q_PROJ] |= changes
        write_header(path, header, data)

    return spoil


def name_twice(path):
    header, data = header_of(path)
    text = json.dumps(header)
    write_header(path, text[:-1] + f', "{Q_PROJ}": ' + json.dumps(header[Q_PROJ]) + "}", data)


def truncate(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def adapter(path):
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')


def adapter_alone(path):
    adapter(path)
    (path / "config.json").unlink()


def pickled(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def shard(path):
    make_tiny_model(path, shards=2)
    (path / "model.safetensors").unlink()


def lose_shard(path):
    shard(path)
    (path / "model-00002-of-00002.safetensors").unlink()


def wrong_index(path):
    shard(path)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"][Q_PROJ] = "model-00002-of-00002.safetensors"
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def name_in_index(file):
    def spoil(path):
        shard(path)
        (path / INDEX).write_text(json.dumps({"weight_map": {Q_PROJ: file}}))

    return spoil


def write_index(text):
    def spoil(path):
        shard(path)
        (path / INDEX).write_text(text)

    return spoil


def tensor_in_two_shards(path):
    shard(path)
    shutil.copy(path / "model-00001-of-00002.safetensors", path / "model-00002-of-00002.safetensors")


def piped(path):
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


LIES = {
    "no config": (lambda p: (p / "config.json").unlink(), "without the config.json that says what they are"),
    "config no json": (lambda p: (p / "config.json").write_text("{"), "config.json: not JSON"),
    "config no object": (lambda p: (p / "config.json").write_text("[]"), "config.json: Expected object, got array"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "no model.safetensors and no model.safetensors.index.json"),
    "unknown type": (
        lambda p: edit_config(p, model_type="mamba"),
        "'mamba' is no family that is known by name here; make a GGUF of it",
    ),
    "no size": (lambda p: edit_config(p, hidden_size=...), "hidden_size"),
    "other activation": (lambda p: edit_config(p, hidden_act="gelu"), "hidden_act 'gelu'"),
    "quantized": (lambda p: edit_config(p, quantization_config={"bits": 4}), "quantized already"),
    "heads": (lambda p: edit_config(p, num_key_value_heads=3), "3 key-value heads"),
    "an adapter beside it": (adapter, "holds a LoRA adapter (adapter_config.json); merge it"),
    "an adapter alone": (adapter_alone, "holds a LoRA adapter (adapter_config.json); merge it"),
    "pickles": (pickled, "pickled weights, which are never loaded; convert them"),
    "truncated": (truncate, "model.safetensors: truncated"),
    "empty file": (lambda p: (p / "model.safetensors").write_bytes(b""), "truncated or no safetensors file"),
    "huge header": (lambda p: (p / "model.safetensors").write_bytes(b"\xff" * 64), "truncated or no safetensors file"),
    "header no json": (lambda p: write_header(p, "{]", b""), "header is not JSON"),
    "header no object": (lambda p: write_header(p, "[]", b""), "header is not a JSON object"),
    "deep header": (lambda p: write_header(p, "[" * 200_000, b""), "header is not JSON"),
    "unknown dtype": (lie_about(dtype="F8_E4M3"), f"{Q_PROJ} is F8_E4M3; supported: F32, F16, BF16"),
    "wrong bytes": (lie_about(shape=[64, 65]), f"{Q_PROJ}: F32 (64, 65) does not fit"),
    "overflow": (lie_about(shape=[2**70]), f"{Q_PROJ}: F32 (1180591620717411303424,) does not fit"),
    "negative": (lie_about(shape=[-64, -64]), f"{Q_PROJ}: F32 (-64, -64) does not fit"),
    "no shape": (lie_about(shape=None), f"{Q_PROJ}: damaged header entry"),
    "shape of an object": (lie_about(shape={}), f"{Q_PROJ}: damaged header entry"),
    "dtype of a list": (lie_about(dtype=[0]), f"{Q_PROJ}: damaged header entry"),
    "a length that is true": (lie_about(shape=[True, 64, 64]), f"{Q_PROJ}: damaged header entry"),
    "nothing in it": (lie_about(shape=[0], data_offsets=[0, 0]), f"{Q_PROJ}: F32 (0,) does not fit"),
    "metadata of a number": (lambda p: write_header(p, '{"__metadata__": {"format": 0}}', b""), "no object of texts"),
    "mostly header": (lambda p: write_header(p, "{" + " " * (1 << 21) + "}", b""), "a header of 2097154 bytes for 0 bytes"),
    "too many tensors": (
        lambda p: write_header(p, '{"data_offsets"' * 100_001, bytes(2_000_000)),
        "100001 tensors, which no decoder here has",
    ),
    "a pipe": (piped, "model.safetensors"),
    "overlap": (lie_about(data_offsets=[0, 16384]), "begins at byte"),
    "out of bounds": (lie_about(data_offsets=[10**9, 10**9 + 16384]), "begins at byte"),
    "named twice": (name_twice, f"header is not JSON (the key {Q_PROJ} is twice in an object)"),
    "half a pair": (lambda p: write_header(p, '{"__metadata__": {"\\ud800": ""}}', b""), "half of a surrogate pair"),
    "wrong shape": (lambda p: edit_config(p, intermediate_size=128), "has shape (96, 64), config.json says (128, 64)"),
    "missing tensor": (lambda p: edit_weights(p, lambda w: w.pop(Q_PROJ)), f"{Q_PROJ} is missing"),
    "missing head": (lambda p: edit_config(p, tie_word_embeddings=False), "lm_head.weight is missing"),
    "far too many layers": (lambda p: edit_config(p, num_hidden_layers=10**9), "is 1000000000, and 20 tensors are all that is"),
    "missing layers": (lambda p: edit_config(p, num_hidden_layers=9), "and 60 more are missing"),
    "unexpected tensor": (lambda p: edit_weights(p, lambda w: w.update({"x.bias": w[Q_PROJ]})), "x.bias is not part of a llama"),
    "missing shard": (lose_shard, f"model-00002-of-00002.safetensors: cannot be read: {INDEX} names it, and it is not there"),
    "bad index": (write_index("{}"), f"{INDEX}: Object missing required field weight_map"),
    "index no json": (write_index("{"), f"{INDEX}: not JSON"),
    "index of lists": (write_index('{"weight_map": {"x": ["y"]}}'), f"{INDEX}: weight_map[...]: Expected str, got array"),
    "index names a name twice": (write_index('{"weight_map": {"x": "y", "x": "z"}}'), "the key x is twice in an object"),
    "deep index": (write_index('{"weight_map": ' + "[" * 99 + "]" * 99 + "}"), "nested deeper than"),
    "empty index": (write_index('{"weight_map": {}}'), "0 tensors are all that is there"),
    "index names a long name": (name_in_index("A" * 100_000), "is not a plain file name"),
    "lying index": (wrong_index, "though model.safetensors.index.json says so"),
    "escaping index": (name_in_index("../m/model.safetensors"), "'../m/model.safetensors' is not a plain file name"),
    "index to a folder": (name_in_index(".."), "'..' is not a plain file name"),
    "index with a zero byte": (name_in_index("a\0b"), "is not a plain file name"),
    "escaping config": (lambda p: edit_config(p, transformers_weights="../x.safetensors"), "is not a plain file name"),
    "pickles by config": (lambda p: edit_config(p, transformers_weights="x.bin"), "transformers_weights is x.bin"),
    "two shards": (tensor_in_two_shards, "and in model-00002-of-00002.safetensors"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_line_that_names_the_file(model, lie):
    spoil, expected = LIES[lie]
    spoil(model)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(model)
    assert expected in str(error.value) and str(model) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_refused_when_read(model, dtype, bad):
    def spoil(weights):
        weights[Q_PROJ][5, 7] = bad
        weights["model.norm.weight"][9] = bad

    edit_weights(model, spoil, dtype=dtype)
    source = open_checkpoint(model)
    for read in (source.read, source.raw, lambda name: source.read_rows(name, 5, 10)):
        with pytest.raises(CheckpointError, match=rf"{Q_PROJ} holds NaN or infinity \(first at row \d, column 7\)"):
            read(Q_PROJ)
    with pytest.raises(CheckpointError, match=r"model.norm.weight holds NaN or infinity \(first at row 9\)"):
        source.read("model.norm.weight")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/some-model", "hf download someone/some-model --local-dir some-model"),
        ("nowhere/at/all", "no such file or directory"),
        ("model.bin", "a file of pickled weights, not a Hugging Face directory or a GGUF file; they are never loaded"),
        ("model.safetensors", "name the folder that holds them and config.json"),
        ("notes.txt", "is not a Hugging Face directory or a GGUF file"),
    ],
)
def test_paths_that_are_no_model(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    if "/" not in name:
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(type(tmp_path)(name))

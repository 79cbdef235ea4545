"""A GGUF file as a source gives the model that it was made from: weights, row order, config, tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from exporter.gguf.file import write_gguf
from exporter.writers import writer_of
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.rope import llama3_factors
from quantize.checkpoint.row_order import ggml_row_index, hf_row_index
from quantize.errors import CheckpointError, ExportError
from quantize.gguf.container import Value, ValueType, encode_header, padded, parse_header
from quantize.gguf.names import to_gguf_name, to_hf_name
from tests.stores import rtn_store, stored_weight
from tests.tiny import make_tiny_model

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SIZES = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
NUMBERS = ("rms_norm_eps", "rope", "max_position")


@pytest.fixture
def file(tmp_path):
    store = rtn_store(make_tiny_model(tmp_path / "m"), tmp_path / "s")
    return write_gguf(store, tmp_path / "m.gguf")


def rewrite(path, change):
    """Let ``change`` edit {name: (type, array)} and the metadata of a GGUF file."""
    header = parse_header(path.read_bytes())
    tensors = {t.name: (t.tensor_type, np.array(t.data)) for t in gguf.GGUFReader(path).tensors}
    metadata = dict(header.metadata)
    change(tensors, metadata)
    infos, data = [], b""
    for name, (kind, array) in tensors.items():
        shape = gguf.quant_shape_from_byte_shape(array.shape, kind) if array.dtype == np.uint8 else array.shape
        infos.append(type(next(iter(header.tensors.values())))(name, kind, tuple(int(n) for n in shape), len(data)))
        data += array.tobytes().ljust(padded(array.nbytes, 32), b"\0")
    path.write_bytes(encode_header(metadata, infos) + data)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_weights_and_config_come_back(tmp_path, model_type, tied):
    source = make_tiny_model(tmp_path / "m", model_type, tied=tied, head_dim=32)
    store = rtn_store(source, tmp_path / "s", embedding="q5_1")
    back = open_checkpoint(write_gguf(store, tmp_path / "m.gguf"))
    assert back.tied is tied and list(back.specs) == list(open_checkpoint(source).specs)
    for name in back.specs:
        expected = stored_weight(store, name)
        np.testing.assert_array_equal(back.read(name), expected)
        np.testing.assert_array_equal(back.read_rows(name, 5, 40), expected[5:40])
        np.testing.assert_array_equal(back.raw(name).values, expected)
    assert all(getattr(back.config, key) == getattr(store.config, key) for key in (*SIZES, *NUMBERS))
    assert back.config.model_type == ("llama" if model_type == "mistral" else model_type)
    assert json.loads(back.assets()["config.json"])["tie_word_embeddings"] is tied


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_plain_floats_keep_their_bits(tmp_path, dtype):
    source = open_checkpoint(make_tiny_model(tmp_path / "m", dtype=dtype))
    store = rtn_store(source.path, tmp_path / "s", embedding="source")
    back = open_checkpoint(write_gguf(store, tmp_path / "m.gguf"))
    one, two = source.raw("model.embed_tokens.weight"), back.raw("model.embed_tokens.weight")
    assert one.dtype == two.dtype == dtype
    np.testing.assert_array_equal(one.values.view(np.uint16), two.values.view(np.uint16))


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS, Kind.IQ4_NL])
def test_types_that_only_gguf_py_decodes(tmp_path, kind):
    store = rtn_store(make_tiny_model(tmp_path / "m", hidden=256, layers=1), tmp_path / "s")
    file = write_gguf(store, tmp_path / "m.gguf")
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(1).integers(0, 60, (96, 256 // block * size), np.uint8)  # small bytes: no float16 overflows
    rewrite(file, lambda tensors, _: tensors.update({"blk.0.ffn_up.weight": (kind, data)}))
    source = open_checkpoint(file)
    name = "model.layers.0.mlp.up_proj.weight"
    assert source.specs[name].dtype == kind.name
    np.testing.assert_array_equal(source.read(name), gguf.dequantize(data, kind))


def test_an_equal_head_is_tied(file):
    rewrite(file, lambda tensors, _: tensors.update({"output.weight": tensors["token_embd.weight"]}))
    source = open_checkpoint(file)
    assert source.tied and "lm_head.weight" not in source.specs


def test_assets(file):
    assets = open_checkpoint(file).assets()
    metadata = parse_header(assets["metadata.gguf"]).metadata
    assert metadata == parse_header(file.read_bytes()).metadata and not parse_header(assets["metadata.gguf"]).tensors
    assert assets["chat_template.jinja"].decode() == metadata["tokenizer.chat_template"].decode()
    config = json.loads(assets["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    assert json.loads(assets["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert json.loads(assets["tokenizer.json"])["pre_tokenizer"]["pretokenizers"][0] == {
        "type": "Digits",
        "individual_digits": True,
    }


def test_the_whole_tokenizer_comes_back(tmp_path, file):
    ours = json.loads(open_checkpoint(file).assets()["tokenizer.json"])
    original = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    for key in ("vocab", "merges", "ignore_merges"):
        assert ours["model"][key] == original["model"][key]
    assert ours["added_tokens"] == original["added_tokens"]
    assert ours["pre_tokenizer"] == original["pre_tokenizer"]


@pytest.mark.parametrize("original", [64, 8192])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered(tmp_path, factor, original):
    params = LLAMA3 | {"factor": factor, "original_max_position_embeddings": original}
    source = make_tiny_model(tmp_path / "m", head_dim=64, rope_scaling=params)
    back = open_checkpoint(write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf"))
    found = back.config.raw["rope_scaling"]
    args = (64, back.config.rope.theta)
    np.testing.assert_allclose(llama3_factors(found, *args), llama3_factors(params, *args), rtol=1e-6)
    assert original == 64 or found == params


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {"type": "yarn", "factor": 4.0},
    YARN | {"rope_theta": 500000.0},
    YARN | {"attention_factor": 1.0},
    YARN | {"factor": 0.5, "attention_factor": 1.5},
    YARN | {"mscale": 2.0, "mscale_all_dim": 0.5},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_scaling_by_key_comes_back(tmp_path, scaling):
    source = open_checkpoint(make_tiny_model(tmp_path / "m", "qwen3", rope_scaling=scaling))
    back = open_checkpoint(write_gguf(rtn_store(source.path, tmp_path / "s"), tmp_path / "m.gguf"))
    assert replace(back.config.rope, attention_factor=1.0) == replace(source.config.rope, attention_factor=1.0)
    assert back.config.rope.attention_factor == pytest.approx(source.config.rope.attention_factor, rel=1e-7)


@pytest.mark.parametrize(
    ("values", "kind", "factor"),
    [
        ({"scaling.factor": 4.0}, "linear", 4.0),
        ({"scale_linear": 4.0}, "linear", 4.0),
        ({"scaling.factor": 0.0}, "default", 1.0),
        ({"scaling.factor": 1.0}, "default", 1.0),
        ({"scaling.type": "none", "scaling.factor": 4.0}, "default", 1.0),
        ({"scaling.type": "linear", "scaling.factor": 2.0, "scaling.yarn_ext_factor": -1.0}, "linear", 2.0),
        ({"scaling.type": "yarn", "scaling.factor": 2.0, "scaling.yarn_beta_fast": 32.0}, "yarn", 2.0),
    ],
)
def test_scaling_is_read_as_llama_cpp_does(file, values, kind, factor):
    for key, value in values.items():
        rewrite(file, set_key(f"llama.rope.{key}", ValueType.STRING if isinstance(value, str) else ValueType.F32, value))
    rope = open_checkpoint(file).config.rope
    assert (rope.kind, rope.factor) == (kind, factor)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("yarn_ext_factor", 0.5),
        ("yarn_attn_factor", 2.0),
        ("yarn_beta_fast", 16.0),
        ("yarn_beta_slow", 2.0),
        ("yarn_log_multiplier", 0.1),
        ("alpha", 1000.0),
        ("attn_factor", 2.0),  # without yarn
        ("attn_factor", float("nan")),
    ],
)
def test_scaling_that_is_not_carried_is_refused_by_name(file, key, value):
    rewrite(file, set_key(f"llama.rope.scaling.{key}", ValueType.F32, value))
    with pytest.raises(CheckpointError, match=rf"m\.gguf: llama\.rope\.scaling\.{key} "):
        open_checkpoint(file)


def set_key(key, kind, value):
    return lambda _, metadata: metadata.update({key: Value.encode(kind, value)})


def drop_key(key):
    return lambda _, metadata: metadata.pop(key)


def bad_rope(tensors, _):
    tensors["rope_freqs.weight"] = (Kind.F32, np.array([1, 5, 2, 9, 1, 3, 1, 1], np.float32))


LIES = {
    "architecture": (set_key("general.architecture", ValueType.STRING, "mamba"), "'mamba.embedding_length' is missing"),
    "no size": (drop_key("llama.block_count"), "'llama.block_count' is missing"),
    "size is text": (set_key("llama.block_count", ValueType.STRING, "two"), "llama.block_count is of type string, not u32"),
    "split": (set_key("split.count", ValueType.U16, 3), "let its name end in -00001-of-00003.gguf"),
    "rotary": (set_key("llama.rope.dimension_count", ValueType.U32, 8), "rotary dimensions differ"),
    "scaling": (set_key("llama.rope.scaling.type", ValueType.STRING, "longrope"), "rope scaling 'longrope'"),
    "factors": (bad_rope, "rope_freqs.weight does not follow"),
    "foreign tensor": (lambda t, _: t.update({"blk.0.ssm_a": (Kind.F32, np.ones(4, np.float32))}), "blk.0.ssm_a is not part"),
    "missing tensor": (lambda t, _: t.pop("blk.1.ffn_up.weight"), "model.layers.1.mlp.up_proj.weight is missing"),
    "no embedding": (lambda t, _: t.pop("token_embd.weight"), "model.embed_tokens.weight is missing"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_line_that_names_the_file(file, lie):
    change, expected = LIES[lie]
    rewrite(file, change)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(file)
    assert expected in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("size", [4, 100, 5000, -1000])
def test_truncated(file, size):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(file)


def test_not_finite(file):
    def spoil(tensors, _):
        tensors["blk.0.attn_q.weight"][1][8, 18:20] = (0, 0x7C)  # d of row 8's second block is infinite
        tensors["output_norm.weight"][1][3] = np.nan

    rewrite(file, spoil)
    source = open_checkpoint(file)
    row = int(np.flatnonzero(hf_row_index(64, 4) == 8)[0])
    with pytest.raises(CheckpointError, match=rf"q_proj.weight holds NaN or infinity \(first at row {row}, column \d+\)"):
        source.read("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(CheckpointError, match=r"model.norm.weight holds NaN or infinity"):
        source.raw("model.norm.weight")


def test_a_file_with_transposed_tensors_is_no_source(tmp_path):
    store = rtn_store(make_tiny_model(tmp_path / "m"), tmp_path / "s", "gguf-adadim", "rtn-ic")
    path = write_gguf(store, tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"m\.gguf: blk\.0\.attn_q\.weight_ic lies transposed .*use the model it was"):
        open_checkpoint(path)


def test_an_unknown_tokenizer_goes_from_gguf_to_gguf_and_nowhere_else(tmp_path, file):
    rewrite(file, set_key("tokenizer.ggml.pre", ValueType.STRING, "of tomorrow"))
    source = open_checkpoint(file)
    assert "tokenizer.json" not in source.assets()
    writer_of("llama.cpp").check(source, None)
    with pytest.raises(ExportError, match=r"m\.gguf: onnxruntime-genai needs a tokenizer\.json"):
        writer_of("onnxruntime").check(source, None)
    again = write_gguf(rtn_store(file, tmp_path / "again"), tmp_path / "again.gguf")
    assert parse_header(again.read_bytes()).metadata["tokenizer.ggml.pre"].decode() == "of tomorrow"


def test_row_order_is_llama_cpp_s():
    # convert_hf_to_gguf's LlamaModel.permute
    rows = np.arange(24)
    assert (ggml_row_index(24, 3) == rows.reshape(3, 2, 4).swapaxes(1, 2).reshape(24)).all()
    assert ggml_row_index(6, 1).tolist() == [0, 3, 1, 4, 2, 5]
    assert (ggml_row_index(24, 3)[hf_row_index(24, 3)] == rows).all()


@pytest.mark.parametrize(
    ("hf", "name"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight"),
        ("model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"),
    ],
)
def test_names(hf, name):
    assert to_gguf_name(hf) == name and to_hf_name(name) == hf
    assert to_hf_name("blk.3.ffn_up.weight_ic") == "model.layers.3.mlp.up_proj.weight"

"""Whole GGUF files: they load and run in llama.cpp, hold the store exactly, and come out the same twice."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from exporter.gguf.file import write_gguf
from quantize.blocks import dequantize
from quantize.checkpoint import open_checkpoint
from quantize.errors import ExportError, FileFormatError, OutputError
from quantize.gguf.container import parse_header
from quantize.gguf.names import to_gguf_name
from quantize.llama_cpp.model import LlamaModel
from quantize.source import build_model, logits
from quantize.store.tensors import QuantizedStore
from quantize.types import Axis, QuantizedTensor
from tests.stores import rtn_store, stored_weight
from tests.tiny import make_tiny_model

TEXT = "The quick brown fox 123 jumps over it"
MAX_KL = 0.012  # llama.cpp rounds activations to 8 bits per block of 32
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
MODELS = {
    "llama tied": ("llama", {}, {}),
    "llama untied": ("llama", {"tied": False}, {}),
    "llama wide heads": ("llama", {"head_dim": 32}, {"embedding": "q4_0"}),
    "llama bf16": ("llama", {"dtype": "BF16"}, {"embedding": "source"}),
    "llama f16 sharded": ("llama", {"dtype": "F16", "shards": 3}, {"embedding": "source", "grid": "q5_1", "bits": 5}),
    "llama3 scaling": ("llama", {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16}}, {}),
    "llama linear scaling": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"grid": "q4_1"}),
    "mistral": ("mistral", {"tied": False, "vocab": 352}, {"grid": "q8_0", "bits": 8}),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {"head_dim": 32}, {"grid": "q5_0", "bits": 5}),
    "qwen3 one kv head": ("qwen3", {"head_dim": 32, "kv_heads": 1, "tied": False}, {}),
    "qwen3 yarn": ("qwen3", {"rope_scaling": YARN}, {}),
    "qwen3 yarn factor": ("qwen3", {"rope_scaling": YARN | {"attention_factor": 0.5}}, {}),
    "qwen2 yarn mscale": ("qwen2", {"rope_scaling": YARN | {"mscale": 3.0, "mscale_all_dim": 0.5}}, {}),
    "llama yarn below 1": ("llama", {"rope_scaling": YARN | {"factor": 0.5, "attention_factor": 1.5}}, {}),
    "mistral yarn factor null": ("mistral", {"rope_scaling": YARN | {"factor": None, "attention_factor": 0.7}}, {}),
    "mistral theta inside": ("mistral", {"rope_scaling": {"type": "default", "rope_theta": 50.0}}, {}),
    "llama heads of 24": ("llama", {"head_dim": 24, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
}


def metadata_of(path):
    return {key: value.decode() for key, value in parse_header(path.read_bytes()).metadata.items()}


@pytest.mark.parametrize("case", MODELS)
def test_llama_cpp_computes_what_torch_does(tmp_path, case):
    model_type, sizes, config = MODELS[case]
    store = rtn_store(make_tiny_model(tmp_path / "m", model_type, **sizes), tmp_path / "s", **config)
    with LlamaModel(write_gguf(store, tmp_path / "m.gguf"), n_ctx=64, threads=1) as model:
        ids = np.array(model.tokenize(TEXT, add_special=True), np.int32)
        ours = torch.from_numpy(model.logits(ids)).log_softmax(-1)
        assert len(model.generate_greedy(ids.tolist(), 4)) >= 1
    source = build_model(store.config, lambda name: stored_weight(store, name), store.tied)
    reference = torch.from_numpy(logits(source, ids[None].astype(np.int64))[0]).log_softmax(-1)
    assert (reference.exp() * (reference - ours)).sum(-1).mean() < MAX_KL


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_rows_stand_where_llama_cpp_wants_them(tmp_path, model_type):
    """The file, its rows is the source permuted as llama.cpp's own converter does."""
    source = open_checkpoint(make_tiny_model(tmp_path / "m", model_type))
    out = write_gguf(rtn_store(source.path, tmp_path / "s", grid="q8_0", bits=8), tmp_path / "m.gguf")
    tensors = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(out).tensors}
    for name, heads in (("q_proj", 4), ("k_proj", 2)):
        expected = source.read(f"model.layers.1.self_attn.{name}.weight")
        if model_type != "qwen2":  # convert_hf_to_gguf's LlamaModel.permute
            expected = expected.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(expected.shape)
        np.testing.assert_allclose(tensors[f"blk.1.attn_{name[0]}.weight"], expected, atol=0.02)


@pytest.mark.parametrize("method", ["rtn-oc", "rtn-ic"])
def test_every_tensor_once_and_exact(tmp_path, method):
    target = "llama.cpp" if method == "rtn-oc" else "gguf-adadim"
    store = rtn_store(make_tiny_model(tmp_path / "m", tied=False), tmp_path / "s", target, method)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(write_gguf(store, tmp_path / "m.gguf")).tensors}
    assert len(tensors) == len(store.records)
    for name, record in store.records.items():
        tensor, stored = tensors[_file_name(record)], store.read(name)
        decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
        expected = dequantize(stored) if isinstance(stored, QuantizedTensor) else stored.values
        assert decoded.shape == (expected.T if record.axis is Axis.PER_IC else expected).shape
        np.testing.assert_array_equal(decoded, expected.T if record.axis is Axis.PER_IC else expected)


def _file_name(record):
    name = to_gguf_name(record.name)
    return name + "_ic" if record.grid is not None and record.axis is Axis.PER_IC else name


def test_a_stock_loader_stops_at_transposed_tensors(tmp_path):
    store = rtn_store(make_tiny_model(tmp_path / "m"), tmp_path / "s", "gguf-adadim", "rtn-ic")
    out = write_gguf(store, tmp_path / "m.gguf")
    assert metadata_of(out)["adadim.format_version"] == 1
    with pytest.raises(FileFormatError, match=r"blk\.0\.attn_q\.weight"):
        LlamaModel(out, n_ctx=32)


def test_the_same_store_gives_the_same_bytes(tmp_path):
    source = make_tiny_model(tmp_path / "m")
    one, two = (write_gguf(rtn_store(source, tmp_path / name), tmp_path / f"{name}.gguf") for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_chunks_are_poured_one_after_another(tmp_path):
    """The embedding here is larger than a decoder block, so the store holds it in pieces."""
    store = rtn_store(make_tiny_model(tmp_path / "m", hidden=32, ffn=32, vocab=2000), tmp_path / "s")
    assert store.records["model.embed_tokens.weight"].chunks > 1
    out = write_gguf(store, tmp_path / "m.gguf")
    tensor = next(t for t in gguf.GGUFReader(out).tensors if t.name == "token_embd.weight")
    decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(decoded, stored_weight(store, "model.embed_tokens.weight"))


def test_metadata_of_a_hugging_face_source(tmp_path):
    source = make_tiny_model(tmp_path / "tiny", "qwen3", head_dim=32)
    metadata = metadata_of(write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf"))
    expected = {
        "general.architecture": "qwen3",
        "general.name": "tiny",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_0,
        "general.quantization_version": 2,
        "qwen3.block_count": 2,
        "qwen3.context_length": 512,
        "qwen3.embedding_length": 64,
        "qwen3.feed_forward_length": 96,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 32,
        "qwen3.attention.value_length": 32,
        "qwen3.rope.dimension_count": 32,
        "qwen3.rope.freq_base": 10000.0,
        "qwen3.vocab_size": 320,
        "adadim.target": "llama.cpp",
        "adadim.method": "rtn-oc",
        "adadim.source.name": "tiny",
    }
    assert expected.items() <= metadata.items() and len(metadata["adadim.source.sha256"]) == 64
    assert metadata["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert not [key for key in metadata if key.startswith("adadim.calibration")]


def test_metadata_of_a_gguf_source_is_verbatim(tmp_path):
    params = LLAMA3 | {"original_max_position_embeddings": 64}
    first = rtn_store(make_tiny_model(tmp_path / "m", head_dim=64, rope_scaling=params), tmp_path / "s", grid="q4_1")
    source = write_gguf(first, tmp_path / "source.gguf")
    again = write_gguf(rtn_store(source, tmp_path / "t"), tmp_path / "again.gguf")
    before, after = (parse_header(path.read_bytes()).metadata for path in (source, again))
    changed = {key for key in before if before[key] != after[key] and not key.startswith("adadim.")}
    assert changed == {"general.file_type"} and set(after) == set(before)
    tensors = [{t.name: t.data for t in gguf.GGUFReader(path).tensors} for path in (source, again)]
    np.testing.assert_allclose(tensors[1]["rope_freqs.weight"], tensors[0]["rope_freqs.weight"], rtol=1e-6)
    with pytest.raises(ExportError, match="tokenizer is kept as it is; drop tokenizer_pre='olmo'"):
        write_gguf(QuantizedStore(tmp_path / "t"), tmp_path / "x.gguf", tokenizer_pre="olmo")


def test_file_types_are_gguf_py_s():
    from exporter.gguf.metadata import FILE_TYPES

    known = {item.name: item.value for item in gguf.LlamaFileType}
    for key, value in FILE_TYPES.items():
        names = ["ALL_F32"] if key == "F32" else [f"MOSTLY_{key.upper()}{suffix}" for suffix in ("", "_S", "_MOE")]
        assert value == next(known[name] for name in names if name in known), key


@pytest.fixture
def store(tmp_path):
    return rtn_store(make_tiny_model(tmp_path / "m"), tmp_path / "s")


def test_an_existing_file_needs_force(tmp_path, store):
    out = tmp_path / "m.gguf"
    out.write_text("precious")
    with pytest.raises(OutputError, match=r"m.gguf: exists already; name another out or pass force=True"):
        write_gguf(store, out)
    assert out.read_text() == "precious"
    write_gguf(store, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF"
    with pytest.raises(OutputError, match="is a folder; name a file"):
        write_gguf(store, tmp_path, force=True)


def test_nothing_is_left_of_what_fails(tmp_path, store):
    next((store.path / "tensors").glob("model.norm*")).unlink()
    out = tmp_path / "out" / "m.gguf"
    with pytest.raises(Exception, match=r"model.norm.weight"):
        write_gguf(store, out)
    assert not out.parent.exists()


def test_an_unwritable_place_is_one_line(tmp_path, store):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_gguf(store, tmp_path / "file" / "m.gguf")


def test_a_store_for_another_runtime_is_refused(tmp_path):
    store = rtn_store(make_tiny_model(tmp_path / "m"), tmp_path / "s", "onnxruntime")
    with pytest.raises(
        ExportError,
        match=r"onnxruntime, not for llama.cpp or gguf-adadim; write it with `adadim export onnx`, or quantize again",
    ):
        write_gguf(store, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("qwen3", {"rope_scaling": YARN | {"beta_fast": 8, "beta_slow": 0.25}}, "qwen3 reads none of yarn's beta_fast 8.0"),
        ("llama", {"rope_scaling": YARN | {"truncate": False}}, "truncate False from a file; .*target='onnxruntime' can hold it"),
        ("qwen2", {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}}, "qwen2 has no rope scaling llama3"),
        ("qwen3", {"attention_bias": True}, "qwen3 has no model.layers.0.self_attn"),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_refused(tmp_path, model_type, changes, message):
    store = rtn_store(make_tiny_model(tmp_path / "m", model_type, **changes), tmp_path / "s")
    with pytest.raises(ExportError, match=message) as error:
        write_gguf(store, tmp_path / "m.gguf")
    assert "remove" not in str(error.value)

from __future__ import annotations

import numpy as np
import pytest

from exporter.gguf.file import write_gguf
from quantize.errors import ConfigError, FileFormatError
from quantize.llama_cpp import library as llama_library
from quantize.llama_cpp.model import BATCH_ROWS, LlamaModel, LlamaVocab
from runtime_checks.reference.decode import BLOCK_BYTES, decode_blocks, matmul
from runtime_checks.runtimes.ggml_operator import out_prod
from tests.runtime_checks.made import random_blocks
from tests.stores import rtn_store
from tests.tiny import CHAT_TEMPLATE, make_tiny_model

TOKENS = np.random.default_rng(0).integers(3, 320, 2 * BATCH_ROWS + 5).astype(np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama_cpp")
    return write_gguf(rtn_store(make_tiny_model(folder / "hf"), folder / "store"), folder / "model.gguf")


@pytest.fixture(scope="module")
def model(path):
    with LlamaModel(path, n_ctx=512) as loaded:
        yield loaded


def test_logits_of_every_position(model):
    logits = model.logits(TOKENS)
    assert (logits.shape, logits.dtype) == ((len(TOKENS), 320), np.float32)
    assert [len(part) for part in model.logits_rows(TOKENS)] == [BATCH_ROWS, BATCH_ROWS, 5]
    np.testing.assert_array_equal(model.logits(TOKENS), logits)


def test_a_prefix_has_the_same_logits(model):
    np.testing.assert_array_equal(model.logits(TOKENS[: BATCH_ROWS + 9])[:BATCH_ROWS], model.logits(TOKENS)[:BATCH_ROWS])


def test_greedy_takes_the_most_probable(model):
    prompt = TOKENS[:9].tolist()
    out = model.generate_greedy(prompt, 6)
    logits = model.logits(np.array(prompt + out, np.int32))
    assert out == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_speed_is_measured(model):
    assert model.tokens_per_second(4) > 0


def test_a_context_is_not_overrun(model):
    with pytest.raises(AssertionError, match="context of 512"):
        model.logits(np.ones(600, np.int32))


def test_vocabulary(path):
    with LlamaVocab(path) as vocab:
        assert (vocab.size, vocab.bos, vocab.eos) == (320, "<|im_start|>", "<|im_end|>")
        assert vocab.tokenize("<|im_end|>") == [2]
        assert len(vocab.tokenize("<|im_end|>", parse_special=False)) > 1
        assert vocab.is_end(2) and not vocab.is_end(50)
        text = "Größe 東京 <|im_end|>\n 12"
        assert vocab.detokenize(vocab.tokenize(text)) == text
        assert vocab.chat_template() == CHAT_TEMPLATE.encode()
    vocab.close()


def test_a_file_that_llama_cpp_refuses(tmp_path):
    (tmp_path / "f.gguf").write_bytes(b"nonsense" * 9)
    with pytest.raises(FileFormatError, match=r"f\.gguf: llama\.cpp refuses it \(.*magic"):
        LlamaVocab(tmp_path / "f.gguf")


def test_a_stock_loader_stops_at_transposed_tensors(tmp_path):
    store = rtn_store(make_tiny_model(tmp_path / "hf"), tmp_path / "store", target="gguf-adadim", method="rtn-ic")
    with pytest.raises(FileFormatError, match=r"blk\.0\.attn_q\.weight' not found"):
        LlamaModel(write_gguf(store, tmp_path / "f.gguf"))


@pytest.mark.parametrize("kind", sorted(BLOCK_BYTES))
def test_out_prod_decodes_as_the_reference(kind):
    stored = random_blocks(kind, 40, 3, np.random.default_rng(1))
    decoded = decode_blocks(kind, stored)
    np.testing.assert_array_equal(out_prod(kind, stored, np.eye(40, dtype=np.float32)), decoded)
    x = np.random.default_rng(2).standard_normal((3, 40), dtype=np.float32)
    np.testing.assert_allclose(out_prod(kind, stored, x), matmul(x, decoded.T), rtol=1e-4, atol=1e-4)


def test_another_wheel_is_refused(monkeypatch):
    monkeypatch.setattr(llama_library, "WHEEL_VERSION", "1.0")
    with pytest.raises(ConfigError, match=r"needs xllamacpp 1\.0, installed is .*; run `pip install xllamacpp==1\.0`"):
        llama_library.library.__wrapped__()


@pytest.mark.parametrize(("table", "field"), [("MODEL_DEFAULTS", "lazy_mode"), ("CONTEXT_DEFAULTS", "n_ubatch")])
def test_another_default_is_refused(monkeypatch, table, field):
    monkeypatch.setitem(getattr(llama_library, table), field, 7)
    with pytest.raises(AssertionError, match=rf"{field} is .*, expected 7: another llama\.cpp"):
        llama_library.library.__wrapped__()

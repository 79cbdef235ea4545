from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer, processors

from exporter.gguf.file import write_gguf
from exporter.onnx.file import write_onnx
from quantize.checkpoint import open_checkpoint
from quantize.errors import FileFormatError
from runtime_checks.checks.tokenizer_check import STRINGS, check_tokenizer
from tests.stores import rtn_store
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer_check")


@pytest.fixture(scope="module")
def model(folder):
    return make_tiny_model(folder / "hf")


@pytest.fixture(scope="module")
def gguf_file(folder, model):
    return write_gguf(rtn_store(model, folder / "gguf_store"), folder / "model.gguf")


@pytest.fixture(scope="module")
def onnx_folder(folder, model):
    return write_onnx(rtn_store(model, folder / "onnx_store", target="onnxruntime"), folder / "onnx")


def failures(path: Path, source: Path) -> dict[str, list[str]]:
    checks = check_tokenizer(path, open_checkpoint(source))
    assert len(checks) > len(STRINGS)
    out: dict[str, list[str]] = {}
    for check in checks:
        if not check.ok:
            out.setdefault(check.name, []).append(check.tensor)
    return out


def test_what_we_write_passes(gguf_file, onnx_folder, model):
    assert not failures(gguf_file, model)
    assert not failures(onnx_folder, model)


def test_a_gguf_source_is_its_own_truth(gguf_file, tmp_path):
    assert not failures(gguf_file, gguf_file)
    assert not failures(write_onnx(rtn_store(gguf_file, tmp_path / "s", target="onnxruntime"), tmp_path / "onnx"), gguf_file)


def test_a_tokenizer_that_adds_bos(tmp_path):
    model = make_tiny_model(tmp_path / "hf")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.save(str(model / "tokenizer.json"))
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8")) | {"add_bos_token": True}
    (model / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert not failures(write_gguf(rtn_store(model, tmp_path / "s"), tmp_path / "f.gguf"), model)
    assert not failures(write_onnx(rtn_store(model, tmp_path / "o", target="onnxruntime"), tmp_path / "onnx"), model)


def edited_gguf(path: Path, out: Path, edit) -> Path:
    shutil.copy(path, out)
    reader = gguf.GGUFReader(out, "r+")
    edit(reader.fields)
    reader.data.flush()
    return out


def set_number(field, index: int, value: int) -> None:
    field.parts[field.data[index]][0] = value


def test_a_dropped_special_token_is_found_in_llama_cpp(gguf_file, model, tmp_path):
    def to_normal(fields):
        set_number(fields["tokenizer.ggml.token_type"], 1, gguf.TokenType.NORMAL)

    found = failures(edited_gguf(gguf_file, tmp_path / "f.gguf", to_normal), model)
    assert found["llama_tokenize = source's special tokens"] == ["<|im_start|>"]


def test_another_end_is_found_in_llama_cpp(gguf_file, model, tmp_path):
    def rename(fields):
        set_number(fields["tokenizer.ggml.eos_token_id"], 0, 60)
        text = fields["tokenizer.ggml.tokens"]
        text.parts[text.data[2]][:] = list(b"<|im_xyz|>")

    found = failures(edited_gguf(gguf_file, tmp_path / "f.gguf", rename), model)
    assert found["llama.cpp stops at"] == ["2"]


def test_swapped_tokens_are_found_in_llama_cpp(gguf_file, model, tmp_path):
    def swap(fields):
        text = fields["tokenizer.ggml.tokens"]
        first, second = (text.parts[text.data[index]] for index in (40, 41))
        assert len(first) == len(second)
        first[:], second[:] = second.copy(), first.copy()

    found = failures(edited_gguf(gguf_file, tmp_path / "f.gguf", swap), model)
    assert found["llama_tokenize = source's ids"]


def test_a_changed_template_is_found_in_the_gguf(gguf_file, model, tmp_path):
    def change(fields):
        field = fields["tokenizer.chat_template"]
        text = bytes(field.parts[field.data[0]])
        field.parts[field.data[0]][:] = list(text.replace(b"assistant", b"Assistant"))

    found = failures(edited_gguf(gguf_file, tmp_path / "f.gguf", change), model)
    assert found["chat template = source's"] == ["f.gguf"]
    assert found["the GGUF's template = source's prompt"] == ["one question", "three turns", "with a system message"]


def edited_onnx(path: Path, out: Path, name: str, edit) -> Path:
    shutil.copytree(path, out, ignore=shutil.ignore_patterns("model.onnx*"))
    raw = json.loads((out / name).read_text(encoding="utf-8"))
    edit(raw)
    (out / name).write_text(json.dumps(raw), encoding="utf-8")
    return out


def test_a_dropped_special_token_is_found_in_genai(onnx_folder, model, tmp_path):
    folder = edited_onnx(onnx_folder, tmp_path / "onnx", "tokenizer.json", lambda raw: raw["added_tokens"].pop(1))
    assert failures(folder, model)["genai's encode = source's special tokens"] == ["<|im_start|>"]


def test_lost_digit_splitting_is_found_in_genai(onnx_folder, tmp_path, model):
    """A vocabulary with a token for "12" tells whether digits are cut apart."""
    source = make_tiny_model(tmp_path / "hf")
    for folder in (source, shutil.copytree(onnx_folder, tmp_path / "onnx", ignore=shutil.ignore_patterns("model.onnx*"))):
        raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        raw["model"]["vocab"]["12"] = len(raw["model"]["vocab"])
        raw["model"]["merges"].append(["1", "2"])
        if folder != source:
            raw["pre_tokenizer"] = raw["pre_tokenizer"]["pretokenizers"][1]
        (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    found = failures(tmp_path / "onnx", source)
    assert any("1234567890" in text for text in found["genai's encode = source's ids"])


def test_another_end_is_found_in_genai(onnx_folder, model, tmp_path):
    folder = edited_onnx(onnx_folder, tmp_path / "onnx", "genai_config.json", lambda raw: raw["model"].update(eos_token_id=0))
    assert failures(folder, model)["genai stops at"] == ["2"]


def test_another_template_is_found_in_genai(onnx_folder, model, tmp_path):
    def change(raw):
        raw["chat_template"] = raw["chat_template"].replace("user", "User").replace("assistant", "Assistant")

    folder = edited_onnx(onnx_folder, tmp_path / "onnx", "tokenizer_config.json", change)
    found = failures(folder, model)["genai's apply_chat_template = source's prompt"]
    assert found == ["one question", "three turns", "with a system message"]


def test_a_folder_that_genai_refuses(onnx_folder, model, tmp_path):
    folder = shutil.copytree(onnx_folder, tmp_path / "onnx", ignore=shutil.ignore_patterns("model.onnx*"))
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileFormatError, match="onnxruntime-genai refuses its tokenizer"):
        check_tokenizer(folder, open_checkpoint(model))


@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime"])
def test_normalizing_is_a_limit_of_the_runtime(tmp_path, target):
    """Noted, with the string, where ids differ only because the source normalizes."""
    model = make_tiny_model(tmp_path / "hf")
    raw = json.loads((model / "tokenizer.json").read_text(encoding="utf-8")) | {"normalizer": {"type": "NFC"}}
    (model / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    store = rtn_store(model, tmp_path / "s", target=target)
    file = write_gguf(store, tmp_path / "f.gguf") if target == "llama.cpp" else write_onnx(store, tmp_path / "onnx")
    checks = check_tokenizer(file, open_checkpoint(model))
    notes = [check for check in checks if check.note]
    assert not [check for check in checks if not check.ok]
    assert notes and all("NFC" in check.note and check.error > 0 for check in notes)
    assert any("e\u0301" in check.tensor for check in notes)


@pytest.mark.parametrize(
    ("template", "words"),
    [("{% if", "cannot be rendered"), ("{{ f() }}", "cannot be rendered"), ("{% if false %}x{% endif %}", "renders nothing")],
)
def test_a_broken_template_is_noted(tmp_path, template, words):
    model = make_tiny_model(tmp_path / "hf")
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8")) | {"chat_template": template}
    (model / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    checks = check_tokenizer(write_gguf(rtn_store(model, tmp_path / "s"), tmp_path / "f.gguf"), open_checkpoint(model))
    assert any(words in check.note and "template" in check.name for check in checks)
    assert not [check for check in checks if not check.ok]

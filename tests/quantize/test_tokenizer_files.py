"""What a folder's tokenizer files say, against transformers' AutoTokenizer."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from exporter.cli.main import main
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.tokenizer_files import chat_templates, special_ids, special_tokens
from quantize.checkpoint.tokenizing import encode
from quantize.errors import CalibrationError, CheckpointError
from runtime_checks.checks.chat_template import special_tokens_of, template_of
from tests.tiny import make_tiny_model

A, B = "A{{ messages[0].content }}", "B{{ messages[0].content }}"


def edit(folder, name, **changes):
    raw = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(raw | changes), encoding="utf-8")


def write(folder, name, text):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def model(tmp_path):
    return make_tiny_model(tmp_path / "m", hidden=32, heads=1, kv_heads=1, ffn=32, layers=1)


TEMPLATES = {
    "config": lambda m: edit(m, "tokenizer_config.json", chat_template=A),
    "list": lambda m: edit(
        m, "tokenizer_config.json", chat_template=[{"name": "x", "template": B}, {"name": "default", "template": A}]
    ),
    "an object": lambda m: edit(m, "tokenizer_config.json", chat_template={"x": B, "default": A}),
    "file over config": lambda m: (edit(m, "tokenizer_config.json", chat_template=B), write(m, "chat_template.jinja", A)),
    "processor's file": lambda m: (
        edit(m, "tokenizer_config.json", chat_template=A),
        write(m, "chat_template.json", json.dumps({"chat_template": B})),
    ),
    "more files": lambda m: (write(m, "chat_template.jinja", A), write(m, "additional_chat_templates/x.jinja", B)),
    "only more files": lambda m: write(m, "additional_chat_templates/x.jinja", B),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_templates(model, case):
    TEMPLATES[case](model)
    theirs = AutoTokenizer.from_pretrained(model).chat_template
    assets = open_checkpoint(model).assets()
    expected = theirs if isinstance(theirs, dict) else {"default": theirs}
    found = chat_templates(assets, "m")
    assert found == expected and template_of(assets) == expected.get("default")
    assert "default" not in found or next(iter(found)) == "default"


@pytest.mark.parametrize("decoder", [False, True])
def test_special_tokens(model, decoder):
    write(model, "special_tokens_map.json", json.dumps({"eos_token": {"content": "<|endoftext|>", "lstrip": False}}))
    edit(model, "tokenizer_config.json", pad_token=None)
    if decoder:
        edit(model, "tokenizer_config.json", added_tokens_decoder={"0": {"content": "<|endoftext|>", "special": True}})
    assets, theirs = open_checkpoint(model).assets(), AutoTokenizer.from_pretrained(model)
    assert special_tokens(assets, "m") == special_tokens_of(assets) == theirs.special_tokens_map


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(2, 2, [2]), (0, 2, [2, 0]), ([0, 5], None, [2, 0, 5]), (None, [7], [2, 7]), (-1, 10**6, [2]), ([0, 2], [5, 0], [2, 0, 5])],
)
def test_ends_are_a_union(model, generation, config, expected):
    edit(model, "generation_config.json", eos_token_id=generation)
    edit(model, "config.json", eos_token_id=config)
    assets = {name: (model / name).read_bytes() for name in ("config.json", "generation_config.json", "tokenizer_config.json")}
    assets["tokenizer.json"] = (model / "tokenizer.json").read_bytes()
    assert special_ids(assets, 320, "m")["eos"] == expected


def test_ids_without_a_row_are_left_out_and_said(model, tmp_path, capsys):
    edit(model, "config.json", eos_token_id=[2, 1002], pad_token_id=-1)
    edit(model, "generation_config.json", bos_token_id=320)
    assert main(["quantize", str(model), "--method", "rtn-oc", "--out", str(tmp_path / "store"), "--quiet"]) == 0
    said = "bos_token_id 320 of generation_config.json, eos_token_id 1002 of config.json: left out, the embedding has 320 rows"
    assert capsys.readouterr().err == f"adadim: warning: {model}: {said}\n"


def test_what_a_training_script_left_is_not_heeded(model):
    text = "the quick brown fox jumps over the lazy dog " * 30
    expected = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=2000)
    raw = json.loads(tokenizer.to_str())
    raw["model"]["dropout"] = 0.9
    assert encode(text, json.dumps(raw).encode(), "m").tolist() == expected


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("processor", [None, "<|im_start|> $A", "$A <|im_end|>"])
def test_the_post_processor_decides(model, flags, processor):
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    if processor is not None:
        special = [("<|im_start|>", 1), ("<|im_end|>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(single=processor, special_tokens=special)
    tokenizer.save(str(model / "tokenizer.json"))
    edit(model, "tokenizer_config.json", **flags)
    expected = AutoTokenizer.from_pretrained(model)("a fox")["input_ids"]
    assert encode("a fox", (model / "tokenizer.json").read_bytes(), "m").tolist() == expected


@pytest.mark.parametrize("data", [b"{", b"{}", b"[]", b"\xff", b'{"model": 3}'])
def test_a_damaged_tokenizer_is_one_line(data):
    with pytest.raises(CalibrationError, match="the tokenizers library cannot read it"):
        encode("a", data, "m", CalibrationError)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer_config.json", {"bos_token": 3}),
        ("tokenizer_config.json", {"eos_token": {"text": "x"}}),
        ("tokenizer_config.json", {"chat_template": 5}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}),
        ("generation_config.json", {"eos_token_id": "2"}),
        ("generation_config.json", {"eos_token_id": [2, None]}),
    ],
)
def test_other_types_are_refused(model, name, changes):
    edit(model, name, **changes)
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(model).assets()

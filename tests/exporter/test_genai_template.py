"""Templates as onnxruntime-genai reads them, in real onnxruntime-genai."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, processors

from exporter.onnx.file import write_onnx
from exporter.onnx.genai_template import beyond_genai, for_genai
from quantize.checkpoint import open_checkpoint
from runtime_checks.checks.chat_template import CONVERSATIONS, render
from runtime_checks.checks.tokenizer_check import check_tokenizer
from tests.stores import rtn_store
from tests.tiny import CHAT_TEMPLATE, make_tiny_model

genai = pytest.importorskip("onnxruntime_genai")
TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
CHAT = CONVERSATIONS["three turns"]
TEMPLATES = {
    "unchanged": CHAT_TEMPLATE,
    "lines": "{% for m in messages %}\n{% if m.role == 'user' %}\nu{{ m.content }}\n {% else %}\n\nx\n {% endif %}\n{% endfor %}",
    "signs": "a\n  {%- if true -%}\n b {{- 'x' -}} \n {%+ endif +%}\n c",
    "comments": "a\n {# x #}\n\n {# y #}\n b{% if true %}{# q #}\n\nz{% endif %}",
    "line ends": "a\r\n{% if true %}\r\n\r\nb{% endif %}\r\n\r\n",
    "kept blanks": "a\n  {%+ if true +%}\n  b\n  {%+ endif %}\n\nc\n\n",
    "raw": "a\n  {% raw %}\n x {{ y }} \n {% endraw %}\n z",
    "escapes": "{{ '\\u00e9\\t\\'\\\\' }}x",
    "names": "{{ pad_token }}{{ unk_token }}{% if tools is none %}N{% endif %}{% if not documents %}M{% endif %}",
}


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genai")
    model = make_tiny_model(folder / "m", hidden=32, heads=1, kv_heads=1, ffn=32, layers=1)
    return write_onnx(rtn_store(model, folder / "s", target="onnxruntime"), folder / "onnx")


def rendered(onnx, folder, template):
    for name in ("genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((onnx / name).read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}), encoding="utf-8")
    return genai.Tokenizer(str(folder)).apply_chat_template(json.dumps(CHAT), add_generation_prompt=True)


@pytest.mark.parametrize("case", TEMPLATES)
def test_genai_renders_what_transformers_does(onnx, tmp_path, case):
    template = TEMPLATES[case]
    written, expected = for_genai(template, TOKENS), render(template, CHAT, TOKENS)
    assert (written == template) == (case == "unchanged")
    assert expected.text is not None and rendered(onnx, tmp_path, written) == expected.text
    assert render(written, CHAT, TOKENS) == expected  # and transformers still does
    assert for_genai(written, TOKENS) == written or case == "names"


@pytest.mark.parametrize(
    ("template", "construct"),
    [
        ("{{ 'ab'.replace('a', 'b') }}", ".replace()"),
        ("{{ 'ab'.upper() }}", ".upper()"),
        ("{{ 'ab'|replace('a', 'b') }}", "|replace"),
        ("{{ messages|first }}", "|first"),
        ("{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}x{% endcall %}", "{% call %}"),
    ],
)
def test_what_it_cannot_is_named(onnx, tmp_path, template, construct):
    assert beyond_genai(template) == [construct]
    with pytest.raises(RuntimeError):
        rendered(onnx, tmp_path, for_genai(template, TOKENS))


@pytest.mark.parametrize("template", ["{{ 'ab'.strip()|trim }}", "{{ messages[0].items()|list }}", "{% if"])
def test_what_it_can_is_not(template):
    assert not beyond_genai(template)


@pytest.mark.parametrize("processor", [None, "<|im_start|> $A", "$A <|im_end|>", "<|im_start|> $A <|im_end|>"])
@pytest.mark.parametrize("flag", [True, False])
def test_tokens_around_a_text(tmp_path, processor, flag):
    """In genai and, where the flags count for nothing, in the source."""
    model = make_tiny_model(tmp_path / "m", hidden=32, heads=1, kv_heads=1, ffn=32, layers=1)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    if processor is not None:
        special = [("<|im_start|>", 1), ("<|im_end|>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(single=processor, special_tokens=special)
    tokenizer.save(str(model / "tokenizer.json"))
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"add_bos_token": flag, "add_eos_token": flag}
    (model / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    folder = write_onnx(rtn_store(model, tmp_path / "s", target="onnxruntime"), tmp_path / "onnx")
    assert not [check for check in check_tokenizer(folder, open_checkpoint(model)) if not check.ok]

"""Tokenizers through real llama.cpp: the ids of tokenizer.json, whatever the pre-tokenizer; and back from the GGUF."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from exporter.gguf.file import write_gguf
from exporter.gguf.special import KNOWN_ENDS
from exporter.writers import writer_of
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.gguf_tokenizer import cuts, tokenizer_assets
from quantize.checkpoint.pre_tokenizers import PRE_TOKENIZERS, identify
from quantize.errors import ExportError
from quantize.gguf.container import parse_header
from quantize.llama_cpp.model import LlamaVocab
from runtime_checks.checks.tokenizer_check import check_tokenizer
from tests.stores import rtn_store
from tests.tiny import make_tiny_model
from tests.vocabularies import NASTY, model_with_tokenizer, sentence_piece_vocabulary, uncut_tokenizer


@pytest.fixture(scope="module")
def uncut():
    return uncut_tokenizer()


def metadata_of(path):
    values = {key: value.decode() for key, value in parse_header(path.read_bytes()).metadata.items()}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()}


def export(tmp_path, tokenizer, tokens, pre=None):
    source = model_with_tokenizer(tmp_path / "m", tokenizer, tokens)
    return write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf", tokenizer_pre=pre)


def ids_agree(file, tokenizer, texts):
    back = Tokenizer.from_buffer(open_checkpoint(file).assets()["tokenizer.json"])
    with LlamaVocab(file) as vocab:
        for text in texts:
            expected = tokenizer.encode(text).ids
            assert vocab.tokenize(text, add_special=True, parse_special=True) == expected, text
            assert back.encode(text).ids == expected, text


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_row_cuts_as_llama_cpp_does(tmp_path, uncut, name):
    row = PRE_TOKENIZERS[name]
    model = uncut["model"] | {"ignore_merges": row.ignore_merges}
    tokenizer = uncut | {"pre_tokenizer": row.to_json(), "model": model}
    assert identify(tokenizer) == name
    file = export(tmp_path, tokenizer, len(model["vocab"]))
    assert metadata_of(file)["tokenizer.ggml.pre"] == name
    ids_agree(file, Tokenizer.from_str(json.dumps(tokenizer)), NASTY)


def test_the_cuts_matter(uncut):
    """The tokenizer of these tests joins whole strings, so a row that cut elsewhere would give other ids."""
    tokenizer = Tokenizer.from_str(json.dumps(uncut))
    assert all(len(tokenizer.encode(text).ids) <= 1 for text in NASTY if "<|" not in text)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece(tmp_path, prefix):
    tokens, scores, types = sentence_piece_vocabulary()
    keys = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, "add_space_prefix": prefix}
    keys |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    assets = tokenizer_assets({f"tokenizer.ggml.{key}": value for key, value in keys.items()}, "source")
    model_with_tokenizer(tmp_path / "m", json.loads(assets["tokenizer.json"]), len(tokens))
    (tmp_path / "m" / "tokenizer_config.json").write_bytes(assets["tokenizer_config.json"])
    file = write_gguf(rtn_store(tmp_path / "m", tmp_path / "s"), tmp_path / "m.gguf")
    metadata = metadata_of(file)
    assert metadata["tokenizer.ggml.scores"][: len(tokens)][-60:-40] == scores[-60:-40]
    assert metadata["tokenizer.ggml.token_type"][: len(types)] == types
    texts = [*NASTY, "the quick brown fox", "quiet models answer, that  other!", "</s> the dog", "one</s>two"]
    tokenizer = Tokenizer.from_buffer(assets["tokenizer.json"])
    assert len(tokenizer.encode("the quick brown fox").ids) == 5
    ids_agree(file, tokenizer, texts)


def test_types_padding_and_flags(tmp_path):
    source = make_tiny_model(tmp_path / "m", vocab=320)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    make_tiny_model(source, vocab=352)
    tokenizer["added_tokens"].append({"id": 322, "content": "<tool>", **plain})
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    metadata = metadata_of(write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf"))
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] and types[:4] == [3, 3, 3, 1]
    assert tokens[320:324] == ["[PAD320]", "[PAD321]", "<tool>", "[PAD323]"] and types[320:324] == [5, 5, 4, 5]
    assert len(tokens) == len(types) == metadata["llama.vocab_size"] == 352
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    ids = {key: metadata[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "unknown", "padding")}
    assert ids == {"bos": 1, "eos": 2, "unknown": 0, "padding": 2}


def test_bos_is_added_where_the_template_says_so(tmp_path, uncut):
    tokenizer = Tokenizer.from_str(json.dumps(uncut | {"pre_tokenizer": PRE_TOKENIZERS["gpt-2"].to_json()}))
    raw = json.loads(tokenizer.to_str())
    special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    first, second = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pair = [first, second, {"Sequence": {"id": "B", "type_id": 1}}]
    raw["post_processor"] = {"type": "TemplateProcessing", "single": [first, second], "pair": pair, "special_tokens": special}
    source = model_with_tokenizer(tmp_path / "m", raw, len(raw["model"]["vocab"]))
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "add_bos_token"}))
    file = write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf")
    ids_agree(file, Tokenizer.from_str(json.dumps(raw)), ["hello"])
    with LlamaVocab(file) as vocab:
        assert vocab.tokenize("hello", add_special=True)[0] == 1


def test_chat_template_is_byte_equal(tmp_path):
    source = make_tiny_model(tmp_path / "m")
    template = json.loads((source / "tokenizer_config.json").read_text())["chat_template"]
    with LlamaVocab(write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf")) as vocab:
        assert vocab.chat_template() == template.encode()


def test_named_chat_templates(tmp_path):
    source = make_tiny_model(tmp_path / "m")
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    metadata = metadata_of(write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf"))
    assert metadata["tokenizer.chat_template"] == "D" and metadata["tokenizer.chat_template.tool_use"] == "T"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]


def change(**parts):
    return lambda tokenizer: tokenizer | parts


def change_model(**parts):
    return lambda tokenizer: tokenizer | {"model": tokenizer["model"] | parts}


def duplicate(tokenizer):
    added = tokenizer["added_tokens"]
    return tokenizer | {"added_tokens": [*added, {**added[0], "id": len(tokenizer["model"]["vocab"]), "content": "a"}]}


def too_many(tokenizer):
    return tokenizer | {"added_tokens": [{**tokenizer["added_tokens"][0], "id": 4000, "content": "x"}]}


def word_piece(tokenizer):
    options = {"unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return tokenizer | {"model": {"type": "WordPiece", "vocab": tokenizer["model"]["vocab"], **options}}


def byte_fallback(tokenizer):
    steps = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    return tokenizer | {"normalizer": steps, "pre_tokenizer": None, "model": tokenizer["model"] | {"byte_fallback": True}}


REFUSED = {
    "unknown cut": (change(pre_tokenizer={"type": "Whitespace"}), "name it with tokenizer_pre"),
    "no cut": (change(pre_tokenizer=None), "name it with tokenizer_pre"),
    "lower-casing": (change(normalizer={"type": "Lowercase"}), "name it with tokenizer_pre"),
    "other merges": (change_model(ignore_merges=True), "name it with tokenizer_pre"),
    "word piece": (word_piece, "a WordPiece tokenizer is not supported"),
    "duplicate": (duplicate, "two tokens read 'a'"),
    "too many": (too_many, "token 4000 has no row in the embedding"),
    "no sentence piece": (byte_fallback, "are not SentencePiece's"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_read_otherwise_is_refused(tmp_path, uncut, case):
    spoil, message = REFUSED[case]
    tokenizer = uncut | {"pre_tokenizer": PRE_TOKENIZERS["gpt-2"].to_json()}
    with pytest.raises(ExportError) as error:
        export(tmp_path, spoil(tokenizer), len(tokenizer["model"]["vocab"]) + 1)
    assert message in str(error.value) and "tokenizer.json" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ExportError, match=re.escape(message)):
        writer_of("llama.cpp").check(open_checkpoint(tmp_path / "m"), None)


def test_the_name_can_be_given(tmp_path, uncut):
    file = export(tmp_path, uncut | {"pre_tokenizer": {"type": "Whitespace"}}, len(uncut["model"]["vocab"]), pre="olmo")
    assert metadata_of(file)["tokenizer.ggml.pre"] == "olmo"


def put_around(source, template):
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    special = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    tokenizer.save(str(source / "tokenizer.json"))


@pytest.mark.parametrize("template", ["$A", "<|im_start|> $A", "$A <|im_end|>", "<|im_start|> $A <|im_end|>"])
@pytest.mark.parametrize("flag", [True, False])
def test_the_post_processor_decides_over_flags(tmp_path, template, flag):
    source = make_tiny_model(tmp_path / "m")
    put_around(source, template)
    config = json.loads((source / "tokenizer_config.json").read_text()) | {"add_bos_token": flag, "add_eos_token": flag}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    ids_agree(
        write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf"),
        Tokenizer.from_file(str(source / "tokenizer.json")),
        ["a fox"],
    )


def test_other_tokens_around_a_text_are_refused(tmp_path):
    source = make_tiny_model(tmp_path / "m")
    put_around(source, "<|im_end|> $A")
    with pytest.raises(ExportError, match=r"puts the tokens \[2\] before every text"):
        writer_of("llama.cpp").check(open_checkpoint(source), None)
    with pytest.raises(ExportError, match="onnxruntime-genai can put only bos_token"):
        writer_of("onnxruntime").check(open_checkpoint(source), None)


@pytest.mark.parametrize("ends", [[2], [2, 0], [60, 61], [60, 61, 62], [61, 0, 60, 2]])
def test_llama_cpp_stops_at_every_end(tmp_path, ends):
    source = make_tiny_model(tmp_path / "m")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    config = json.loads((source / "tokenizer_config.json").read_text()) | {"eos_token": None}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    config = json.loads((source / "config.json").read_text()) | {"eos_token_id": None}
    (source / "config.json").write_text(json.dumps(config))
    with LlamaVocab(write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf")) as vocab:
        assert all(vocab.is_end(token) for token in ends)


def test_more_ends_than_a_gguf_holds(tmp_path):
    source = make_tiny_model(tmp_path / "m")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [60, 61, 62, 63]}))
    with pytest.raises(ExportError, match="generation ends at 5 tokens"):
        writer_of("llama.cpp").check(open_checkpoint(source), None)


@pytest.mark.parametrize("name", sorted(KNOWN_ENDS - {"<|im_end|>"}))  # which the tiny model has already
def test_names_that_llama_cpp_knows(tmp_path, name):
    source = make_tiny_model(tmp_path / "m")
    text = (source / "tokenizer.json").read_text().replace("<|endoftext|>", name)
    (source / "tokenizer.json").write_text(text)
    with LlamaVocab(write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf")) as vocab:
        assert vocab.is_end(0)


@pytest.mark.parametrize("templated", [True, False])
@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_the_space_before_a_text(tmp_path, scheme, templated):
    """Prompts first, where llama.cpp cannot have both; what differs is noted, and nothing misses."""
    tokens, scores, types = sentence_piece_vocabulary()
    keys = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, "bos_token_id": 1, "eos_token_id": 2}
    assets = tokenizer_assets({f"tokenizer.ggml.{key}": value for key, value in keys.items()}, "source")
    raw = json.loads(assets["tokenizer.json"])
    raw["normalizer"] = None
    raw["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    source = model_with_tokenizer(tmp_path / "m", raw, len(tokens))
    config = json.loads(assets["tokenizer_config.json"])
    template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    config |= {"chat_template": template} if templated else {}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    file = write_gguf(rtn_store(source, tmp_path / "s"), tmp_path / "m.gguf")
    expected = scheme == "always" or (scheme == "first" and not templated)
    assert metadata_of(file)["tokenizer.ggml.add_space_prefix"] is expected
    checks = check_tokenizer(file, open_checkpoint(source))
    assert not [check for check in checks if not check.ok]
    assert not [check for check in checks if check.note and "<s>" in check.tensor and templated and "fox" in check.tensor]
    assert any(check.note for check in checks) == (scheme != "never")


def test_a_very_long_token():
    """Its cuts are those that tokens' lengths allow."""
    vocabulary = {"a" * 400_000, "a", "a" * 399_999, "b"}
    assert list(cuts(vocabulary)("a" * 400_000)) == [1, 399_999]

"""The tokenizer of a Hugging Face model as GGUF metadata."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import SpecialVocab, TokenType

from quantize.checkpoint.gguf_container import Value, ValueType
from quantize.checkpoint.gguf_tokenizer import KEY, SPACE
from quantize.checkpoint.pre_tokenizers import identify
from quantize.errors import ExportError

# gguf-py's word for a special token -> the key's; "seperator" is how that key is spelled
ID_KEYS = {word: word for word in ("bos", "eos", "eot", "eom", "mask")} | {"unk": "unknown", "sep": "seperator", "pad": "padding"}
Metadata = dict[str, Value]
logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of every template for pairs, which no decoder uses


class _SpecialVocab(SpecialVocab):
    """gguf-py's, to which an id below 0 means none, as it does to those who write -1, and no damage."""

    def _set_special_token(self, typ: str, tid: Any) -> None:  # noqa: ANN401 - JSON
        super()._set_special_token(typ, None if isinstance(tid, int) and tid < 0 else tid)


def tokenizer_metadata(assets: Path, rows: int, pre: str | None) -> Metadata:
    """``assets``: folder with tokenizer.json and its like; ``rows`` of the embedding, up to which tokens are padded.

    ``pre`` overrides the pre-tokenizer's name; "" stands for one that is given later. Raises ExportError for a tokenizer that
    llama.cpp would read otherwise.
    """
    where = f"{assets / 'tokenizer.json'}"
    try:
        tokenizer = json.loads((assets / "tokenizer.json").read_bytes())
        model = tokenizer["model"]
        if model["type"] != "BPE":
            raise ExportError(f"{where}: a {model['type']} tokenizer is not supported; supported: BPE")
        out = _sentence_piece(tokenizer, pre, where) if model.get("byte_fallback") else _byte_level(tokenizer, pre, where)
        tokens, types = _tokens(tokenizer, rows, where)
        special = _SpecialVocab(assets, load_merges=not model.get("byte_fallback"), n_vocab=rows)
    except FileNotFoundError as error:
        raise ExportError(f"{where}: missing; llama.cpp needs the tokenizer inside the file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{where}: damaged ({error!r}); get an intact copy of the model and quantize again") from error
    out[f"{KEY}tokens"] = Value.encode_array(ValueType.STRING, tokens)
    if model.get("byte_fallback"):
        out[f"{KEY}scores"] = Value.encode_array(ValueType.F32, _scores(model, tokens, where))
    out[f"{KEY}token_type"] = Value.encode_array(ValueType.I32, types)
    return out | _special(special) | _chat_templates(special.chat_template)


def _byte_level(tokenizer: Mapping[str, Any], pre: str | None, where: str) -> Metadata:
    name = identify(tokenizer) if pre is None else pre
    if name is None:
        raise ExportError(f"{where}: its pre-tokenizer is none that llama.cpp is known to have; name it with --tokenizer-pre")
    return {f"{KEY}model": _text("gpt2"), f"{KEY}pre": _text(name)}


def _sentence_piece(tokenizer: Mapping[str, Any], pre: str | None, where: str) -> Metadata:
    """SentencePiece's BPE: spaces are U+2581, with one before the text where the normalizer (or Metaspace) puts it."""
    if pre:
        raise ExportError(f"{where}: a SentencePiece tokenizer has no pre-tokenizer; drop --tokenizer-pre {pre}")
    steps = _flat(tokenizer.get("normalizer"), "normalizers") + _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds not in (["Prepend", "Replace"], ["Replace"], ["Metaspace"]) or steps[-1].get("split", False):
        raise ExportError(f"{where}: normalizer and pre-tokenizer {kinds} are not SentencePiece's; this model cannot be a GGUF")
    prefix = kinds[0] == "Prepend" or steps[0].get("prepend_scheme", "never") != "never"
    prefix_key = {f"{KEY}add_space_prefix": Value.encode(ValueType.BOOL, prefix)}
    return {f"{KEY}model": _text("llama"), f"{KEY}pre": _text("default")} | prefix_key


def _flat(section: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if section is None:
        return []
    return [step for part in section[key] for step in _flat(part, key)] if section["type"] == "Sequence" else [section]


def _tokens(tokenizer: Mapping[str, Any], rows: int, where: str) -> tuple[list[str], list[int]]:
    """Texts and types of ``rows`` tokens: ids without a token are padding, and added tokens are no plain text."""
    spm = bool(tokenizer["model"].get("byte_fallback"))
    entries = {index: (token, _plain_type(token, spm)) for token, index in tokenizer["model"]["vocab"].items()}
    for token in tokenizer["added_tokens"]:
        kind, text = (TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED), token["content"]
        if spm and text == tokenizer["model"].get("unk_token"):
            kind = TokenType.UNKNOWN
        entries[token["id"]] = (text.replace(SPACE, " ") if spm and kind == TokenType.USER_DEFINED else text, kind)
    if max(entries) >= rows:
        raise ExportError(
            f"{where}: token {max(entries)} has no row in the embedding of {rows}; the tokenizer is another model's"
        )
    padded = [entries.get(index, (f"[PAD{index}]", TokenType.UNUSED)) for index in range(rows)]
    texts = [text for text, _ in padded]
    if len(set(texts)) != rows:
        twice = next(text for index, text in enumerate(texts) if text in texts[:index])
        raise ExportError(f"{where}: two tokens read {twice!r}, which llama.cpp cannot hold")
    return texts, [int(kind) for _, kind in padded]


def _plain_type(token: str, spm: bool) -> TokenType:
    is_byte = spm and len(token) == len("<0x00>") and token.startswith("<0x") and token.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _scores(model: Mapping[str, Any], tokens: list[str], where: str) -> list[float]:
    """Minus the rank of a token among those that merges make: SentencePiece ranks tokens, not pairs.

    So every pair that makes a token has to be a merge, and a token's merges have to stand together.
    """
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    made = ["".join(merge) for merge in merges]
    ranks = {token: rank for rank, token in enumerate(dict.fromkeys(made))}
    vocabulary, pairs = model["vocab"], set(merges)
    together = sum(token != before for token, before in zip(made, ["", *made], strict=False)) == len(ranks)
    for token in ranks:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if not together or any(left in vocabulary and right in vocabulary and (left, right) not in pairs for left, right in cuts):
            raise ExportError(f"{where}: the merges that make {token!r} are not SentencePiece's; this model cannot be a GGUF")
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _special(special: SpecialVocab) -> Metadata:
    """Ids of special tokens, and whether texts begin and end with them; never left to llama.cpp's defaults."""
    out: Metadata = {}
    if special.merges:
        out[f"{KEY}merges"] = Value.encode_array(ValueType.STRING, special.merges)
    for word, index in sorted(special.special_token_ids.items()):
        if word in ID_KEYS:
            out[f"{KEY}{ID_KEYS[word]}_token_id"] = Value.encode(ValueType.U32, index)
    for word in ("bos", "eos"):
        adds = special.add_special_token.get(word, False) and word in special.special_token_ids
        out[f"{KEY}add_{word}_token"] = Value.encode(ValueType.BOOL, adds)
    return out


def _chat_templates(template: Any) -> Metadata:  # noqa: ANN401 - a text, or a list of named ones
    if template is None:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": _text(template)}
    named = {item["name"]: item["template"] for item in template}
    out = {} if "default" not in named else {"tokenizer.chat_template": _text(named.pop("default"))}
    out |= {f"tokenizer.chat_template.{name}": _text(text) for name, text in named.items()}
    return out | ({"tokenizer.chat_templates": Value.encode_array(ValueType.STRING, list(named))} if named else {})


def _text(value: str) -> Value:
    return Value.encode(ValueType.STRING, value)

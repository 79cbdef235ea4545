"""The tokenizer of a Hugging Face model as GGUF metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from gguf import TokenType

from exporter.gguf.special import special_metadata
from quantize.checkpoint.gguf_tokenizer import KEY, SPACE, cuts
from quantize.checkpoint.pre_tokenizers import identify
from quantize.checkpoint.tokenizer_files import AddedToken, chat_templates
from quantize.errors import ExportError, asked, shown
from quantize.foreign import tokenizer_mend
from quantize.gguf.container import Value, ValueType
from quantize.outside import MIB, Door, TokenId

DOOR = Door(ExportError, "get an intact copy of the model and quantize again", most=256 * MIB)
Metadata = dict[str, Value]


class Model(msgspec.Struct):
    """The model section of tokenizer.json, of type BPE."""

    vocab: dict[str, TokenId]
    merges: list[str | tuple[str, str]] = []
    byte_fallback: bool = False
    unk_token: str | None = None


class AddedTokens(msgspec.Struct):
    """The section of that name."""

    added_tokens: list[AddedToken]


def tokenizer_metadata(assets: Mapping[str, bytes], rows: int, pre: str | None, folder: str) -> Metadata:
    """``assets``: tokenizer.json and its like, config.json among them; ``rows`` of the embedding, up to which tokens are padded.

    ``pre`` overrides the pre-tokenizer's name; "" stands for one that is given later. ``folder`` is for messages. Raises
    ExportError for a tokenizer that llama.cpp would read otherwise, CheckpointError for damaged files.
    """
    where = f"{folder}/tokenizer.json"
    if "tokenizer.json" not in assets:
        raise ExportError(f"{where}: missing; llama.cpp needs the tokenizer inside the file; {tokenizer_mend(Path(folder))}")
    tokenizer = DOOR.json(assets["tokenizer.json"], where, dict[str, Any])
    try:
        kind = tokenizer["model"].get("type", "BPE")
        if kind != "BPE":
            raise ExportError(f"{where}: a {shown(kind)} tokenizer is not supported; supported: BPE")
        model = DOOR.convert(tokenizer["model"], f"{where}: model", Model)
        added = DOOR.convert(tokenizer, where, AddedTokens).added_tokens
        templated = bool(chat_templates(assets, folder))
        out = _sentence_piece(tokenizer, pre, templated, where) if model.byte_fallback else _byte_level(tokenizer, pre, where)
        tokens, types = _tokens(model, added, rows, where)
        out[f"{KEY}tokens"] = Value.encode_array(ValueType.STRING, tokens)
        if model.byte_fallback:
            out[f"{KEY}scores"] = Value.encode_array(ValueType.F32, _scores(model, tokens, where))
        out[f"{KEY}token_type"] = Value.encode_array(ValueType.I32, types)
        if model.merges and not model.byte_fallback:
            out[f"{KEY}merges"] = Value.encode_array(ValueType.STRING, [_merge(merge) for merge in model.merges])
        return out | special_metadata(assets, tokenizer, rows, folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{where}: damaged ({shown(repr(error))}); get an intact copy of the model and quantize again"
        ) from error


def _merge(merge: str | tuple[str, str]) -> str:
    """ "a b"; a space inside a token is U+0120, its byte's letter."""
    return merge if isinstance(merge, str) else " ".join(part.replace(" ", "\u0120") for part in merge)


def _byte_level(tokenizer: Mapping[str, Any], pre: str | None, where: str) -> Metadata:
    name = identify(tokenizer) if pre is None else pre
    if name is None:
        raise ExportError(
            f"{where}: its pre-tokenizer is none that llama.cpp is known to have; name it with {asked('tokenizer_pre')}"
        )
    return {f"{KEY}model": _text("gpt2"), f"{KEY}pre": _text(name)}


def _sentence_piece(tokenizer: Mapping[str, Any], pre: str | None, templated: bool, where: str) -> Metadata:
    """SentencePiece's BPE: spaces are U+2581, with one before the text where the normalizer (or Metaspace) puts it.

    llama.cpp puts one after every special token as well, or none at all. Where the source puts it only before the whole text
    ("first"), a prompt, which begins with a special token, has none (``templated``); without a template texts are plain.
    """
    if pre:
        raise ExportError(f"{where}: a SentencePiece tokenizer has no pre-tokenizer; drop {asked('tokenizer_pre', pre)}")
    steps = _flat(tokenizer.get("normalizer"), "normalizers") + _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds not in (["Prepend", "Replace"], ["Replace"], ["Metaspace"]) or steps[-1].get("split", False):
        raise ExportError(f"{where}: normalizer and pre-tokenizer {kinds} are not SentencePiece's; this model cannot be a GGUF")
    scheme = steps[0].get("prepend_scheme", "always" if kinds[0] == "Metaspace" else "never")
    prefix = kinds[0] == "Prepend" or scheme == "always" or (scheme == "first" and not templated)
    prefix_key = {f"{KEY}add_space_prefix": Value.encode(ValueType.BOOL, prefix)}
    return {f"{KEY}model": _text("llama"), f"{KEY}pre": _text("default")} | prefix_key


def _flat(section: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if section is None:
        return []
    return [step for part in section[key] for step in _flat(part, key)] if section["type"] == "Sequence" else [section]


def _tokens(model: Model, added: list[AddedToken], rows: int, where: str) -> tuple[list[str], list[int]]:
    """Texts and types of ``rows`` tokens: ids without a token are padding, and added tokens are no plain text."""
    spm = model.byte_fallback
    entries = {index: (token, _plain_type(token, spm)) for token, index in model.vocab.items()}
    for token in added:
        kind, text = (TokenType.CONTROL if token.special else TokenType.USER_DEFINED), token.content
        if spm and text == model.unk_token:
            kind = TokenType.UNKNOWN
        entries[token.id] = (text.replace(SPACE, " ") if spm and kind == TokenType.USER_DEFINED else text, kind)
    if max(entries, default=0) >= rows:
        raise ExportError(
            f"{where}: token {max(entries)} has no row in the embedding of {rows}; the tokenizer is another model's"
        )
    padded = [entries.get(index, (f"[PAD{index}]", TokenType.UNUSED)) for index in range(rows)]
    texts = [text for text, _ in padded]
    if len(set(texts)) != rows:
        twice = next(text for text, count in Counter(texts).items() if count > 1)
        raise ExportError(f"{where}: two tokens read '{shown(twice)}', which llama.cpp cannot hold")
    return texts, [int(kind) for _, kind in padded]


def _plain_type(token: str, spm: bool) -> TokenType:
    is_byte = spm and len(token) == len("<0x00>") and token.startswith("<0x") and token.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _scores(model: Model, tokens: list[str], where: str) -> list[float]:
    """Minus the rank of a token among those that merges make: SentencePiece ranks tokens, not pairs.

    So every pair that makes a token has to be a merge, and a token's merges have to stand together.
    """
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in model.merges]
    made = ["".join(merge) for merge in merges]
    ranks = {token: rank for rank, token in enumerate(dict.fromkeys(made))}
    pairs, found = set(merges), cuts(model.vocab)
    together = sum(token != before for token, before in zip(made, ["", *made], strict=False)) == len(ranks)
    for token in ranks:
        if not together or any((token[:cut], token[cut:]) not in pairs for cut in found(token)):
            raise ExportError(
                f"{where}: the merges that make '{shown(token)}' are not SentencePiece's; this model cannot be a GGUF"
            )
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _text(value: str) -> Value:
    return Value.encode(ValueType.STRING, value)

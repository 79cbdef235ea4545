"""What the tokenizer's small files say, read as transformers' ``AutoTokenizer`` reads them: special tokens, templates, ends.

tokenizer.json alone says how text is cut, and which tokens are put around it: ``add_bos_token`` and its like in
tokenizer_config.json are not heeded beside it, nor are a training script's truncation, padding and dropout inside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from quantize.errors import CheckpointError
from quantize.outside import LARGEST, MIB, Door

DOOR = Door(CheckpointError, "download it again", most=256 * MIB)
CONFIG, MAP, GENERATION, TEMPLATE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
MORE_TEMPLATES = "additional_chat_templates"  # a folder of NAME.jinja
TEMPLATES = f"{MORE_TEMPLATES}.json"  # the asset that stands for it: an object of name and text
DEFAULT = "default"
WORDS = ("bos", "eos", "pad", "unk")
Ids = int | list[int] | None  # some files say -1 where there is none


class Token(msgspec.Struct):
    """A special token with its details, of which only the text matters here."""

    content: str


class NamedTemplate(msgspec.Struct):
    """One of several templates in tokenizer_config.json."""

    name: str
    template: str


class TokenizerConfig(msgspec.Struct):
    """tokenizer_config.json, but for its special tokens."""

    chat_template: str | list[NamedTemplate] | dict[str, str] | None = None
    added_tokens_decoder: dict[str, Any] | None = None


class GenerationIds(msgspec.Struct):
    """The ids in generation_config.json, or in config.json."""

    bos_token_id: Ids = None
    eos_token_id: Ids = None
    pad_token_id: Ids = None
    unk_token_id: Ids = None


class AddedToken(msgspec.Struct):
    """A token of tokenizer.json that is found in the text before anything is cut."""

    id: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
    content: str
    special: bool = False


class Tokenizer(msgspec.Struct):
    """tokenizer.json as far as ids go."""

    added_tokens: list[AddedToken] = []
    model: dict[str, Any] = {}


def check_files(assets: Mapping[str, bytes], where: object) -> None:
    """Raises CheckpointError for what is not as ``AutoTokenizer`` needs it. ``where``: the folder, for messages."""
    special_tokens(assets, where)
    chat_templates(assets, where)
    if GENERATION in assets:
        DOOR.json(assets[GENERATION], f"{where}/{GENERATION}", GenerationIds)


def special_tokens(assets: Mapping[str, bytes], where: object) -> dict[str, str]:
    """bos_token, eos_token and their like, which templates may name. special_tokens_map.json wins where it is heeded at all."""
    config, raw = _config(assets, where)
    found = _tokens(raw, f"{where}/{CONFIG}")
    if config.added_tokens_decoder is None and MAP in assets:
        found |= _tokens(DOOR.json(assets[MAP], f"{where}/{MAP}", dict[str, Any]), f"{where}/{MAP}")
    return {name: text for name, text in found.items() if text is not None}


def chat_templates(assets: Mapping[str, bytes], where: object) -> dict[str, str]:
    """Name -> template, "default" first if there is one. Files of their own replace what tokenizer_config.json has."""
    found: dict[str, str] = {}
    if TEMPLATE in assets:
        found[DEFAULT] = DOOR.text(assets[TEMPLATE], f"{where}/{TEMPLATE}")
    if TEMPLATES in assets:
        found |= DOOR.json(assets[TEMPLATES], f"{where}/{MORE_TEMPLATES}", dict[str, str])
    if not found:
        template = _config(assets, where)[0].chat_template
        if isinstance(template, str):
            found = {DEFAULT: template}
        elif isinstance(template, list):
            found = {item.name: item.template for item in template}
        else:
            found = template or {}
    return dict(sorted(found.items(), key=lambda item: item[0] != DEFAULT))


def token_ids(assets: Mapping[str, bytes], where: object) -> dict[str, int]:
    """Text -> id of every token of tokenizer.json; empty without one."""
    if "tokenizer.json" not in assets:
        return {}
    tokenizer = DOOR.json(assets["tokenizer.json"], f"{where}/tokenizer.json", Tokenizer)
    vocabulary = tokenizer.model.get("vocab")
    known = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    return known | {token.content: token.id for token in tokenizer.added_tokens}


def special_ids(assets: Mapping[str, bytes], rows: int, where: object) -> dict[str, list[int]]:
    """ "bos", "eos", "pad" and "unk" -> every id that a file gives it: the tokenizer's own, then generation_config.json's, then
    config.json's. None twice, and none without a row in the embedding of ``rows``: such a token is never seen.
    """
    named, ids = special_tokens(assets, where), token_ids(assets, where)
    said = _said_ids(assets, where).values()
    out = {}
    for word in WORDS:
        own = ids.get(named.get(f"{word}_token", ""))
        found = [own, *(item for file in said for item in listed(getattr(file, f"{word}_token_id")))]
        out[word] = list(dict.fromkeys(item for item in found if item is not None and 0 <= item < rows))
    return out


def generation_id(assets: Mapping[str, bytes], word: str, rows: int, where: object) -> int | None:
    """The one id of "bos" or "pad" that transformers generates with: generation_config.json's comes before config.json's, and
    the tokenizer's own last."""
    said = (item for file in _said_ids(assets, where).values() for item in listed(getattr(file, f"{word}_token_id")))
    own = special_ids(assets, rows, where)[word]
    return next((item for item in (*said, *own) if 0 <= item < rows), None)


def ids_without_rows(assets: Mapping[str, bytes], rows: int, where: object) -> list[str]:
    """What ``special_ids`` leaves out, as "eos_token_id 1002 of config.json". -1 is a way to say that there is none."""
    return [
        f"{word}_token_id {item} of {name}"
        for name, file in _said_ids(assets, where).items()
        for word in WORDS
        for item in listed(getattr(file, f"{word}_token_id"))
        if not -1 <= item < rows
    ]


def _said_ids(assets: Mapping[str, bytes], where: object) -> dict[str, GenerationIds]:
    files = (GENERATION, "config.json")
    return {name: DOOR.json(assets.get(name, b"{}"), f"{where}/{name}", GenerationIds) for name in files}


def listed(ids: Ids) -> list[int]:
    """One id, several or none as a list."""
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _config(assets: Mapping[str, bytes], where: object) -> tuple[TokenizerConfig, dict[str, Any]]:
    raw = DOOR.json(assets.get(CONFIG, b"{}"), f"{where}/{CONFIG}", dict[str, Any])
    return DOOR.convert(raw, f"{where}/{CONFIG}", TokenizerConfig), raw


def _tokens(raw: Mapping[str, Any], where: str) -> dict[str, str | None]:
    """Keys as add_bos_token are flags, and lists as additional_special_tokens have no name that a template could use."""
    found = {key: value for key, value in raw.items() if key.endswith("_token") and not isinstance(value, bool)}
    known = DOOR.convert(found, where, dict[str, str | Token | None])
    return {key: token.content if isinstance(token, Token) else token for key, token in known.items()}

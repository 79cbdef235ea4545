"""Which ids a model's files give its special tokens, worked out anew for the checks.

Files of one model do not always agree. Generation ends at every end that any of them names; of the others, generation_config.json
comes before config.json. A negative id is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime_checks.checks.chat_template import special_tokens_of


def listed(value: object) -> list[int]:
    """The ids of a key that holds one, several or none."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool) and item >= 0]


def ids_of(assets: Mapping[str, bytes], word: str) -> dict[str, list[int]]:
    """By file, in the order of their weight: what ``word`` ("bos", "eos", "pad", "unk", ...) stands for. Raises ValueError."""
    generation, config = (json.loads(assets.get(name, b"{}")) for name in ("generation_config.json", "config.json"))
    named = special_tokens_of(assets).get(f"{word}_token")
    found = [] if named is None else [index for text, index in vocabulary(assets).items() if text == named]
    return {
        "generation_config.json": listed(generation.get(f"{word}_token_id")),
        "config.json": listed(config.get(f"{word}_token_id")),
        "tokenizer_config.json": found,
    }


def end_ids(assets: Mapping[str, bytes]) -> set[int]:
    """Every id that ends a generation."""
    return {index for ids in ids_of(assets, "eos").values() for index in ids}


def vocabulary(assets: Mapping[str, bytes]) -> dict[str, int]:
    """Text -> id of every token of tokenizer.json; an added token's text wins."""
    tokenizer: dict[str, Any] = json.loads(assets.get("tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": []}'))
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    return {**tokenizer["model"]["vocab"], **added}

"""A model's tokenizer files as onnxruntime-genai reads them right; where it does already, byte for byte.

onnxruntime-genai (0.18) takes tokenizer_config.json's template before chat_template.jinja, refuses a list of them, and asks
``add_bos_token`` and ``add_eos_token`` before the post-processor. transformers does each of it the other way round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from exporter.gguf.special import around
from exporter.onnx.genai_template import for_genai
from quantize.checkpoint.tokenizer_files import CONFIG, DEFAULT, DOOR, TEMPLATE, chat_templates, special_ids, special_tokens
from quantize.errors import ExportError, shown

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (TEMPLATE, "special_tokens_map.json", TOKENIZER, CONFIG)


def genai_tokenizer_files(assets: Mapping[str, bytes], rows: int, where: str) -> dict[str, bytes]:
    """Name -> bytes of the files to write; ``assets``: the source's, tokenizer.json and tokenizer_config.json among them.

    ``rows`` of the embedding. transformers reads the same tokenizer and default template from what is changed. Raises ExportError
    for tokens around a text that are not BOS and EOS.
    """
    files = {name: assets[name] for name in TOKENIZER_FILES if name in assets}
    config = dict(DOOR.json(files[CONFIG], f"{where}/{CONFIG}", dict[str, Any]))
    tokenizer = DOOR.json(files[TOKENIZER], f"{where}/{TOKENIZER}", dict[str, Any])
    flags = _flags(assets, tokenizer, rows, where)
    changed = config | {key: flag for key, flag in flags.items() if bool(config.get(key)) != flag}
    template = chat_templates(assets, where).get(DEFAULT)
    written = None if template is None else for_genai(template, special_tokens(assets, where))
    if TEMPLATE in files and written is not None:
        changed.pop("chat_template", None)
        files[TEMPLATE] = written.encode()
    elif config.get("chat_template") != written:
        changed = {key: value for key, value in changed.items() if key != "chat_template"}
        changed |= {} if written is None else {"chat_template": written}
    if changed != config:
        files[CONFIG] = _json(changed)
    if not flags["add_bos_token"] and _puts_tokens(tokenizer):
        files[TOKENIZER] = _json(tokenizer | {"post_processor": None})
    return files


def _flags(assets: Mapping[str, bytes], tokenizer: Mapping[str, Any], rows: int, where: str) -> dict[str, bool]:
    ids, out = special_ids(assets, rows, where), {}
    for word, found in zip(("bos", "eos"), around(tokenizer, f"{where}/{TOKENIZER}"), strict=True):
        if found and found != ids[word][:1]:
            raise ExportError(
                f"{where}/{TOKENIZER}: its post-processor puts the tokens {shown(found)} around every text, and "
                f"onnxruntime-genai can put only {word}_token there; this model cannot be exported to ONNX"
            )
        out[f"add_{word}_token"] = bool(found)
    return out


def _puts_tokens(tokenizer: Mapping[str, Any]) -> bool:
    """Whether genai would put BOS and EOS around a text because of the post-processor: it looks at no more than its kind."""
    section = tokenizer.get("post_processor")
    return section is not None and section["type"] != "ByteLevel"


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

"""What an ONNX folder took from its source besides tensors, compared whole: the tokenizer's files and genai_config.json, worked
out anew; and nothing else is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from exporter.onnx.genai_template import for_genai
from exporter.onnx.library import LIBRARY
from quantize.checkpoint.onnx_template import OnnxTemplate
from quantize.checkpoint.protocol import Checkpoint
from quantize.errors import CheckpointError, FileFormatError
from quantize.model_config import named
from quantize.onnx.reader import read_graph
from runtime_checks.checks.chat_template import special_tokens_of, template_of
from runtime_checks.checks.special_ids import end_ids, ids_of, listed
from runtime_checks.measure.results import Check, within
from runtime_checks.runtimes.onnx_runner import exported_context

EXACT = 0.0  # files, keys and values are equal or they are not
GENAI = "genai_config.json"
TOKENIZER_FILES = ("chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
MODEL_FILES = ("model.onnx", GENAI, LIBRARY)
DATA = re.compile(r"model\.onnx\.data(\.\d+)?")
# Keys that are not copied: a training script's settings, which transformers sets anew; the template, compared by itself; and how
# texts begin and end, which tokenizer_check compares in the runtime.
APART = {
    "tokenizer.json": ("truncation", "padding", "post_processor"),
    "tokenizer_config.json": ("chat_template", "add_bos_token", "add_eos_token"),
}
CACHE_TOKENS = 1024  # genai's search.max_length, where the context is not shorter
NONE = "nothing"


def check_onnx_assets(folder: Path, source: Checkpoint, _: object = None) -> list[Check]:
    """Raises FileFormatError for a damaged file, CheckpointError for a damaged source."""
    files = {item.name: item for item in sorted(folder.iterdir())}
    found = {name: files[name].read_bytes() for name in TOKENIZER_FILES if name in files and files[name].is_file()}
    data = filter(DATA.fullmatch, read_graph(folder).locations)
    known = {*MODEL_FILES, *TOKENIZER_FILES, *data}
    stray = [name for name in files if name not in known]
    checks = [within("files that are no part of an export", ", ".join(stray[:3]) or "all", len(stray), EXACT)]
    try:
        assets = source.assets()
        checks += _check_files(folder, found, assets)
        expected = _flat(_genai(folder, source))
        choices = _ids(assets)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source.path}: its tokenizer files are damaged ({error!r}); download them again") from error
    held = dict(_flat(_json(folder / GENAI, (folder / GENAI).read_bytes() if GENAI in files else b"")))
    return checks + _check_genai(held, dict(expected), choices)


def _check_files(folder: Path, found: Mapping[str, bytes], assets: Mapping[str, bytes]) -> list[Check]:
    """Each file of the source, key by key; the template by what is in force, wherever it stands."""
    checks = []
    for name in TOKENIZER_FILES[1:]:
        held, origin = (None if name not in files else _json(folder / name, files[name]) for files in (found, assets))
        for key in sorted({*(held or {}), *(origin or {})} - {*APART.get(name, ())}):
            same = held is not None and origin is not None and _equal(held.get(key, NONE), origin.get(key, NONE))
            checks.append(_check(f"{name} = source's", key, same))
        checks.append(_check("tokenizer's files = source's", name, (held is None) == (origin is None)))
    mine, theirs = _template(folder, found), template_of(assets)
    return [*checks, _check("chat template = source's", "chat_template", mine in _translations(theirs, assets))]


def _template(folder: Path, found: Mapping[str, bytes]) -> str | None:
    try:
        return template_of(found)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{folder}: its chat template cannot be read ({error!r}); export it again") from error


def _translations(template: str | None, assets: Mapping[str, bytes]) -> tuple[str | None, ...]:
    """The source's template, and what the exporter writes where onnxruntime-genai would render it otherwise."""
    return (template,) if template is None else (template, for_genai(template, special_tokens_of(assets)))


def _genai(folder: Path, source: Checkpoint) -> dict[str, Any]:
    """genai_config.json without ids: greedy, one beam, a cache of CACHE_TOKENS; names as the graph has them."""
    context = exported_context(folder) or source.config.context
    library = {"custom_ops_library": LIBRARY} if (folder / LIBRARY).exists() else {}
    if isinstance(source, OnnxTemplate):  # as its graph's own tool says
        told, shares = deepcopy(source.facts.genai.model), source.facts.genai.share
    else:
        told, shares = _of_family(source), True
    told["decoder"]["session_options"] |= library
    return {
        "model": {**told, "vocab_size": source.config.vocab_size, "context_length": context},
        "search": {
            "do_sample": False,
            "max_length": min(context, CACHE_TOKENS),
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": shares,
        },
    }


def _of_family(source: Checkpoint) -> dict[str, Any]:
    config = named(source.config, source.path)
    decoder = {
        "filename": "model.onnx",
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **_cache("past", "past_key_values")},
        "outputs": {"logits": "logits", **_cache("present", "present")},
    }
    return {"type": config.model_type, "decoder": decoder}


def _cache(word: str, prefix: str) -> dict[str, str]:
    return {f"{word}_{part}_names": f"{prefix}.%d.{part}" for part in ("key", "value")}


def _ids(assets: Mapping[str, bytes]) -> dict[str, list[set[int]]]:
    """The ids that each key may hold: all ends together; of the others the first file's that has one, none if no file has."""
    ends = end_ids(assets)
    choices: dict[str, list[set[int]]] = {"eos": [ends]}
    for word in ("bos", "pad"):
        files = ids_of(assets, word)
        told = [*files["generation_config.json"], *files["config.json"]][:1]
        loose = (
            [{index} for index in files["tokenizer_config.json"]] + ([{end} for end in ends] if word == "pad" else []) + [set()]
        )
        choices[word] = [set(told)] if told else loose
    return choices


def _check_genai(held: Mapping[str, Any], expected: Mapping[str, Any], choices: Mapping[str, list[set[int]]]) -> list[Check]:
    ids = {f"model.{word}_token_id": sets for word, sets in choices.items()}
    checks = [
        _check("genai_config = expected", key, _equal(held.get(key, NONE), expected.get(key, NONE)))
        for key in {**held, **expected}
        if key not in ids
    ]
    return checks + [_check("genai_config = source's", key, set(listed(held.get(key))) in sets) for key, sets in ids.items()]


def _check(name: str, what: str, same: bool) -> Check:
    return within(name, what, float(not same), EXACT)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by their dotted path; lists are leaves."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _equal(left: object, right: object) -> bool:
    """Unlike ==, true is not 1."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: cannot be read ({error}); export it again") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: is no JSON object; export it again")
    return value

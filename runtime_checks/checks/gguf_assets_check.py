"""What a GGUF took from its source besides tensors, compared whole: every key-value of a GGUF source, and of a Hugging Face
model the tokenizer, its special ids and its templates, worked out anew from tokenizer.json.

Keys of the architecture are metadata_check's, ``adadim.*`` are claims_check's; how texts begin and end is tokenizer_check's.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf

from quantize.checkpoint.pre_tokenizers import BY_NAME, identify
from quantize.checkpoint.protocol import Checkpoint
from quantize.errors import CheckpointError
from quantize.store.tensors import QuantizedStore
from runtime_checks.checks.chat_template import template_of
from runtime_checks.checks.special_ids import end_ids, ids_of
from runtime_checks.measure.results import Check, within
from runtime_checks.reference.gguf import GgufFile, read_metadata
from runtime_checks.runtimes.weights import open_gguf

EXACT = 0.0  # values are equal or they are not
KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # enum llama_token_type
SPACE = "\u2581"
IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix")


def check_gguf_assets(path: Path, source: Checkpoint, store: QuantizedStore | None = None) -> list[Check]:
    """Every key-value of the file but the architecture's and ``adadim.*``.

    ``store`` knows the model's name. Raises FileFormatError for a damaged file, CheckpointError for a damaged source.
    """
    file = open_gguf(path)
    arch = f"{file.metadata.get('general.architecture')}."
    held = {key: value for key, value in file.metadata.items() if not key.startswith(("adadim.", arch))}
    if source.path.is_file():
        origin = read_metadata(source.path)
        expected = {key: value for key, value in origin.items() if not key.startswith(("adadim.", arch))}
    else:
        try:
            expected = _expected(source, len(held.get(f"{KEY}tokens", [])), held)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{source.path}: its tokenizer files are damaged ({error!r}); download them again") from error
        if store is not None:
            expected["general.name"] = str(store.header["source"]["name"])
    expected |= {"general.file_type": _file_type(file), "general.quantization_version": gguf.GGML_QUANT_VERSION}
    return [_compare(key, held.get(key), expected.get(key)) for key in {**held, **expected}]


def _compare(key: str, held: object, expected: object) -> Check:
    return within("metadata = source's", key, float(not _same(held, expected)), EXACT)


def _same(held: object, expected: object) -> bool:
    """Equal in type and value; arrays item by item."""
    if _is_array(held) and _is_array(expected):
        left, right = (list(value) for value in (held, expected))  # type: ignore[call-overload]
        return len(left) == len(right) and all(
            isinstance(a, str) == isinstance(b, str) and a == b for a, b in zip(left, right, strict=True)
        )
    return type(held) is type(expected) and held == expected


def _is_array(value: object) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str)


def _file_type(file: GgufFile) -> int:
    """llama.cpp's number for the type of most weights of the linears."""
    weights = Counter[str]()
    for name, tensor in file.tensors.items():
        if name.startswith("blk.") and len(tensor.shape) in (2, 3):
            weights[tensor.kind] += math.prod(tensor.shape)
    kind = weights.most_common(1)[0][0] if weights else "F32"
    names = (f"ALL_{kind}", f"MOSTLY_{kind}", f"MOSTLY_{kind}_S", f"MOSTLY_{kind}_MOE")
    return next(int(gguf.LlamaFileType[name]) for name in names if name in gguf.LlamaFileType.__members__)


def _expected(source: Checkpoint, rows: int, held: Mapping[str, Any]) -> dict[str, Any]:
    """Of a Hugging Face model. What only the runtime can judge, and a free choice among equals, is as the file has it."""
    assets = source.assets()
    tokenizer = json.loads(assets["tokenizer.json"])
    model = tokenizer["model"]
    spm = bool(model.get("byte_fallback"))
    texts, kinds = zip(*_tokens(tokenizer, spm, max(rows, source.config.vocab_size)), strict=True)
    out = {
        "general.architecture": held.get("general.architecture"),
        "general.type": "model",
        "general.name": held.get("general.name", ""),
        f"{KEY}model": "llama" if spm else "gpt2",
        f"{KEY}pre": _pre(tokenizer, spm, held.get(f"{KEY}pre")),
        f"{KEY}tokens": texts,
        f"{KEY}token_type": kinds,
    }
    merges = {} if spm or not model["merges"] else {f"{KEY}merges": _merges(model)}
    out |= merges | ({f"{KEY}scores": _scores(model, texts)} if spm else {})
    flags = FLAGS if spm else FLAGS[:2]
    out |= {f"{KEY}{flag}": bool(held.get(f"{KEY}{flag}")) for flag in flags}
    return out | _ids(assets, rows, held) | _templates(assets)


def _tokens(tokenizer: Mapping[str, Any], spm: bool, rows: int) -> Iterator[tuple[str, int]]:
    plain = {index: text for text, index in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer.get("added_tokens", [])}
    for index in range(rows):
        if index in added:
            text, special = added[index]["content"], added[index]["special"]
            if spm and text == tokenizer["model"].get("unk_token"):
                yield text, UNKNOWN
            else:
                yield (text, CONTROL) if special else (text.replace(SPACE, " ") if spm else text, USER_DEFINED)
        elif index in plain:
            is_byte = spm and len(plain[index]) == 6 and plain[index][:3] == "<0x" and plain[index][5] == ">"
            yield plain[index], BYTE if is_byte else NORMAL
        else:
            yield f"[PAD{index}]", UNUSED


def _pairs(model: Mapping[str, Any]) -> list[list[str]]:
    return [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model["merges"]]


def _merges(model: Mapping[str, Any]) -> list[str]:
    """Spaces inside a token are written as a byte-level alphabet writes them."""
    return [
        merge if isinstance(merge, str) else " ".join(part.replace(" ", "\u0120") for part in merge) for merge in model["merges"]
    ]


def _scores(model: Mapping[str, Any], texts: Sequence[str]) -> list[float]:
    """Minus the place of the first merge that makes a token, among the tokens that merges make; all others come last."""
    order: dict[str, int] = {}
    for left, right in _pairs(model):
        order.setdefault(left + right, len(order))
    return [-float(order.get(text, len(order))) for text in texts]


def _pre(tokenizer: Mapping[str, Any], spm: bool, held: object) -> object:
    """The name in the file, if it stands for the same cuts as the source's; where llama.cpp has none, a user chose it."""
    if spm:
        return "default"
    known = identify(tokenizer)
    same = known is None or (isinstance(held, str) and held in BY_NAME and BY_NAME[held] is BY_NAME[known])
    return held if same and isinstance(held, str) else known


def _ids(assets: Mapping[str, bytes], rows: int, held: Mapping[str, Any]) -> dict[str, int]:
    """tokenizer_config.json's token, else config.json's id; further ends of generation are llama.cpp's of turn and message."""
    out, ends = dict[str, int](), end_ids(assets)
    for word, key in IDS.items():
        files = ids_of(assets, word)
        found = [*files["tokenizer_config.json"], *files["config.json"][:1], *files["generation_config.json"]]
        if inside := [index for index in found if index < rows]:
            out[f"{KEY}{key}_token_id"] = inside[0]
    for word in ("eos", "eot", "eom"):  # which end has which key is free: tokenizer_check asks llama.cpp for each
        key = f"{KEY}{word}_token_id"
        if held.get(key) in ends:
            out[key] = held[key]
    return out


def _templates(assets: Mapping[str, bytes]) -> dict[str, Any]:
    """The default one, and named ones beside it."""
    out, default = dict[str, Any](), template_of(assets)
    if default is not None:
        out["tokenizer.chat_template"] = default
    listed = json.loads(assets.get("tokenizer_config.json", b"{}")).get("chat_template")
    if "chat_template.jinja" in assets or not isinstance(listed, list):
        return out
    named = {item["name"]: item["template"] for item in listed if item["name"] != "default"}
    out |= {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    return out | ({"tokenizer.chat_templates": list(named)} if named else {})

"""What a source's tokenizer files say, as transformers reads them: the truth that an exported file's tokenizer is held against.

Computed apart from what the writers compute it with. What no runtime can do is known here as well, so that it can be told from
a fault of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from quantize.checkpoint import Checkpoint
from quantize.checkpoint.tokenizing import TextTokenizer
from quantize.errors import CheckpointError
from quantize.llama_cpp.model import LlamaVocab
from runtime_checks.checks.chat_template import Prompt, render_all, special_tokens_of, template_of
from runtime_checks.reference.gguf import read_metadata

CONTROL, USER_DEFINED = 3, 4  # enum llama_token_type
WORDS = ("bos", "eos")
SPACE = "\u2581"
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}

Encode = Callable[[str, bool], list[int]]  # text, whether BOS and EOS are added -> ids


@dataclass(frozen=True)
class Truth:
    """The source's tokenizer. ``specials``: tokens that a text may spell out; ``ends``: where generation stops; ``ids``:
    what "bos" and "eos" may be, for the files of a model do not always agree."""

    encode: Encode
    specials: tuple[str, ...]
    ends: tuple[int, ...]
    ids: Mapping[str, set[int]]
    template: str | None
    prompts: Mapping[str, Prompt]
    limited: Encode | None = None  # the same tokenizer without what the runtime lacks
    lacks: str = ""


def gguf_truth(source: Checkpoint, stack: ExitStack) -> Truth:
    """llama.cpp's own vocabulary of a GGUF."""
    vocab, metadata = stack.enter_context(LlamaVocab(source.path)), read_metadata(source.path)
    pairs = zip(metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", []), strict=False)
    specials = tuple(token for token, kind in pairs if kind in (CONTROL, USER_DEFINED))
    ids = {word: set(_listed(metadata.get(f"tokenizer.ggml.{word}_token_id"))) for word in (*WORDS, "eot", "eom")}
    ends = tuple(sorted(ids["eos"] | ids.pop("eot") | ids.pop("eom")))
    named = {"bos_token": vocab.bos, "eos_token": vocab.eos}
    template = metadata.get("tokenizer.chat_template")
    return Truth(vocab.tokenize, specials, ends, ids, template, {} if template is None else render_all(template, named))


def hf_truth(source: Checkpoint, stack: ExitStack, llama: bool) -> Truth:
    """A Hugging Face folder's files; ``llama``: the runtime is llama.cpp, else onnxruntime-genai. Raises CheckpointError."""
    assets, where = source.assets(), str(source.path / "tokenizer.json")
    if "tokenizer.json" not in assets:
        raise CheckpointError(f"{source.path}: no tokenizer.json to compare with; put it beside the weights")
    tokenizer = stack.enter_context(TextTokenizer(assets["tokenizer.json"], where))
    template, named = template_of(assets), special_tokens_of(assets)
    said = (source.config.raw, json.loads(assets.get("generation_config.json", b"{}")))
    ids = {}
    for word in WORDS:
        own = tokenizer.id_of(named.get(f"{word}_token", ""))
        found = [own, *(index for file in said for index in _listed(file.get(f"{word}_token_id")))]
        ids[word] = {index for index in found if index is not None and 0 <= index < source.config.vocab_size}
    limited, lacks = _limited(json.loads(assets["tokenizer.json"]), llama, template is not None)
    other = None if limited is None else _encoder(stack.enter_context(TextTokenizer(json.dumps(limited).encode(), where)))
    prompts = {} if template is None else render_all(template, named)
    specials = tuple(tokenizer.specials())
    return Truth(_encoder(tokenizer), specials, tuple(sorted(ids["eos"])), ids, template, prompts, other, lacks)


def _listed(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _encoder(tokenizer: TextTokenizer) -> Encode:
    def encode(text: str, add_special: bool) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special).tolist()
        return ids

    return encode


def _limited(tokenizer: dict[str, Any], llama: bool, templated: bool) -> tuple[dict[str, Any] | None, str]:
    """The tokenizer.json of what a runtime can do, and what it lacks in words; None where it lacks nothing.

    Neither runtime normalizes Unicode. SentencePiece's space: llama.cpp puts one before the text and after every special token,
    or none at all; the writer takes none for "first" where there is a template. onnxruntime-genai always puts it.
    """
    out, lacks = dict(tokenizer), list[str]()
    steps = _flat(tokenizer.get("normalizer"), "normalizers")
    kept = [step for step in steps if step["type"] in ("Prepend", "Replace")]
    if len(kept) < len(steps):
        lacks.append(f"it has no {', '.join(step['type'] for step in steps if step not in kept)} normalizer")
    cut = _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if tokenizer["model"].get("byte_fallback"):
        scheme = cut[0].get("prepend_scheme", "always") if cut and cut[0]["type"] == "Metaspace" else ""
        scheme = scheme or ("legacy" if PREPEND["type"] in [step["type"] for step in kept] else "never")
        puts = not (scheme == "never" or (scheme == "first" and templated)) if llama else True
        if scheme in ("first", "always") or (scheme == "never" and puts):
            lacks.append(f'it has no space before texts as prepend_scheme "{scheme}" puts it')
            kept, out["pre_tokenizer"] = [*([PREPEND] if puts else []), REPLACE], None
    out["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    return (out, " and ".join(lacks)) if lacks else (None, "")


def _flat(section: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if section is None:
        return []
    return [step for part in section[key] for step in _flat(part, key)] if section["type"] == "Sequence" else [section]

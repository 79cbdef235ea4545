"""Token ids and chat templates of an exported file, in the runtime that will use them, against the source's.

For a Hugging Face source the truth is its tokenizer.json in the ``tokenizers`` library; for a GGUF source it is llama.cpp's
own vocabulary of that file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from quantize.checkpoint import Checkpoint
from quantize.errors import CheckpointError, FileFormatError
from runtime_checks.chat_template import CONVERSATIONS, Messages, render, special_tokens_of, template_of
from runtime_checks.decoded import open_gguf
from runtime_checks.llama_cpp import LlamaVocab
from runtime_checks.native_path import native_path
from runtime_checks.reference_gguf import read_metadata
from runtime_checks.results import Check, within

CONTROL, USER_DEFINED = 3, 4  # enum llama_token_type
ENDS = ("bos", "eos")
EXACT = 0.0  # ids and bytes are equal or they are not
STRINGS = (
    "",
    "Hello world",
    "  two  spaces   three    four",
    "\n\n\n",
    " \n \n  \n   x \n\n y",
    "\t\ttabs\t and a trailing space ",
    "a\r\nb\rc",
    "1234567890 3.14159 1,000,000 0x7f 1e-5",
    "٣٤٥ ೧೨ x½²³",
    "naïve café e\u0301 a\u0300\u0301\u0302 Übergrößenträger",
    "東京 Москва ไทย हिन्दी مرحبا שלום ﬁ ＡＢＣ",
    "👩‍👩‍👧‍👦🇩🇪👍🏽 🧑\u200d💻 \ufffd",
    "\u00a0nbsp\u2003em\u200bzw\ufeffbom\u3000wide\u2028line",
    "\x01\x7f",
    "def f(x):\n    return x**2  # ok\n\tif (a!=b){c<<=1;}",
    "it's we'll THEY'RE I'M 'tis \"quoted\" -- it’s",
    "https://x.y/z?a=1&b=%20#q <b>bold</b> <s></s> [INST] <|im_start| <unk>",
    "_____-----=====.....!!!!!",
    "a" * 70,
    "".join(map(chr, range(32, 127))),
)
# onnxruntime-genai's own tokenizer goes astray here whatever the file says: a text ends at its first NUL, and a space stays
# with a numeral that is no decimal digit, where the source's pre-tokenizer cuts it off.
STRINGS_BEYOND_GENAI = ("\x00\x01", "½ ² Ⅻ")


Encode = Callable[[str, bool], list[int]]  # text, whether BOS and EOS are added -> ids


@dataclass(frozen=True)
class _Truth:
    """The source's tokenizer. ``specials``: tokens that a text may spell out; ``ends``: where generation stops; ``ids``:
    what "bos" and "eos" may be, for the files of a model do not always agree."""

    encode: Encode
    specials: tuple[str, ...]
    ends: tuple[int, ...]
    ids: Mapping[str, set[int]]
    template: str | None
    prompts: Mapping[str, str | None]


def check_tokenizer(path: Path, source: Checkpoint) -> list[Check]:
    """Ids, special tokens, ends and chat prompts of a GGUF (llama.cpp) or an ONNX folder (onnxruntime-genai).

    Raises FileFormatError if the runtime refuses the file's tokenizer, CheckpointError if the source's cannot be read.
    """
    with ExitStack() as stack:
        truth = _gguf_truth(source, stack) if source.path.is_file() else _hf_truth(source)
        if path.is_dir():
            return _check_genai(path, truth)
        return _check_llama(path, stack.enter_context(LlamaVocab(path)), truth)


def _gguf_truth(source: Checkpoint, stack: ExitStack) -> _Truth:
    vocab, metadata = stack.enter_context(LlamaVocab(source.path)), read_metadata(source.path)
    pairs = zip(metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", []), strict=False)
    specials = tuple(token for token, kind in pairs if kind in (CONTROL, USER_DEFINED))
    ids = {word: set(_listed(metadata.get(f"tokenizer.ggml.{word}_token_id"))) for word in ENDS}
    named = {"bos_token": vocab.bos, "eos_token": vocab.eos}
    return _Truth(vocab.tokenize, specials, tuple(ids["eos"]), ids, *_prompts(metadata.get("tokenizer.chat_template"), named))


def _hf_truth(source: Checkpoint) -> _Truth:
    assets = source.assets()
    if "tokenizer.json" not in assets:
        raise CheckpointError(f"{source.path}: no tokenizer.json to compare with; put it beside the weights")
    try:
        tokenizer = Tokenizer.from_str(assets["tokenizer.json"].decode("utf-8"))
        known = {**source.config.raw, **json.loads(assets.get("generation_config.json", b"{}"))}
        template, named = template_of(assets), special_tokens_of(assets)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source.path}: its tokenizer files are damaged ({error!r}); download them again") from error
    specials = tuple(str(token.content) for _, token in sorted(tokenizer.get_added_tokens_decoder().items()))
    ids = {word: set(_listed(known.get(f"{word}_token_id"))) for word in ENDS}
    ends = tuple(sorted(ids["eos"]))
    for word in ENDS:
        ids[word] |= set(_listed(tokenizer.token_to_id(named.get(f"{word}_token", ""))))
    return _Truth(partial(_encode_hf, tokenizer), specials, ends, ids, *_prompts(template, named))


def _listed(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _prompts(template: str | None, named: Mapping[str, str]) -> tuple[str | None, dict[str, str | None]]:
    """The template and what it makes of every conversation."""
    return template, {} if template is None else {key: render(template, chat, named) for key, chat in CONVERSATIONS.items()}


def _encode_hf(tokenizer: Tokenizer, text: str, add_special: bool) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special).ids
    return ids


def _check_llama(path: Path, vocab: LlamaVocab, truth: _Truth) -> list[Check]:
    checks = _check_ids("llama_tokenize", vocab.tokenize, truth, STRINGS + STRINGS_BEYOND_GENAI)
    checks += [within("llama.cpp stops at", str(token), float(not vocab.is_end(token)), EXACT) for token in truth.ends]
    metadata = open_gguf(path).metadata
    for word, ids in truth.ids.items():
        held = metadata.get(f"tokenizer.ggml.{word}_token_id")
        checks.append(within(f"{word} = source's", str(held), float(bool(ids) and held not in ids), EXACT))
    template = metadata.get("tokenizer.chat_template")
    checks.append(within("chat template = source's", path.name, float(template != truth.template), EXACT))
    named = {"bos_token": vocab.bos, "eos_token": vocab.eos}
    for key, prompt in truth.prompts.items():
        mine = None if template is None else render(template, CONVERSATIONS[key], named)
        checks.append(_check_prompt("the GGUF's template", key, mine, prompt))
    return checks


def _check_genai(folder: Path, truth: _Truth) -> list[Check]:
    import onnxruntime_genai as genai

    try:
        with native_path(folder) as where:
            tokenizer = genai.Tokenizer(where)
    except RuntimeError as error:
        raise FileFormatError(f"{folder}: onnxruntime-genai refuses its tokenizer ({error}); export it again") from error

    def encode(text: str, add_special: bool) -> list[int]:
        tokenizer.update_options(add_special_tokens=str(add_special).lower())
        return [int(token) for token in tokenizer.encode(text)]

    checks = _check_ids("genai's encode", encode, truth, STRINGS)
    known = set(tokenizer.eos_token_ids.tolist())
    checks += [within("genai stops at", str(token), float(token not in known), EXACT) for token in truth.ends]
    for key, prompt in truth.prompts.items():
        checks.append(_check_prompt("genai's apply_chat_template", key, _genai_prompt(tokenizer, CONVERSATIONS[key]), prompt))
    return checks


def _genai_prompt(tokenizer: Any, chat: Messages) -> str | None:  # noqa: ANN401 - genai has no types
    try:
        return str(tokenizer.apply_chat_template(json.dumps(chat), add_generation_prompt=True))
    except RuntimeError:
        return None


def _check_ids(name: str, encode: Encode, truth: _Truth, strings: tuple[str, ...]) -> list[Check]:
    """Every string, the prompts, and a text around each special token; errors are counts of ids that differ."""
    texts = [*strings, *(prompt for prompt in truth.prompts.values() if prompt is not None)]
    checks = [_compare(f"{name} = source's ids", text, encode(text, False), truth.encode(text, False)) for text in texts]
    first = texts[1]
    checks.append(_compare(f"{name} = source's ids, with BOS and EOS", first, encode(first, True), truth.encode(first, True)))
    around = [(token, f"x{token}y {token} z") for token in truth.specials]
    wrong = [token for token, text in around if encode(text, False) != truth.encode(text, False)]
    checks.append(within(f"{name} = source's special tokens", ", ".join(wrong[:3]) or "all", len(wrong), EXACT))
    return checks


def _compare(name: str, text: str, mine: list[int], theirs: list[int]) -> Check:
    wrong = sum(a != b for a, b in zip(mine, theirs, strict=False)) + abs(len(mine) - len(theirs))
    return within(name, json.dumps(text[:40], ensure_ascii=False), wrong, EXACT)


def _check_prompt(name: str, key: str, mine: str | None, theirs: str | None) -> Check:
    """Equal prompts; a conversation that the source's template refuses has to be refused too."""
    return within(f"{name} = source's prompt", key, float(mine != theirs), EXACT)

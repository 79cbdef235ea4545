"""llama.cpp's pre-tokenizers as the pre_tokenizer sections of tokenizer.json that cut text in the same places.

llama.cpp knows a pre-tokenizer by name (``tokenizer.ggml.pre``), tokenizer.json by structure. A row is here only where
the two are known to agree: the regexes of llama.cpp's ``llama-vocab.cpp`` beside those of the models' own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Step = Mapping[str, Any]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
START = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = f"{START}{UPPER}*{LOWER}+", f"{START}{UPPER}+{LOWER}*"
UPPER_GGML, LOWER_GGML = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"  # no \p{M}: combining marks stand apart there
CASED_GGML = f"{START}{UPPER_GGML}*{LOWER_GGML}+", f"{START}{UPPER_GGML}+{LOWER_GGML}*"
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _split(regex: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> Step:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _cased(words: tuple[str, str], suffix: str, digits: str) -> tuple[Step, ...]:
    return _split(f"{words[0]}{suffix}|{words[1]}{suffix}|{digits}|{REST_SLASH}"), _bytes(False)


DIGITS: Step = {"type": "Digits", "individual_digits": True}


@dataclass(frozen=True)
class PreTokenizer:
    """One row: ``steps`` in the order in which they cut; ``ignore_merges``: whole words that are tokens skip the merges."""

    steps: tuple[Step, ...]
    ignore_merges: bool = False
    adds_bos: bool = False  # llama.cpp's default where tokenizer.ggml.add_bos_token is missing
    aliases: tuple[str, ...] = ()  # other names for the same cuts
    spelled: tuple[Step, ...] = ()  # what llama.cpp does, where that differs from the models' own files

    def to_json(self) -> dict[str, Any]:
        """The pre_tokenizer section of tokenizer.json that cuts as llama.cpp does."""
        steps = self.spelled or self.steps
        return dict(steps[0]) if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(map(dict, steps))}


_LLAMA3 = _split(rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1,3}}|{REST}")
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "smollm": PreTokenizer(
        (DIGITS, _bytes(True)), aliases=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
    ),
    "gpt-2": PreTokenizer((_bytes(True),), aliases=("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat")),
    "llama-bpe": PreTokenizer((_LLAMA3, _bytes(False)), True, True, ("llama3", "llama-v3", "lfm2", "pixtral", "falcon3")),
    "dbrx": PreTokenizer((_LLAMA3, _bytes(False)), aliases=("smaug-bpe",)),
    "qwen2": PreTokenizer(
        (_split(rf"{CONTRACTIONS}|{WORD}|\p{{N}}|{REST}"), _bytes(False)),
        aliases=("deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"),
    ),
    "tekken": PreTokenizer(_cased(CASED, "", r"\p{N}"), True, True, spelled=_cased(CASED_GGML, "", r"\p{N}")),
    "gpt-4o": PreTokenizer(
        _cased(CASED, f"{CONTRACTIONS}?", r"\p{N}{1,3}"),
        aliases=("llama4",),
        spelled=_cased(CASED_GGML, f"{CONTRACTIONS}?", r"\p{N}{1,3}"),
    ),
    "seed-coder": PreTokenizer(
        (
            _split(rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"),
            _bytes(False),
        )
    ),
    "deepseek-coder": PreTokenizer(
        (*map(_split, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")), DIGITS, _bytes(False)),
    ),
    "default": PreTokenizer(
        (*map(_split, (r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]")), _bytes(False)),
    ),
}
BY_NAME = PRE_TOKENIZERS | {alias: row for row in PRE_TOKENIZERS.values() for alias in row.aliases}


def identify(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer of a parsed tokenizer.json, or None if no row has its structure."""
    if not _keeps_text(tokenizer.get("normalizer")):
        return None
    steps = _steps(tokenizer.get("pre_tokenizer"))
    merges = bool(tokenizer["model"].get("ignore_merges", False))
    for name, row in PRE_TOKENIZERS.items():
        known = [list(map(_essence, row.steps)), list(map(_essence, row.spelled or row.steps))]
        if steps in known and merges == row.ignore_merges:
            return name
    return None


def _keeps_text(normalizer: Step | None) -> bool:
    """Only NFC is let through: llama.cpp's BPE has no normalizer, and text is nearly always in NFC already."""
    if normalizer is None or normalizer["type"] == "NFC":
        return True
    return normalizer["type"] == "Sequence" and all(map(_keeps_text, normalizer["normalizers"]))


def _steps(section: Step | None) -> list[tuple[Any, ...]]:
    if section is None:
        return []
    if section["type"] == "Sequence":
        return [step for part in section["pretokenizers"] for step in _steps(part)]
    return [_essence(section)]


def _essence(step: Step) -> tuple[Any, ...]:
    """What of a step decides where text is cut; a key that old files lack has the library's default."""
    match step["type"]:
        case "ByteLevel":
            return "ByteLevel", step.get("use_regex", True), step.get("add_prefix_space", True)
        case "Split":
            regex = step["pattern"].get("Regex", "").replace("\r", r"\r").replace("\n", r"\n")  # some files hold the bare control
            return "Split", regex, step["behavior"], step["invert"]
        case "Digits":
            return "Digits", step["individual_digits"]
        case kind:
            return (kind,)

"""Tokenizers that give away where a text was cut: every test string is one token unless a pre-tokenizer cuts it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.tiny import SPECIAL, make_tiny_model

NASTY = (
    "Hello  world 12345 naïve\n\n\t  x=3;  日本語 🙂👩‍👩‍👧 <|im_start|>user\n it's <|endoftext|> DON'T I'LL we'Ve",
    "   leading",
    "trailing   ",
    "\r\n\r\n a\n\nb\t\tc",
    "1234567 ½ ² ٣٤٥ x1y22z333",
    "def f(a,b):\n    return a+b  # ok!!\n",
    "$100.00 + <=> ^~| `q` ...",
    "ÀÉÎ ελληνικά Кириллица العربية हिन्दी ภาษาไทย",
    "e\u0301 combining \u200b zero\u00a0width\u3000",
    "CamelCaseWord HTTPServer iPhone aB",
    "''''s 'S 'll'LL a'sb I'MOK x'Llama",
    "",
    " ",
    "\n",
    "/// // /\n/a",
    "tab\tafter\r\nmac\rend  \n  \n\n  x",
    "¡Hola! ¿Qué? …—“q” ǅ ǈ ʰx ªº ﬁ",
    "  \u2028x\u2029 y\x0b\x0c z\x85w",
)
SPACE = "\u2581"
TEXT = "the quick brown fox jumps over the lazy dog and the quiet model answers that the other one does not"


def uncut_tokenizer() -> dict:
    """A parsed byte-level tokenizer.json without any pre-tokenization, its merges long enough to join each string of NASTY."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(NASTY * 2, trainer)
    return json.loads(tokenizer.to_str())


def sentence_piece_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types as a SentencePiece BPE has them: unknown, control, bytes, pieces by falling score, letters."""
    text = TEXT.split()
    pieces: list[str] = []
    for word in dict.fromkeys(text):
        for start in range(len(word)):
            pieces += [word[start : start + size] for size in (2, 3, 4) if start + size <= len(word)]
        pieces += [SPACE + word[:2], SPACE + word]
    pieces = sorted(set(pieces), key=lambda piece: (len(piece), piece))
    letters = sorted(set("".join(text) + SPACE + ".,!"))
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    scores = [0.0] * len(head) + [-float(rank) for rank in range(len(pieces))] + [-float(len(pieces))] * len(letters)
    return head + pieces + letters, scores, [2, 3, 3] + [6] * 256 + [1] * (len(pieces) + len(letters))


def model_with_tokenizer(path: Path, tokenizer: dict, tokens: int) -> Path:
    """The smallest model that a tokenizer of so many tokens can belong to."""
    make_tiny_model(path, hidden=32, heads=1, kv_heads=1, ffn=32, layers=1, vocab=-(-tokens // 32) * 32)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return path

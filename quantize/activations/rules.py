"""What is to round the inputs of which linears, in one line: ``a4-token,*.down_proj=a8-token``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from quantize.activations import ACTIVATIONS
from quantize.errors import ConfigError, asked

FILE = "file"  # as the file itself says
CLIPS = "clips:"  # before a folder that `adadim finetune` wrote
WORDS = (*ACTIVATIONS, FILE, f"{CLIPS}DIR")


@dataclass(frozen=True)
class Rules:
    """``text`` as it was given. ``rest``: the word, as WORDS has them, for what no pattern matches; None: it is left as it is.
    ``patterns``: of names without ``.weight``, as a shell has them, each with a word; the first that matches wins."""

    text: str
    rest: str | None
    patterns: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Rules:
        """Raises ConfigError."""
        rest, patterns = None, list[tuple[str, str]]()
        for item in text.split(","):
            pattern, found, word = item.strip().rpartition("=")
            if word not in (*ACTIVATIONS, FILE) and not (word.startswith(CLIPS) and word != CLIPS):
                raise ConfigError(f"{asked('activations', text)}: '{word}' is none of {', '.join(WORDS)}")
            if found:
                patterns.append((pattern, word))
            elif rest is not None:
                raise ConfigError(f"{asked('activations', text)}: {rest} and {word} are both for all; give one a pattern")
            else:
                rest = word
        return cls(text, rest, tuple(patterns))

    def word(self, name: str) -> str | None:
        """For the input of a weight."""
        stem = name.removesuffix(".weight")
        return next((word for pattern, word in self.patterns if fnmatchcase(stem, pattern)), self.rest)

    def check(self, names: Iterable[str]) -> None:
        """Raises ConfigError for a pattern that matches none of these weights."""
        stems = [name.removesuffix(".weight") for name in names]
        for pattern, _ in self.patterns:
            if not any(fnmatchcase(stem, pattern) for stem in stems):
                told = (
                    f"pattern '{pattern}' matches no linear of a decoder block, as {stems[-1]}"
                    if stems
                    else "there are no linears"
                )
                raise ConfigError(f"{asked('activations', self.text)}: {told}")

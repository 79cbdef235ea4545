"""Text to ids by the tokenizers library, in a child process: a hostile tokenizer.json can make it panic, abort or never end.

A tokenizer is taken as transformers takes it: a training script's truncation, padding and dropout are switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantize.child import GIB, Child, ChildEnded, Limits
from quantize.errors import AdaDimError, CheckpointError, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SECONDS = 10.0  # for a tokenizer, whatever it is asked
SECONDS_PER_MB = 30.0  # of text: a plain tokenizer takes about one second
BYTES_PER_BYTE = 400  # of text: tokens with their texts and places; at one token a byte it is about half


class TextTokenizer:
    """One tokenizer.json in a child of its own; a context manager. Every method raises CheckpointError for one that fails."""

    def __init__(self, tokenizer_json: bytes, where: str, text_bytes: int = 0) -> None:
        """``where`` names it in messages; ``text_bytes``: of the longest text to come, for limits that grow with it."""
        self._where = where
        memory = GIB + 8 * len(tokenizer_json) + BYTES_PER_BYTE * text_bytes
        self._child = Child(Limits(SECONDS + SECONDS_PER_MB * (text_bytes + len(tokenizer_json)) / 1e6, memory))
        try:
            self._child.hold(_Held, tokenizer_json)
        except (CheckpointError, ChildEnded, MemoryError) as error:
            self.close()
            raise CheckpointError(
                f"{where}: the tokenizers library cannot read it ({shown(error)}); download it again"
            ) from error

    def encode(self, text: str, add_special: bool = True) -> NDArray[np.int64]:
        """Ids I64[n], with the tokens that the tokenizer puts around a text if ``add_special``."""
        ids: NDArray[np.int64] = self._ask("encode", text, add_special)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text without special tokens."""
        text: str = self._ask("decode", list(ids))
        return text

    def specials(self) -> list[str]:
        """The added tokens' texts in the order of their ids."""
        texts: list[str] = self._ask("specials")
        return texts

    def id_of(self, token: str) -> int | None:
        """A token's id."""
        index: int | None = self._ask("id_of", token)
        return index

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def __enter__(self) -> TextTokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, *args: object) -> Any:  # noqa: ANN401
        try:
            return self._child.ask(method, *args)
        except (CheckpointError, ChildEnded) as error:
            raise CheckpointError(
                f"{self._where}: the tokenizers library cannot use it ({shown(error)}); download it again"
            ) from error


@lru_cache(maxsize=4)  # verify opens one source for every step
def check_tokenizer(tokenizer_json: bytes, where: str) -> None:
    """Raises CheckpointError if the tokenizers library cannot read it, or a short text by it."""
    with TextTokenizer(tokenizer_json, where) as tokenizer:
        tokenizer.encode("a text")


def encode(text: str, tokenizer_json: bytes, where: str, error: type[AdaDimError] = CheckpointError) -> NDArray[np.int64]:
    """One text's ids I64[n], with the tokens that the tokenizer puts around it. ``where`` names the tokenizer.json in errors."""
    try:
        with TextTokenizer(tokenizer_json, where, len(text.encode("utf-8", "replace"))) as tokenizer:
            return tokenizer.encode(text)
    except CheckpointError as problem:
        raise error(str(problem)) from problem


def load(tokenizer_json: bytes) -> Tokenizer:
    """In this process: for what the project made itself, or in a child. Raises whatever the library raises."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    return tokenizer


class _Held:
    """What the child keeps. The library's errors are bare exceptions and, for a panic, none at all: they go on as texts."""

    def __init__(self, tokenizer_json: bytes) -> None:
        try:
            self._tokenizer = load(tokenizer_json)
        except BaseException as error:
            raise CheckpointError(shown(str(error))) from None

    def encode(self, text: str, add_special: bool) -> NDArray[np.int64]:
        try:
            return np.array(self._tokenizer.encode(text, add_special_tokens=add_special).ids, np.int64)
        except MemoryError:
            raise
        except BaseException as error:
            raise CheckpointError(shown(str(error))) from None

    def decode(self, ids: list[int]) -> str:
        try:
            return str(self._tokenizer.decode(ids))
        except BaseException as error:
            raise CheckpointError(shown(str(error))) from None

    def specials(self) -> list[str]:
        return [str(token.content) for _, token in sorted(self._tokenizer.get_added_tokens_decoder().items())]

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

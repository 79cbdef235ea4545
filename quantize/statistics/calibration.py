"""From a text to tokens to calibrate on, and what can be said of their coverage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from stat import S_ISCHR, S_ISFIFO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.checkpoint import Checkpoint
from quantize.checkpoint.gguf_sizes import METADATA_ASSET
from quantize.checkpoint.tokenizing import TextTokenizer, encode
from quantize.config import BUILTIN, GENERATED, RANDOM, DataSpec
from quantize.errors import CalibrationError, asked
from quantize.foreign import tokenizer_mend
from quantize.kinds import readable
from quantize.types import InputStats

TOKENIZER = "tokenizer.json"
SEQUENCE = 512  # tokens that attend to one another, as in the paper
LONGEST = 1 << 30  # bytes of a text; its tokens take many times as much
PIECE = 1 << 20
HELD_OUT_CHARACTERS = 100_000  # the end of the built-in text, never calibrated on: what demonstrations measure


@dataclass(frozen=True)
class CalibrationText:
    """A text and where it came from; ``sha256`` of its UTF-8 bytes goes into the store."""

    name: str
    text: str
    sha256: str


@dataclass(frozen=True)
class Coverage:
    """What the statistics rest on: goes into the store and the summary. ``rank_poor``: what ``rank_poor`` finds in all blocks."""

    text: str
    sha256: str
    tokens: int
    sequence: int
    rank_poor: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the store's header."""
        return {**asdict(self), "rank_poor": list(self.rank_poor)}


def rank_poor(stats: Mapping[str, InputStats], sites: Iterable[Sequence[str]]) -> list[str]:
    """The ``sites`` of one block whose Hessian cannot have full rank, each by the first linear that it feeds: fewer tokens than
    channels, or dead channels."""
    found = []
    for name, *_ in sites:
        channels, tokens = len(stats[name].hessian), stats[name].n_tokens
        dead = int(np.count_nonzero(np.diag(stats[name].hessian) <= 0))
        if tokens < channels or dead:
            found.append(f"{name}: {tokens} tokens for {channels} channels, {dead} never active")
    return found


def load_text(source: str) -> CalibrationText:
    """A UTF-8 file, or "builtin": Python's own pydoc_data.topics without its held-out end. Raises CalibrationError."""
    if source == BUILTIN:
        text = _pydoc_topics()[:-HELD_OUT_CHARACTERS]
        return CalibrationText("builtin (pydoc_data.topics)", text, _sha256(text))
    try:
        text = b"".join(_pieces(source)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{source}: not UTF-8 at byte {error.start}; convert it, or name `builtin`") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return CalibrationText(readable(Path(source).name), text, _sha256(text))


def reads_once(source: str) -> bool:
    """Whether a text comes from a pipe or a terminal, where a second reading finds nothing."""
    try:
        mode = os.stat(source).st_mode  # noqa: PTH116 - of a word
    except OSError:
        return False
    return S_ISFIFO(mode) or S_ISCHR(mode)


def copy_text(source: str, copy: Path) -> None:
    """Write a text that ``reads_once`` to a file. Raises CalibrationError."""
    with copy.open("wb") as file:
        for piece in _pieces(source):
            file.write(piece)


def _pieces(source: str) -> Iterator[bytes]:
    try:
        with Path(source).open("rb") as file:
            found, left = os.fstat(file.fileno()), LONGEST + 1
            if S_ISCHR(found.st_mode) and not file.isatty():
                raise CalibrationError(f"{source}: is a device, no text; name a text file or `builtin`")
            while left and found.st_size <= LONGEST and (piece := file.read(min(PIECE, left))):
                left -= len(piece)
                yield piece
    except OSError as error:
        raise CalibrationError(f"{source}: cannot be read ({error.strerror}); name a text file or `builtin`") from error
    if not left or found.st_size > LONGEST:
        raise CalibrationError(f"{source}: has more than {LONGEST:,} bytes, the most that is read of a text; name a part of it")


def held_out_text() -> str:
    """The end of the built-in text that ``load_text("builtin")`` leaves out, for measuring."""
    return _pydoc_topics()[-HELD_OUT_CHARACTERS:]


def tokenize(text: str, source: Checkpoint) -> NDArray[np.int64]:
    """Token ids I64[n] of the whole text, with what the source's tokenizer puts around one.

    By tokenizer.json; a GGUF's that is not known as one is llama.cpp's. Raises CalibrationError for a source without any, for one
    that cannot be read, or not within ``quantize.checkpoint.tokenizing``'s limits.
    """
    assets = source.assets()
    if TOKENIZER in assets:
        return encode(text, assets[TOKENIZER], f"{source.path}: {TOKENIZER}", CalibrationError)
    if METADATA_ASSET in assets:
        from quantize.llama_cpp import tokens

        return tokens.tokenize(source.path, text)
    raise CalibrationError(
        f"{source.path}: no {TOKENIZER}, so no text can be tokenized; {tokenizer_mend(source.path)}, "
        f"or quantize by rtn-oc, rtn-ic or {asked('imatrix')}"
    )


def token_texts(ids: Sequence[int], source: Checkpoint) -> list[str]:
    """Of each by itself, by the same tokenizer. Raises CheckpointError."""
    assets = source.assets()
    if TOKENIZER in assets:
        with TextTokenizer(assets[TOKENIZER], f"{source.path}: {TOKENIZER}") as tokenizer:
            return [tokenizer.decode([token]) for token in ids]
    from quantize.llama_cpp import tokens

    return tokens.texts_of(source.path, ids)


def detokenize(ids: Sequence[int], source: Checkpoint) -> str:
    """The text, by the same tokenizer. Raises CheckpointError."""
    assets = source.assets()
    if TOKENIZER in assets:
        with TextTokenizer(assets[TOKENIZER], f"{source.path}: {TOKENIZER}") as tokenizer:
            return tokenizer.decode(ids)
    from quantize.llama_cpp import tokens

    return tokens.detokenize(source.path, ids)


def sequence_count(tokens: int) -> int:
    """How many whole sequences are drawn for that many tokens."""
    return max(1, tokens // SEQUENCE)


def choose_sequences(ids: NDArray[np.int64], tokens: int, seed: int, where: str) -> NDArray[np.int64]:
    """Cut I64[n] into I64[sequences, SEQUENCE] and draw enough of them for ``tokens``, spread over the whole text by ``seed``.

    Raises CalibrationError if the text is shorter than one sequence or than what was asked for.
    """
    available, wanted = len(ids) // SEQUENCE, sequence_count(tokens)
    if available < wanted:
        raise CalibrationError(
            f"{where}: {len(ids)} tokens, but {wanted} sequences of {SEQUENCE} are needed; give a longer text"
            + (f", or {asked('data.tokens', available * SEQUENCE)}" if available else "")
        )
    return _drawn(ids, seed, np.arange(wanted))


def other_sequences(ids: NDArray[np.int64], tokens: int, seed: int, count: int) -> NDArray[np.int64]:
    """``count`` more that ``choose_sequences`` leaves out, I64[sequences, SEQUENCE]; where the text ends, those that it takes.

    Fewer, and none twice, of a text that has no more.
    """
    wanted = sequence_count(tokens)
    return _drawn(ids, seed, np.arange(wanted, wanted + min(count, len(ids) // SEQUENCE)))


def _drawn(ids: NDArray[np.int64], seed: int, places: NDArray[np.intp]) -> NDArray[np.int64]:
    """What comes at those places when ``seed`` draws all sequences one after the other, and again; in the text's order."""
    available = len(ids) // SEQUENCE
    chosen = np.sort(np.random.default_rng(seed).permutation(available).take(places, mode="wrap"))
    return ids[: available * SEQUENCE].reshape(available, SEQUENCE)[chosen]


def calibration_data(data: DataSpec, source: Checkpoint) -> tuple[NDArray[np.int64], Coverage]:
    """The text that ``data`` names as I64[sequences, SEQUENCE], by the source's tokenizer, and its description.

    Raises CalibrationError, and for a text that the source is to write what ``written`` does.
    """
    if data.text == GENERATED:
        from quantize.statistics.generated import written

        tokens = written(data, source, 0, sequence_count(data.tokens))
        return tokens, replace(planned_coverage(data), sha256=hashlib.sha256(tokens.tobytes()).hexdigest())
    text = load_text(data.text)
    ids = tokenize(text.text, source)
    tokens = choose_sequences(ids, data.tokens, data.seed, text.name)
    return tokens, Coverage(text.name, text.sha256, tokens.size, SEQUENCE)


def data_or_random(data: DataSpec, source: Checkpoint) -> tuple[NDArray[np.int64], Coverage]:
    """As ``calibration_data``; of the text "random" tokens that ``data.seed`` draws evenly of all that the source has."""
    if data.text != RANDOM:
        return calibration_data(data, source)
    shape = sequence_count(data.tokens), SEQUENCE
    tokens = np.random.default_rng(data.seed).integers(0, source.config.vocab_size, shape)
    return tokens, Coverage("random tokens", hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest(), tokens.size, SEQUENCE)


def planned_coverage(data: DataSpec) -> Coverage:
    """What ``calibration_data`` will say, before anything is tokenized or run. Raises CalibrationError for a text that cannot be
    read."""
    text = CalibrationText("written by the source", "", "0" * 64) if data.text == GENERATED else load_text(data.text)
    return Coverage(text.name, text.sha256, sequence_count(data.tokens) * SEQUENCE, SEQUENCE)


def other_data(data: DataSpec, source: Checkpoint, count: int) -> NDArray[np.int64]:
    """``count`` sequences of that text that ``calibration_data`` leaves out, as far as there are (``other_sequences``).

    Raises CalibrationError as it does, but for the text's length.
    """
    if data.text == GENERATED:
        from quantize.statistics.generated import written

        return written(data, source, sequence_count(data.tokens), count)
    return other_sequences(tokenize(load_text(data.text).text, source), data.tokens, data.seed, count)


def _pydoc_topics() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[key] for key in sorted(topics))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""A text that the source writes itself, to calibrate on, as Norm Tweaking does (arXiv 2309.02784).

Each sequence begins with a word, drawn from those of one token that the built-in text has most of. Every other token is drawn
from what the source predicts.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from quantize.checkpoint import Checkpoint
from quantize.config import BUILTIN, DataSpec
from quantize.errors import CalibrationError, asked
from quantize.statistics.by_template import check_writes
from quantize.statistics.calibration import SEQUENCE, load_text, token_texts, tokenize
from quantize.types import I64

FREQUENT = 512  # tokens among which words are looked for
WORDS = 64  # that a sequence may begin with, at most
FEWEST = 8  # with fewer, sequences begin too much alike


def written(data: DataSpec, source: Checkpoint, first: int, count: int) -> I64:
    """The ``count`` sequences from number ``first`` on, I64[count, SEQUENCE], that ``data.seed`` draws.

    Raises ConfigError for a source that cannot write, CalibrationError for a tokenizer that knows too few words.
    """
    from quantize.source import generate

    check_writes(source, data)
    ids = tokenize(load_text(BUILTIN).text, source)
    words, begin = begin_words(ids, source), tokenize("", source)[:1]
    chances = np.stack([np.random.default_rng((data.seed, number)).random(SEQUENCE) for number in range(first, first + count)])
    chosen = words[(chances[:, 0] * len(words)).astype(np.intp), None]
    starts = np.concatenate([np.broadcast_to(begin, (count, len(begin))), chosen], axis=1)
    return generate(source, starts, chances[:, starts.shape[1] :].astype(np.float32), ids[None])


def begin_words(ids: NDArray[np.int64], source: Checkpoint) -> I64:
    """Of tokens I64[n] of the built-in text those that are one of its words, most frequent first, I64[words].

    Raises CalibrationError for fewer than FEWEST.
    """
    known, counts = np.unique(ids, return_counts=True)
    frequent = known[np.argsort(-counts, kind="stable")[:FREQUENT]]
    words = set(re.findall(r"[^\W\d_]+", load_text(BUILTIN).text))
    found = [token for token, text in zip(frequent, token_texts(frequent.tolist(), source), strict=True) if text.strip() in words]
    if len(found) < FEWEST:
        raise CalibrationError(
            f"{source.path}: {len(found)} of the {len(frequent)} tokens that the built-in text has most of are words, but "
            f"{FEWEST} are needed to begin sequences with; give {asked('data.text', BUILTIN)}, or a text file"
        )
    return np.array(found[:WORDS], np.int64)

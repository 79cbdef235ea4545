"""What is asked of llama.cpp about a GGUF, in a child process, which one of its assertions would end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from quantize.child import Child, ChildEnded
from quantize.errors import CheckpointError, FileFormatError
from quantize.llama_cpp.model import EXPORT_AGAIN, LlamaModel
from quantize.llama_cpp.watched import WatchedModel
from quantize.moments import Moments, Product, Text, measure_in
from quantize.types import F32, I64

PROBE = np.arange(2, dtype=np.int64)  # tokens that show what is multiplied
MEND = "; a newer llama.cpp may run this model"


def find_products(path: Path, weights: Collection[str]) -> list[Product]:
    """What llama.cpp multiplies, in its order, of the tensors called ``weights``. Raises CheckpointError where it cannot run."""
    with _running(path) as child:
        found: list[Product] = child.call(_products, path, list(weights))
        return found


def measure_moments(path: Path, text: Text, products: Sequence[Product], folder: Path) -> dict[int, Moments]:
    """See ``measure_in``. Raises CalibrationError for inputs that overflow, CheckpointError where llama.cpp cannot run."""
    with _running(path) as child:
        return measure_in(child, partial(WatchedModel, path), products, text, folder)


def run_logits(path: Path, tokens: I64) -> F32:
    """What it predicts after each of I64[n] tokens, F32[n, vocab], exactly. Raises CheckpointError where it cannot run."""
    with _running(path) as child:
        return child.call(_logits, path, tokens)


@contextmanager
def _running(path: Path) -> Iterator[Child]:
    try:
        with Child() as child:
            yield child
    except ChildEnded as error:
        raise CheckpointError(f"{path}: llama.cpp {error}{MEND}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}{MEND}") from error
    except FileFormatError as error:
        raise CheckpointError(str(error).removesuffix(EXPORT_AGAIN) + MEND) from error


def _products(path: Path, weights: list[str]) -> list[Product]:
    with WatchedModel(path, len(PROBE), weights) as model:
        return model.products(PROBE)


def _logits(path: Path, tokens: I64) -> F32:
    with LlamaModel(path, n_ctx=len(tokens), exact=True) as model:
        return model.logits(tokens.astype(np.int32))

"""Second moments of inputs, measured by llama.cpp itself as it runs a GGUF: of any architecture that it knows, without torch.

It runs in a child process, which one of its assertions would end; the moments lie in files between the two. Where those of all
weights would not fit into memory, the text passes several times, for some of the weights each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantize.child import Child, ChildEnded
from quantize.errors import CalibrationError, CheckpointError, FileFormatError
from quantize.llama_cpp.model import EXPORT_AGAIN, LlamaModel
from quantize.llama_cpp.watched import Product, Seen, WatchedModel
from quantize.types import F32, I64
from quantize.workers import in_threads

PROBE = np.arange(2, dtype=np.int64)  # tokens that show what is multiplied
COUNTS, WEIGHTS = "counts.npy", "weights{}.npy"
MEND = "; a newer llama.cpp may run this model"


class Text(NamedTuple):
    """``tokens`` I64[sequences, length], and what each counts: ``unit``: so much that its norm is 1; else by site F32[tokens] in
    ``weights``, where a site has any, or 1."""

    tokens: I64
    unit: bool = False
    weights: Mapping[int, F32] = {}


class Moments(NamedTuple):
    """Of a site. ``squares`` F32[experts or 1, IC, IC], the mean of x xT over the tokens that it has seen, ``tokens`` of them."""

    squares: F32
    tokens: I64


def find_products(path: Path, weights: Collection[str]) -> list[Product]:
    """What llama.cpp multiplies, in its order, of the tensors called ``weights``. Raises CheckpointError where it cannot run."""
    with _running(path) as child:
        found: list[Product] = child.call(_products, path, list(weights))
        return found


def measure_moments(path: Path, text: Text, products: Sequence[Product], folder: Path) -> dict[int, Moments]:
    """By site, over ``text``, mapped from files in ``folder``.

    Raises CalibrationError for inputs that overflow, CheckpointError where llama.cpp cannot run.
    """
    np.save(folder / "tokens.npy", text.tokens)
    for site in {product.site for product in products} & set(text.weights):
        np.save(folder / WEIGHTS.format(site), text.weights[site])
    with _running(path) as child:
        child.call(_measure, path, list(products), text.unit, folder)
    counts, found = np.load(folder / COUNTS), dict[int, Moments]()
    for row, site in enumerate(dict.fromkeys(product.site for product in products)):
        squares: F32 = np.load(folder / f"{site}.npy", "r")
        found[site] = Moments(squares, counts[row, : len(squares)])
    return found


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


def _measure(path: Path, products: list[Product], unit: bool, folder: Path) -> None:
    tokens = np.load(folder / "tokens.npy")
    first = {product.site: product for product in reversed(products)}
    weights = {site: np.load(file) for site in first if (file := folder / WEIGHTS.format(site)).is_file()}
    sums = {product.weight: _Sum(product, unit, weights.get(site)) for site, product in first.items()}
    wanted = [product.weight for product in products if product.weight in sums]
    with WatchedModel(path, tokens.shape[1], wanted) as model:
        for sequence in tokens:
            model.watch(sequence, wanted, lambda seen: sums[seen.weight].see(seen))
            in_threads(_Sum.add, sums.values())  # now, because llama.cpp's own threads are idle
    most = max(max(1, product.experts) for product in products)
    counts = np.zeros((len(wanted), most), np.int64)
    for row, name in enumerate(wanted):
        own = sums[name]
        counts[row, : len(own.tokens)] = own.tokens
        np.save(folder / f"{own.product.site}.npy", own.squares / np.maximum(own.tokens, 1)[:, None, None].astype(np.float32))
    np.save(folder / COUNTS, counts)


class _Sum:
    """Of x xT over tokens, for each expert; what was seen waits for ``add``."""

    def __init__(self, product: Product, unit: bool, weights: F32 | None = None) -> None:
        self.product, self._unit, self._weights = product, unit, weights
        self.tokens = np.zeros(max(1, product.experts), np.int64)
        self.squares = np.zeros((0, 0, 0), np.float32)
        self._x, self._ids = list[F32](), list[NDArray[np.int32]]()

    def see(self, seen: Seen) -> None:
        """Keeps a copy: the memory is llama.cpp's."""
        x = seen.x if seen.ids is None else np.broadcast_to(seen.x, (*seen.ids.shape, seen.x.shape[-1]))
        self._x.append(np.array(x.reshape(-1, x.shape[-1])))
        if seen.ids is not None:
            self._ids.append(np.array(seen.ids.ravel()))

    def add(self) -> None:
        """Raises CalibrationError for inputs that overflow, ValueError where there are none."""
        if not self._x:
            raise ValueError(f"llama.cpp multiplied {self.product.weight} by nothing on the text")
        x = np.concatenate(self._x)
        if not self.squares.size:
            self.squares = np.zeros((len(self.tokens), x.shape[1], x.shape[1]), np.float32)
        ids = np.concatenate(self._ids) if self._ids else np.zeros(len(x), np.int32)
        for expert in np.unique(ids):
            self._add(int(expert), x if len(self.tokens) == 1 else x[ids == expert])
        self._x.clear()
        self._ids.clear()

    def _add(self, expert: int, x: F32) -> None:
        norms = np.square(x).sum(-1, keepdims=True)
        if not np.isfinite(norms).all():
            raise CalibrationError(
                f"{self.product.weight}: its inputs on the calibration text overflow float32; does the source itself run?"
            )
        if self._unit:
            x = x / np.sqrt(np.maximum(norms, np.float32(1e-20)))
        elif self._weights is not None:
            seen = int(self.tokens[expert])
            x = x * np.sqrt(self._weights[seen : seen + len(x), None])
        self.squares[expert] += x.T @ x
        self.tokens[expert] += len(x)

"""Second moments and a sample of inputs, measured by a runtime itself as it runs its own file: whatever the model, without torch.

The runtime runs in a child process, which one of its assertions would end; the moments lie in files between the two. Where those
of all weights would not fit into memory, the text passes several times, for some of the weights each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from quantize.child import Child
from quantize.errors import CalibrationError
from quantize.inputs import Inputs, Sampler
from quantize.types import F32, I64
from quantize.workers import in_threads

COUNTS, WEIGHTS, INPUTS = "counts.npy", "weights{}.npy", "inputs{}.npz"


class Product(NamedTuple):
    """A weight that is multiplied. ``site``: the same number for weights that see the same input. ``experts``: of a stack."""

    weight: str
    site: int
    experts: int = 0


class Seen(NamedTuple):
    """A product that was computed. ``x`` F32[tokens, 1 or used, IC]; ``ids`` I32[tokens, used] of a stack, else None."""

    weight: str
    x: F32
    ids: NDArray[np.int32] | None = None


class Text(NamedTuple):
    """``tokens`` I64[sequences, length], and what each counts: ``unit``: so much that its norm is 1; else by site F32[tokens] in
    ``weights``, where a site has any, or 1."""

    tokens: I64
    unit: bool = False
    weights: Mapping[int, F32] = {}


class Moments(NamedTuple):
    """Of a site. ``squares`` F32[experts or 1, IC, IC], the mean of x xT over the tokens that it has seen, ``tokens`` of them;
    ``inputs``: some of them, where no stack reads them."""

    squares: F32
    tokens: I64
    inputs: Inputs | None = None


class Watched(Protocol):
    """A file in its runtime, whose products are told."""

    def watch(self, tokens: I64, wanted: list[str], see: Callable[[Seen], None]) -> None:
        """Pass I64[n] from an empty cache; ``see`` is told of the products of ``wanted`` weights."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


Opened = Callable[[int, list[str]], Watched]  # (tokens of a sequence, names of the weights that are watched)


def measure_in(child: Child, opened: Opened, products: Sequence[Product], text: Text, folder: Path) -> dict[int, Moments]:
    """By site, over ``text``, mapped from files in ``folder``.

    Raises CalibrationError for inputs that overflow, ValueError for weights that are multiplied by nothing, and ChildEnded.
    """
    np.save(folder / "tokens.npy", text.tokens)
    for site in {product.site for product in products} & set(text.weights):
        np.save(folder / WEIGHTS.format(site), text.weights[site])
    child.call(_measure, opened, list(products), text.unit, folder)
    counts, found = np.load(folder / COUNTS), dict[int, Moments]()
    for row, site in enumerate(dict.fromkeys(product.site for product in products)):
        squares: F32 = np.load(folder / f"{site}.npy", "r")
        found[site] = Moments(squares, counts[row, : len(squares)], _read_inputs(folder / INPUTS.format(site)))
    return found


def _read_inputs(path: Path) -> Inputs | None:
    if not path.is_file():
        return None
    with np.load(path) as held:
        return Inputs(**held)


def _measure(opened: Opened, products: list[Product], unit: bool, folder: Path) -> None:
    tokens = np.load(folder / "tokens.npy")
    first = {product.site: product for product in reversed(products)}
    weights = {site: np.load(file) for site in first if (file := folder / WEIGHTS.format(site)).is_file()}
    sums = {product.weight: _Sum(product, tokens.size, unit, weights.get(site)) for site, product in first.items()}
    wanted = [product.weight for product in products if product.weight in sums]
    with opened(tokens.shape[1], wanted) as model:
        for sequence in tokens:
            model.watch(sequence, wanted, lambda seen: sums[seen.weight].see(seen))
            in_threads(_Sum.add, sums.values())  # now, because the runtime's own threads are idle
    most = max(max(1, product.experts) for product in products)
    counts = np.zeros((len(wanted), most), np.int64)
    for row, name in enumerate(wanted):
        own = sums[name]
        counts[row, : len(own.tokens)] = own.tokens
        np.save(folder / f"{own.product.site}.npy", own.squares / np.maximum(own.tokens, 1)[:, None, None].astype(np.float32))
        if own.sampler is not None:
            np.savez(folder / INPUTS.format(own.product.site), **vars(own.sampler.inputs()))
    np.save(folder / COUNTS, counts)


class _Sum:
    """Of x xT over ``total`` tokens, for each expert, and some of the tokens; what was seen waits for ``add``."""

    def __init__(self, product: Product, total: int, unit: bool, weights: F32 | None = None) -> None:
        self.product, self._unit, self._weights = product, unit, weights
        self.sampler = None if product.experts else Sampler(total)
        self.tokens = np.zeros(max(1, product.experts), np.int64)
        self.squares = np.zeros((0, 0, 0), np.float32)
        self._x, self._ids = list[F32](), list[NDArray[np.int32]]()

    def see(self, seen: Seen) -> None:
        """Keeps a copy: the memory is the runtime's."""
        x = seen.x if seen.ids is None else np.broadcast_to(seen.x, (*seen.ids.shape, seen.x.shape[-1]))
        self._x.append(np.array(x.reshape(-1, x.shape[-1])))
        if seen.ids is not None:
            self._ids.append(np.array(seen.ids.ravel()))

    def add(self) -> None:
        """Raises CalibrationError for inputs that overflow, ValueError where there are none."""
        if not self._x:
            raise ValueError(f"{self.product.weight} was multiplied by nothing on the text")
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
        seen = int(self.tokens[expert])
        if self._unit:
            norms = np.maximum(norms, np.float32(1e-20))
            weight, scaled = 1 / norms, x / np.sqrt(norms)
        elif self._weights is not None:
            weight = self._weights[seen : seen + len(x), None]
            scaled = x * np.sqrt(weight)
        else:
            weight, scaled = np.ones_like(norms), x
        if self.sampler is not None:
            self.sampler.see(x, weight[:, 0])
        self.squares[expert] += scaled.T @ scaled
        self.tokens[expert] += len(x)

"""What an error at a linear's output costs at the model's output: the Fisher information of the source's own predictions.

With labels y drawn from the source itself and g = d log p(y) / dz at a linear's output z, an error dz changes the mean KL
divergence by E[(g . dz)^2] / 2. Two marginals are kept, of g^2 over output channels and of |g| over tokens, so that
``tr(R E H ET)``, E = W - W', H = E[a x xT], R = diag(row_weight), is the predicted divergence in nats per token
(K-FAC's factors, arXiv 1503.05671, with a diagonal output side). A token's g^2 is that of one drawn label, so noisy that few
tokens would own H; its root rounds better (docs/history/what-did-not-help.md, Token weights).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from quantize.checkpoint import Checkpoint
from quantize.errors import CalibrationError, CheckpointError
from quantize.model_config import EMBEDDING, HEAD
from quantize.progress import track
from quantize.source.causal import Causal, Weight
from quantize.source.freed import return_freed
from quantize.source.named import WITHOUT, Named, named_model
from quantize.source.whole import LOGIT_ROWS, hidden_of
from quantize.types import F32, I64, Curvature, InputStats

BATCH = 1  # sequences that go through the whole model together
TIDY = 4  # batches between two returns of memory
UNSEEN = 1.0  # one more token of each kind, as costly as the mean: no row of the embedding counts for nothing


def measure_curvature(source: Checkpoint, tokens: I64, seed: int) -> Curvature:
    """One forward and one backward pass over I64[sequences, length]; ``seed`` draws the labels.

    The source is in memory as ``named_model`` has it. Raises CalibrationError if an activation or a gradient overflows.
    """
    named = named_model(source, tokens)
    causal, rows_of = named.causal, named.rows
    tables = _Tables(*causal.head.shape)
    squares, head, generator = _Squares(tables), _head(causal), torch.Generator().manual_seed(seed)
    hooks = [block.register_forward_hook(squares.see_block(index)) for index, block in enumerate(causal.blocks)]
    for start in track(range(0, len(tokens), BATCH), "curvature"):
        ids = torch.from_numpy(np.ascontiguousarray(tokens[start : start + BATCH]))
        with causal.watched(squares.see):
            last = causal.hidden(ids)
        if not last.isfinite().all():
            site = first_overflow(named, ids)
            raise CalibrationError(f"{site}: its outputs on the calibration text overflow float32; does the source itself run?")
        last.backward(tables.add_head(last.detach(), head, generator))  # type: ignore[no-untyped-call]
        if start // BATCH % TIDY == 0:
            return_freed()
    for hook in hooks:
        hook.remove()
    found, shares = squares.marginals(tokens.size)
    _check_seen(source, named, shares, tokens.size)
    rows = {name: rows_of[name].gather(found) for names in named.sites for name in names}
    for name, row in rows.items():
        if not np.isfinite(row).all():
            raise CalibrationError(f"{name}: its gradients on the calibration text overflow float32; does the source itself run?")
    weights = {names[0]: _mean({key for name in names for key in rows_of[name].keys}, shares) for names in named.sites}
    stats = tables.stats(tied=causal.head is causal.embedding)
    tables_of = {name: one for name, one in stats.items() if name in named.whole}
    return Curvature(weights, rows, tables_of, squares.blocks(tokens.size))


def _check_seen(source: Checkpoint, named: Named, shares: Mapping[Weight, torch.Tensor], count: int) -> None:
    """Raises CheckpointError where a weight was not multiplied by each of ``count`` tokens once: nobody knows which is which."""
    for name, rows in named.rows.items():
        seen = [len(shares[key]) if key in shares else 0 for key in rows.keys]
        if any(number != count for number in seen):
            raise CheckpointError(f"{source.path}: {name} sees {seen[0]} inputs of {count} tokens in torch; {WITHOUT}")


def _mean(keys: Collection[Weight], shares: Mapping[Weight, torch.Tensor]) -> F32:
    """Token weights of mean 1 of one input, F32[tokens]: of all weights that see it, summed in the order of their gradients."""
    mean: F32 = torch.stack([share for key, share in shares.items() if key in keys]).mean(0).numpy()
    return mean


@torch.no_grad()
def first_overflow(named: Named, ids: torch.Tensor) -> str:
    """Name of the first linear whose output is not finite."""
    found = list[Weight]()

    def see(weight: Weight | None, _: torch.Tensor, out: torch.Tensor) -> None:
        if weight is not None and not out.isfinite().all():
            found.append(weight)

    with named.causal.watched(see):
        named.causal.hidden(ids)
    names = (name for weight in found for name, rows in named.rows.items() if weight in rows.keys)
    return next((name.removesuffix(".weight") for name in names), "model.norm")


class _Squares:
    """Both marginals of g^2 for every weight that something is multiplied by."""

    def __init__(self, tables: _Tables) -> None:
        self._tables = tables
        self._rows: dict[Weight, torch.Tensor] = {}
        self._tokens: dict[Weight, list[torch.Tensor]] = {}
        self._block_rows: dict[int, torch.Tensor] = {}
        self._block_tokens: dict[int, list[torch.Tensor]] = {}

    def see_block(self, index: int) -> Callable[[Any, Any, Any], None]:
        """A hook for a decoder block's outputs."""

        def add(gradient: torch.Tensor) -> None:
            square = gradient.reshape(-1, gradient.shape[-1]).square()
            self._block_rows[index] = self._block_rows.get(index, torch.zeros(())) + square.sum(0)
            self._block_tokens.setdefault(index, []).append(square.sum(1).sqrt())

        def hook(_module: Any, _args: Any, out: Any) -> None:  # noqa: ANN401 - transformers has no types
            if hidden_of(out).requires_grad:
                hidden_of(out).register_hook(add)  # type: ignore[no-untyped-call]

        return hook

    def blocks(self, count: int) -> dict[int, tuple[F32, F32]]:
        """As ``marginals``, of their outputs: token weights first."""
        rows = {index: (own / (2 * count)).numpy() for index, own in self._block_rows.items()}
        return {index: (_share(parts).numpy(), rows[index]) for index, parts in self._block_tokens.items()}

    def see(self, weight: Weight | None, x: torch.Tensor, out: torch.Tensor) -> None:
        """What is looked up in the embedding asks for a gradient, so that all that follows has one."""
        if weight is not None and out.requires_grad:
            out.register_hook(lambda gradient: self._add(weight, gradient))  # type: ignore[no-untyped-call]
        elif weight is None:
            out.requires_grad_()
            out.register_hook(lambda gradient: self._tables.add_embedding(x, gradient))  # type: ignore[no-untyped-call]

    def _add(self, weight: Weight, gradient: torch.Tensor) -> None:
        square = gradient.reshape(-1, gradient.shape[-1]).square()
        self._rows[weight] = self._rows.get(weight, torch.zeros(())) + square.sum(0)
        self._tokens.setdefault(weight, []).append(square.sum(1).sqrt())

    def marginals(self, count: int) -> tuple[dict[Weight, F32], dict[Weight, torch.Tensor]]:
        """(half the mean of g^2 F32[OC], token weights of mean 1 F32[tokens]), ``count`` tokens in all."""
        rows = {weight: (own / (2 * count)).numpy() for weight, own in self._rows.items()}
        return rows, {weight: _share(parts) for weight, parts in self._tokens.items()}


def _share(parts: list[torch.Tensor]) -> torch.Tensor:
    """F32[tokens], of mean 1."""
    tokens = torch.cat(parts)
    return tokens / tokens.mean().clamp_min(torch.finfo(torch.float32).tiny)


def draw(p: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """One label for each row of probabilities [n, vocab], I64[n, 1], by evenly drawn ``numbers`` [n, 1] below 1.

    torch.multinomial draws a number for each entry instead.
    """
    upto = p.cumsum(-1)
    wanted = numbers * upto[:, -1:]
    return torch.searchsorted(upto, wanted, right=True).clamp_max(p.shape[1] - 1)


class Applied(NamedTuple):
    """A head applied to F32[n, hidden]: logits F32[n, vocab], what its matrix saw, and the way back from a gradient of the logits
    to one of the input. ``stretch``: what logits change by the matrix' own output, F32[n, vocab]; None where they are that."""

    logits: torch.Tensor
    x: torch.Tensor
    back: Callable[[torch.Tensor], torch.Tensor]
    stretch: torch.Tensor | None = None


Head = Callable[[torch.Tensor], Applied]


def _head(causal: Causal) -> Head:
    """The model's own way from its last hidden states to logits, whatever comes after the product."""

    def head(last: torch.Tensor) -> Applied:
        with torch.enable_grad():
            leaf, seen = last.detach().requires_grad_(), list[tuple[torch.Tensor, torch.Tensor]]()

            def see(weight: Weight | None, x: torch.Tensor, out: torch.Tensor) -> None:
                if weight is not None and causal.parameters[weight.parameter] is causal.head:
                    seen.append((x, out))

            with causal.watched(see):
                logits = causal.logits(leaf)
            x, made = seen[-1]
            plain = logits.detach().reshape(-1).equal(made.detach().reshape(-1))
            stretch = None if plain else torch.autograd.grad(logits.sum(), made, retain_graph=True)[0].reshape(logits.shape)

        def back(gradient: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = torch.autograd.grad(logits, leaf, gradient)[0]
            return found

        return Applied(logits.detach(), x.detach().reshape(len(last), -1), back, stretch)

    return head


class _Tables:
    """The same for embedding and head."""

    def __init__(self, vocab: int, hidden: int) -> None:
        self._tokens = 0
        self._moment, self._head_rows = torch.zeros(hidden, hidden), torch.zeros(vocab)
        self._columns, self._rows = torch.zeros(hidden), torch.zeros(vocab)

    @torch.no_grad()
    def add_head(self, last: torch.Tensor, head: Head, generator: torch.Generator) -> torch.Tensor:
        """Gradient of log p(drawn label) for the last hidden states [batch, length, hidden]; gathers p (1 - p)."""
        gradient = torch.empty_like(last)
        flat, slopes = last.reshape(-1, last.shape[-1]), gradient.view(-1, last.shape[-1])
        for start in range(0, len(flat), LOGIT_ROWS):
            part = flat[start : start + LOGIT_ROWS]
            applied = head(part)
            p = applied.logits.softmax(-1)
            spread = p * (1 - p)
            if applied.stretch is not None:
                spread *= applied.stretch.square()
            weight = spread.sum(1)
            self._head_rows += spread.sum(0)
            self._moment += (applied.x * weight[:, None]).T @ applied.x
            self._tokens += len(part)
            drawn = draw(p, torch.rand((len(p), 1), generator=generator))
            p.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=p.dtype))
            slopes[start : start + LOGIT_ROWS] = applied.back(-p)
        return gradient

    def add_embedding(self, ids: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Gathers the squares of the gradient at the embedding's output."""
        assert gradient is not None
        square = gradient.reshape(-1, gradient.shape[-1]).square()
        self._columns += square.sum(0)
        self._rows.index_add_(0, ids.reshape(-1), square.mean(1))

    def stats(self, tied: bool) -> dict[str, InputStats]:
        """For the embedding's lookup (a diagonal) and the head's product; for a tied table their sum, by marginals again."""
        n, total = self._tokens, self._head_rows.sum()
        moment, head_rows = self._moment / total, self._head_rows / (2 * n)
        columns = self._columns / self._columns.mean()
        rows = (self._rows + UNSEEN * self._rows.sum() / n) / (2 * (n + UNSEEN * len(self._rows)))
        head = InputStats(moment.numpy(), n, head_rows.numpy())
        if not tied:
            return {EMBEDDING: InputStats(columns.numpy(), n, rows.numpy()), HEAD: head}
        share = rows.sum() / (rows.sum() + head_rows.sum())
        both = moment * (1 - share) + torch.diag(columns) * share
        return {EMBEDDING: InputStats(both.numpy(), n, (rows + head_rows).numpy())}

"""What an error at a linear's output costs at the model's output: the Fisher information of the source's own predictions.

With labels y drawn from the source itself and g = d log p(y) / dz at a linear's output z, an error dz changes the mean KL
divergence by E[(g . dz)^2] / 2. Two marginals are kept, of g^2 over output channels and of |g| over tokens, so that
``tr(R E H ET)``, E = W - W', H = E[a x xT], R = diag(row_weight), is the predicted divergence in nats per token
(K-FAC's factors, arXiv 1503.05671, with a diagonal output side). A token's g^2 is that of one drawn label, so noisy that few
tokens would own H; its root rounds better (docs/history/what-did-not-help.md, Token weights).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from quantize.checkpoint import Checkpoint
from quantize.errors import CalibrationError
from quantize.model_config import EMBEDDING, HEAD, block_prefix
from quantize.progress import track
from quantize.source.discover import TOKENS, anatomy_of
from quantize.source.freed import return_freed
from quantize.source.whole import LOGIT_ROWS, build_model
from quantize.types import F32, I64, Curvature, InputStats

BATCH = 1  # sequences that go through the whole model together
TIDY = 4  # batches between two returns of memory
UNSEEN = 1.0  # one more token of each kind, as costly as the mean: no row of the embedding counts for nothing


def measure_curvature(source: Checkpoint, tokens: I64, seed: int) -> Curvature:
    """One forward and one backward pass over I64[sequences, length]; ``seed`` draws the labels.

    The whole source is in memory in float32. Raises CalibrationError if an activation or a gradient overflows.
    """
    model: Any = build_model(source.config, source.read, source.tied)
    tables = _Tables(model.lm_head.weight.detach(), source.config.vocab_size)
    squares = _Squares(model)
    generator = torch.Generator().manual_seed(seed)
    for start in track(range(0, len(tokens), BATCH), "curvature"):
        ids = torch.from_numpy(np.ascontiguousarray(tokens[start : start + BATCH]))
        embedded = model.model.embed_tokens(ids).requires_grad_()
        last = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        if not last.isfinite().all():
            site = _first_overflow(model, ids)
            raise CalibrationError(f"{site}: its outputs on the calibration text overflow float32; does the source itself run?")
        last.backward(tables.add_head(last.detach(), generator))
        tables.add_embedding(ids, embedded.grad)
        if start // BATCH % TIDY == 0:
            return_freed()
    rows, weights = squares.marginals()
    for name, row in rows.items():
        if not np.isfinite(row).all():
            raise CalibrationError(f"{name}: its gradients on the calibration text overflow float32; does the source itself run?")
    return Curvature(weights, rows, tables.stats(source.tied))


@torch.no_grad()
def _first_overflow(model: Any, ids: torch.Tensor) -> str:  # noqa: ANN401 - transformers has no types
    """Name of the first linear whose output is not finite."""
    found = list[str]()

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: None if output.isfinite().all() else found.append(name)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(note(name))
    model.model(ids, use_cache=False)
    return next(iter(found), "model.norm")


class _Squares:
    """Backward hooks that gather both marginals for every linear."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers has no types
        self._rows: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, list[torch.Tensor]] = {}
        positions = model.model.rotary_emb(torch.zeros(1, 1), torch.arange(TOKENS)[None])
        for index, block in enumerate(model.model.layers):
            for linears in anatomy_of(block, model.config.hidden_size, positions).sites:
                for linear in linears:
                    hook = self._add(f"{block_prefix(index)}{linear}.weight", block_prefix(index) + linears[0])
                    block.get_submodule(linear).register_full_backward_hook(hook)

    def _add(self, name: str, site: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
            square = outputs[0].reshape(-1, outputs[0].shape[-1]).square()
            self._rows[name] = self._rows.get(name, torch.zeros(())) + square.sum(0)
            self._tokens.setdefault(f"{site}:{name}", []).append(square.sum(1).sqrt())

        return hook

    def marginals(self) -> tuple[dict[str, F32], dict[str, F32]]:
        """(half the mean of g^2 by weight name F32[OC], token weights of mean 1 by input site F32[tokens])."""
        by_site: dict[str, list[torch.Tensor]] = {}
        rows = {}
        for key, parts in self._tokens.items():
            site, _, name = key.partition(":")
            tokens = torch.cat(parts)
            rows[name] = (self._rows[name] / (2 * len(tokens))).numpy()
            by_site.setdefault(site, []).append(tokens / tokens.mean().clamp_min(torch.finfo(torch.float32).tiny))
        return rows, {site: torch.stack(shares).mean(0).numpy() for site, shares in by_site.items()}


def _draw(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One label for each row of probabilities [n, vocab], I64[n, 1]; torch.multinomial draws a number for each entry instead."""
    upto = p.cumsum(-1)
    wanted = torch.rand((len(p), 1), generator=generator) * upto[:, -1:]
    return torch.searchsorted(upto, wanted, right=True).clamp_max(p.shape[1] - 1)


class _Tables:
    """The same for embedding and head."""

    def __init__(self, head: torch.Tensor, vocab: int) -> None:
        self._head, self._tokens = head, 0
        hidden = head.shape[1]
        self._moment, self._head_rows = torch.zeros(hidden, hidden), torch.zeros(vocab)
        self._columns, self._rows = torch.zeros(hidden), torch.zeros(vocab)

    @torch.no_grad()
    def add_head(self, last: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Gradient of log p(drawn label) for the last hidden states [batch, length, hidden]; gathers p (1 - p)."""
        gradient = torch.empty_like(last)
        flat, slopes = last.reshape(-1, last.shape[-1]), gradient.view(-1, last.shape[-1])
        for start in range(0, len(flat), LOGIT_ROWS):
            part = flat[start : start + LOGIT_ROWS]
            p = (part @ self._head.T).softmax(-1)
            spread = p * (1 - p)
            weight = spread.sum(1)
            self._head_rows += spread.sum(0)
            self._moment += (part * weight[:, None]).T @ part
            self._tokens += len(part)
            drawn = _draw(p, generator)
            p.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=p.dtype))
            slopes[start : start + LOGIT_ROWS] = -p @ self._head
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

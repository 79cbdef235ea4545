"""Text that the source writes itself, token after token, its keys and values remembered."""

from __future__ import annotations

import numpy as np
import torch

from quantize.checkpoint import Checkpoint
from quantize.progress import track
from quantize.source.curvature import draw
from quantize.source.freed import return_freed
from quantize.source.named import named_model
from quantize.types import F32, I64

BATCH = 16  # sequences that are written together: each weight is read once a token for all of them


@torch.no_grad()
def generate(source: Checkpoint, starts: I64, numbers: F32, sample: I64) -> I64:
    """``starts`` I64[sequences, begun], and n tokens that follow, drawn by ``numbers`` F32[sequences, n]; all in one.

    The source is in memory as ``named_model`` has it, which looks at ``sample`` I64[sequences, length]. Raises CheckpointError as
    it does, and for a model that remembers nothing.
    """
    causal, parts = named_model(source, sample).causal, list[I64]()
    for start in range(0, len(starts), BATCH):
        own = torch.from_numpy(np.ascontiguousarray(numbers[start : start + BATCH]))
        ids, cache = torch.from_numpy(np.ascontiguousarray(starts[start : start + BATCH])), None
        out = [ids]
        for step in track(range(own.shape[1]), "writing a text"):
            logits, cache = causal.following(ids, cache)
            ids = draw(torch.softmax(logits, -1), own[:, step : step + 1])
            out.append(ids)
        parts.append(torch.cat(out, 1).numpy())
        return_freed()
    return np.concatenate(parts)

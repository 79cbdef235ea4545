"""From a tiny model to a store in one line, without calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from exporter.targets import TARGETS
from quantize.architecture.families import rotary_heads
from quantize.blocks import dequantize
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.floats import to_f32
from quantize.checkpoint.row_order import hf_row_index
from quantize.run.pipeline import quantize_checkpoint
from quantize.store.seal import OPEN, closed
from quantize.store.tensors import QuantizedStore
from quantize.types import QuantizedTensor, RowOrder
from tests.cases import config_of


def rtn_store(source: Path, out: Path, target: str = "llama.cpp", method: str = "rtn-oc", **config) -> QuantizedStore:
    """Quantize the model at ``source``; ``config``: options."""
    return quantize_checkpoint(open_checkpoint(source), out, config_of(method=method, **config), TARGETS[target])


def stored_weight(store: QuantizedStore, name: str) -> np.ndarray:
    """What the store holds, as F32 in Hugging Face row order."""
    tensor = store.read(name)
    weight = dequantize(tensor) if isinstance(tensor, QuantizedTensor) else to_f32(tensor.values, tensor.dtype)
    heads = rotary_heads(store.config, name)
    return weight if heads is None or store.row_order is RowOrder.HF else weight[hf_row_index(len(weight), heads)]


def reseal(plan: Path) -> None:
    """Give a plan.json that was changed by hand the digest that it would have been written with."""
    before = '"sha256": "'
    head, found, _ = plan.read_text().rpartition(before)
    assert found
    plan.write_bytes(closed(f'{head}{before}{OPEN}"\n}}\n'.encode(), before.encode()))


def unseal(plan: Path) -> None:
    """Take every digest out of a plan.json, as before there were seals: a change then meets the check of its kind."""
    held = json.loads(plan.read_bytes())
    del held["sha256"], held["assets"]
    for record in held["tensors"]:
        del record["sha256"]
    plan.write_text(json.dumps(held))

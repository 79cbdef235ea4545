"""Hugging Face folders whose matrices are quantized already, made by hand as their libraries write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GROUP, BLOCK = 32, 128
Packed = tuple[dict[str, torch.Tensor], torch.Tensor]  # tensors by what follows the module's name, and the weight they stand for


def _fp8(weight: torch.Tensor) -> Packed:
    """Codes F8_E4M3[OC, IC] and a scale for each block of 128 x 128."""
    rows, columns = weight.shape
    assert max(rows, columns) <= 2 * BLOCK
    scale = torch.stack([torch.stack([part.abs().max() / 448 for part in line.split(BLOCK, 1)]) for line in weight.split(BLOCK)])
    spread = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}, codes.float() * spread


def _int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [OC, IC] of 4 bits, scales F16 and zero points [OC, groups]."""
    groups = weight.reshape(len(weight), -1, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).half()
    zero = (-low / scale.float()).round().clamp(1, 15)
    codes = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, 15)
    return codes.reshape(weight.shape).int(), scale, zero.int()


def _words(codes: torch.Tensor) -> torch.Tensor:
    """I32[rows, columns / 8] of 4-bit codes [rows, columns], low bits first."""
    parts = codes.numpy().astype(np.int64).reshape(len(codes), -1, 8) << np.arange(0, 32, 4)
    return torch.from_numpy(parts.sum(-1).astype(np.uint32).view(np.int32))


def _gptq(weight: torch.Tensor) -> Packed:
    """Codes along IC, 8 to a word, [IC / 8, OC]; zero points less one along OC."""
    codes, scale, zero = _int4(weight)
    held = {
        "qweight": _words(codes).T.contiguous(),
        "qzeros": _words((zero - 1).T.contiguous()),
        "scales": scale.T.contiguous(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
    spread = (each.repeat_interleave(GROUP, 1) for each in (scale.float(), zero))
    step, middle = spread
    return held, step * (codes - middle)


def _packed(weight: torch.Tensor) -> Packed:
    """Symmetric 4-bit codes along IC, 8 to a word, their middle 8."""
    groups = weight.reshape(len(weight), -1, GROUP)
    scale = (groups.abs().amax(-1) / 7).bfloat16()
    codes = (groups / scale.float()[..., None]).round().clamp(-8, 7)
    shape = torch.tensor(weight.shape)
    held = {"weight_packed": _words((codes + 8).reshape(weight.shape).int()), "weight_scale": scale, "weight_shape": shape}
    return held, (codes * scale.float()[..., None]).reshape(weight.shape)


KINDS: Mapping[str, tuple[Callable[[torch.Tensor], Packed], Mapping[str, Any]]] = {
    "fp8": (_fp8, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK], "fmt": "e4m3"}),
    "gptq": (_gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}),
    "compressed-tensors": (
        _packed,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP},
                }
            },
        },
    ),
}


def quantized(model: Path, out: Path, kind: str) -> dict[str, np.ndarray]:
    """Write ``model`` with its blocks' matrices quantized; by name what they stand for."""
    pack, config = KINDS[kind]
    shutil.copytree(model, out)
    held, meant = dict[str, torch.Tensor](), dict[str, np.ndarray]()
    for name, weight in load_file(model / "model.safetensors").items():
        if weight.ndim == 2 and ".layers." in name:
            parts, value = pack(weight.float())
            held |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
            meant[name] = value.float().numpy()
        else:
            held[name] = weight
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(raw | {"quantization_config": config}))
    return meant

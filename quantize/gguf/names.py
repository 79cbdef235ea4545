"""Tensor names: Hugging Face on one side, GGUF on the other."""

from __future__ import annotations

import re

from gguf import MODEL_ARCH, get_tensor_name_map

from quantize.architecture.families import BLOCK_PARTS, FINAL_NORM
from quantize.model_config import EMBEDDING, HEAD

_MAP = get_tensor_name_map(MODEL_ARCH.QWEN3, 1)  # gguf-py's; a decoder with all parts that any here has
GLOBAL_NAMES = {
    stem: _MAP.get_name(stem) for stem in (weight.removesuffix(".weight") for weight in (EMBEDDING, FINAL_NORM, HEAD))
}
LAYER_NAMES = {part: str(_MAP.get_name(f"model.layers.0.{part}")).removeprefix("blk.0.") for part in BLOCK_PARTS}
WEIGHT, WEIGHT_IC = "weight", "weight_ic"  # the second: stored transposed, which only the gguf-adadim target does
_BLOCK, _LAYER = "blk.", "model.layers."
_OF_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.([^.].*\..+)")
_TO_HF = {gguf: hf for names in (GLOBAL_NAMES, LAYER_NAMES) for hf, gguf in names.items()}


def to_gguf_name(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` -> ``blk.3.ffn_up.weight``; the inverse of ``to_source_name``."""
    stem, _, leaf = name.rpartition(".")
    if not stem.startswith(_LAYER):
        return f"{GLOBAL_NAMES[stem]}.{leaf}" if stem in GLOBAL_NAMES else name
    index, _, part = stem.removeprefix(_LAYER).partition(".")
    return f"{_BLOCK}{index}.{LAYER_NAMES.get(part, part)}.{leaf}"


def to_hf_name(name: str) -> str:
    """``blk.3.ffn_up.weight`` (or ``.weight_ic``) -> ``model.layers.3.mlp.up_proj.weight``.

    Raises KeyError or ValueError for others.
    """
    stem, _, leaf = name.rpartition(".")
    leaf = WEIGHT if leaf == WEIGHT_IC else leaf
    if not stem.startswith(_BLOCK):
        return f"{_TO_HF[stem]}.{leaf}"
    _, index, part = stem.split(".", 2)
    if not index.isascii() or str(int(index)) != index.removeprefix("-"):
        raise ValueError(f"{name}: no layer is {index!r}")  # "00" and "+0" would be second names of layer 0
    return f"{_LAYER}{index}.{_TO_HF[part]}.{leaf}"


def to_source_name(name: str) -> str:
    """What a source calls any GGUF's tensor: ``to_hf_name`` where the families have one like it, else its own name, within a
    block after ``model.layers.3.``."""
    try:
        return to_hf_name(name)
    except (KeyError, ValueError):
        found = _OF_BLOCK.fullmatch(name)
        return name if found is None else f"{_LAYER}{found[1]}.{found[2]}"

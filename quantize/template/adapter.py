"""Runs llama.cpp's converter, under ``serve.py``: the converter brings another ``gguf`` than ours. Imports nothing of ours.

A request has ``path`` (folders for sys.path), ``folder``, ``out``, ``outtype``, ``pre`` and ``keys`` (strings to add). The answer
is {"left_out": names}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

# Keys that the converter reads, and where transformers 5 writes what they say.
MOVED = {"n_ctx": ("n_positions",), "rotary_pct": ("rope_parameters", "partial_rotary_factor")}


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """One model."""
    sys.path[0:1] = request["path"]  # in place of this file's folder
    return {"left_out": _convert(request)}


def _convert(request: Mapping[str, Any]) -> list[str]:
    """Names of the weights that the file does not hold."""
    conversion, base, gguf = (import_module(name) for name in ("conversion", "conversion.base", "gguf"))

    folder = Path(request["folder"])
    hparams = _over(base.ModelBase.load_hparams(folder, False), json.loads((folder / "config.json").read_text()))
    hparams |= {key: found for key, way in MOVED.items() if key not in hparams and (found := _at(hparams, way)) is not None}
    model_class = conversion.get_model_class(base.get_model_architecture(hparams, base.ModelType.TEXT), mmproj=False)
    if getattr(model_class, "supports_mtp_export", False):
        model_class.no_mtp = True  # heads for tokens further ahead: no block of the decoder
    if request["pre"]:
        base.TextModel.get_vocab_base_pre = _named(base.TextModel.get_vocab_base_pre, request["pre"])
    left_out = _noting(model_class)
    outtype = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}[request["outtype"]]
    model = model_class(
        folder, gguf.LlamaFileType[outtype], Path(request["out"].replace("{", "{{").replace("}", "}}")), hparams=hparams
    )
    for key, value in request["keys"].items():
        model.gguf_writer.add_string(key, value)
    model.write()
    return left_out


def _over(known: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of config.json, and over it what stands there: transformers 5 drops keys that it does not use."""
    out = dict(known)
    for key, value in raw.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        if value is not None or key not in out:
            out[key] = _over(out[key], value) if both else value
    return out


def _at(hparams: Any, way: Sequence[str]) -> Any:  # noqa: ANN401 - JSON
    """What stands there; None for nothing."""
    for key in way:
        hparams = hparams.get(key) if isinstance(hparams, dict) else None
    return hparams


def _named(find: Callable[..., str], pre: str) -> Callable[..., str]:
    """The pre-tokenizer that the user names, where the converter knows none."""

    def found(self: object, tokenizer: object) -> str:
        try:
            return find(self, tokenizer)
        except NotImplementedError:
            return pre

    return found


def _noting(model_class: Any) -> list[str]:  # noqa: ANN401 - the converter's
    """Names of the weights that the converter will pass over; filled while it runs."""
    left_out, kept = list[str](), model_class.filter_tensors

    def filter_tensors(item: tuple[str, Any]) -> tuple[str, Any] | None:
        found: tuple[str, Any] | None = kept(item)
        if found is None:
            left_out.append(item[0])
        return found

    model_class.filter_tensors = staticmethod(filter_tensors)
    return left_out

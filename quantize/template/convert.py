"""A Hugging Face folder of any architecture as a GGUF of floats: llama.cpp's own converter writes it, in a process of its own."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from quantize.checkpoint import check_folder, open_checkpoint
from quantize.checkpoint.gguf_tensors import open_values
from quantize.checkpoint.safetensors_file import QUANTIZED_BYTES, StoredTensor
from quantize.checkpoint.shards import FILE, files_digest, stored_tensors
from quantize.checkpoint.tokenizer_files import MORE_TEMPLATES
from quantize.errors import CheckpointError, OutputError, asked, shown
from quantize.foreign import quantized_by
from quantize.gguf.parts import ValueType, encode_string
from quantize.store.outputs import Unfinished, check_file
from quantize.store.seal import OPEN, close_file, file_holds
from quantize.template.converted import Converted
from quantize.template.converter import Converter
from quantize.template.process import Answer, ask
from quantize.template.room import check_gguf_room

ADAPTER = Path(__file__).with_name("adapter.py")
FLOAT_TYPES = "F32", "F16", "BF16"
NOT_READ = ("awq", "bitsandbytes")  # by the converter
UNPACKED = ("fp8", "gptq", "compressed-tensors", "mxfp4")  # by it, exactly
SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", f"{MORE_TEMPLATES}/*.jinja")  # what it reads beside weights
MADE_FROM, MADE_BY, MADE_WITH, SEAL = (f"adadim.converted.{word}" for word in ("sha256", "by", "pre", "seal"))  # its keys
BEFORE_SEAL = encode_string(SEAL) + struct.pack("<IQ", ValueType.STRING, len(OPEN))
OWN_CODE = "the model brings code of its own, which is never run"
PRE_UNKNOWN = "BPE pre-tokenizer was not recognized"


class _Answer(Answer):
    left_out: list[str] = msgspec.field(default_factory=list)


def convert(folder: Path, out: Path, converter: Converter, pre: str = "", force: bool = False) -> Converted:
    """Write ``folder`` as a GGUF of its own floats, whole or not at all; ``pre`` names a pre-tokenizer that the converter does
    not know.

    Raises CheckpointError for a folder that cannot be converted, or a file that llama.cpp does not run; OutputError.
    """
    check_folder(folder)
    check_file(out, force)
    raw = FILE.load(folder / "config.json", dict[str, Any])
    _check_quantized(folder, raw)
    stored = stored_tensors(folder, raw, QUANTIZED_BYTES)
    outtype = _outtype(stored)
    check_gguf_room(folder, out, (tensor.spec for tensor in stored.values()), outtype)
    with Unfinished(out, False, force) as unfinished:
        request = {
            "path": [str(path.resolve()) for path in converter.path],
            "folder": str(folder.resolve()),
            "out": str(unfinished.path),
            "outtype": outtype,
            "pre": pre,
            "keys": {**_keys(folder, stored, converter, pre), SEAL: OPEN},
        }
        left_out = _asked(folder, request)
        close_file(unfinished.path, BEFORE_SEAL)
        try:
            open_checkpoint(unfinished.path).specs  # noqa: B018 - llama.cpp runs two tokens for it
        except CheckpointError as error:
            said = str(error).replace(f"{unfinished.path}: ", "")
            raise CheckpointError(f"{folder}: was converted, but the file is of no use: {said}") from error
        unfinished.finish()
    return Converted(out, outtype, converter.name, _by_place(left_out))


def _keys(folder: Path, stored: Mapping[str, StoredTensor], converter: Converter, pre: str) -> dict[str, str]:
    return {MADE_FROM: folder_digest(folder, stored), MADE_BY: converter.name, **({MADE_WITH: pre} if pre else {})}


def folder_digest(folder: Path, stored: Mapping[str, StoredTensor]) -> str:
    """Hex digits of all that the converter may read."""
    files = {tensor.file for tensor in stored.values()} | {path for kind in SMALL for path in folder.glob(kind) if path.is_file()}
    return files_digest(files)


def _check_quantized(folder: Path, raw: Mapping[str, Any]) -> None:
    by = quantized_by(raw)
    if by is not None and by.lower() in NOT_READ:
        raise CheckpointError(
            f"{folder}: is quantized by {shown(by)}, which the converter does not read; use the model that it was made from, or "
            "where its library runs: AutoModelForCausalLM.from_pretrained(DIR).dequantize().save_pretrained(NEW)"
        )


def _outtype(stored: Mapping[str, StoredTensor]) -> str:
    """The dtype that holds every matrix exactly: F32 as soon as one is neither all F16 nor all BF16."""
    found = Counter(tensor.spec.dtype for tensor in stored.values() if len(tensor.spec.shape) > 1)
    return next(iter(found)) if len(found) == 1 and next(iter(found)) in FLOAT_TYPES else "F32"


def _asked(folder: Path, request: Mapping[str, Any]) -> list[str]:
    """Names of the weights that were left out. Raises CheckpointError for whatever the converter says against it."""
    answer = ask(ADAPTER, request, _Answer)
    if answer.error is None:
        return answer.left_out
    if PRE_UNKNOWN in answer.error:
        raise CheckpointError(
            f"{folder}: its pre-tokenizer is none that llama.cpp is known to have; name it with {asked('tokenizer_pre')}"
        )
    if "No space left" in answer.error:
        raise OutputError(f"{folder}: cannot be converted ({shown(answer.error)}); free some space")
    if OWN_CODE in answer.error:
        raise CheckpointError(f"{folder}: {OWN_CODE}, and the converter asks for it; use a model that transformers knows")
    raise CheckpointError(
        f"{folder}: llama.cpp's converter does not take it ({shown(answer.error)}); if that of a newer llama.cpp does, name its "
        f"checkout with {asked('converter')}"
    )


def _by_place(names: list[str]) -> dict[str, int]:
    """``model.vision_tower.encoder.layers.3.weight`` is counted under ``vision_tower``."""
    return dict(Counter(name.removeprefix("model.").partition(".")[0] for name in names))


def made_of(path: Path, folder: Path, converter: Converter, pre: str = "") -> bool:
    """Whether that GGUF is what ``convert`` would make, and whole. Raises CheckpointError for what cannot be read."""
    raw = FILE.load(folder / "config.json", dict[str, Any])
    values = open_values(path)[1]
    wanted = _keys(folder, stored_tensors(folder, raw, QUANTIZED_BYTES), converter, pre)
    return all(values.get(key) == wanted.get(key) for key in (MADE_FROM, MADE_BY, MADE_WITH)) and file_holds(path, BEFORE_SEAL)

"""Which files of a Hugging Face folder hold its weights, and where each tensor lies in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from quantize.checkpoint.safetensors_file import FLOAT_BYTES, StoredTensor, read_header
from quantize.errors import CheckpointError, shown
from quantize.foreign import TO_CONVERT, WHOLE_MODEL, foreign_folder
from quantize.model_config import CONFIG
from quantize.outside import Door

WHOLE, INDEX, INDEX_END = "model.safetensors", "model.safetensors.index.json", ".safetensors.index.json"
NAMED_WEIGHTS = "transformers_weights"  # config.json's key for weights under another name
LONGEST_NAME = 255  # bytes of a file name
FILE = Door(CheckpointError, "download it again")


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def files_digest(paths: Iterable[Path]) -> str:
    """Hex digits over names, sizes and bytes of files, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def stored_tensors(path: Path, raw: Mapping[str, Any], sizes: Mapping[str, int] = FLOAT_BYTES) -> dict[str, StoredTensor]:
    """Of the files that transformers would load: those that config.json names, else one whole file, else an index's shards.

    ``raw``: config.json. ``sizes``: bytes of the dtypes that may be there. Raises CheckpointError.
    """
    named = raw.get(NAMED_WEIGHTS)
    if named is not None:
        if not isinstance(named, str) or not named.endswith((".safetensors", INDEX_END)):
            raise CONFIG.refused(path / "config.json", f"{NAMED_WEIGHTS} is {shown(named)}, not the name of a safetensors file")
        _check_plain(named, path / "config.json")
        return _read_shards(path / named, sizes) if named.endswith(INDEX_END) else read_header(path / named, sizes)
    if (path / WHOLE).is_file():
        return read_header(path / WHOLE, sizes)
    if (path / INDEX).is_file():
        return _read_shards(path / INDEX, sizes)
    if any(path.glob("*.safetensors")):
        found = sorted(item.name for item in path.glob("*.safetensors"))
        raise CheckpointError(f"{path}: {found[0]} without {INDEX}; download the Hugging Face layout of this model whole")
    other = foreign_folder(path)
    if other is not None:
        raise CheckpointError(f"{path}: is {other.told}, and has no safetensors; {other.next(path, model=True)}")
    if any(path.glob("*.bin")) or any(path.glob("*.pt*")):
        raise CheckpointError(f"{path}: only pickled weights, which are never loaded; convert them: {TO_CONVERT.format(path)}")
    raise CheckpointError(f"{path}: the weights are missing: no {WHOLE} and no {INDEX}; {WHOLE_MODEL.format(folder=path)}")


def _read_shards(index: Path, sizes: Mapping[str, int]) -> dict[str, StoredTensor]:
    weight_map = FILE.load(index, _Index).weight_map
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        _check_plain(file, index)
        shard = index.parent / file
        if not shard.exists():
            raise CheckpointError(f"{shard}: cannot be read: {index.name} names it, and it is not there; download it again")
        for name, tensor in read_header(shard, sizes).items():
            if name in tensors:
                raise CheckpointError(f"{index.parent}: {name} is in {tensors[name].file.name} and in {file}; download it again")
            tensors[name] = tensor
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(f"{index.parent / file}: {name} is not in it, though {index.name} says so; download it again")
    return tensors


def _check_plain(file: str, where: Path) -> None:
    if Path(file).name != file or file in ("", ".", "..") or "\0" in file or len(file.encode()) > LONGEST_NAME:
        raise CheckpointError(f"{where}: {shown(file)!r} is not a plain file name; get the model from its own source")

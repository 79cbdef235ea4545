"""A GGUF's tensors as a source reads them: mapped, dequantized when asked for, of any type that gguf-py knows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from gguf import dequantize

from quantize.checkpoint.floats import CHUNK, FLOATS, check_finite, to_f32
from quantize.checkpoint.gguf_sizes import METADATA_ASSET
from quantize.checkpoint.gguf_tokenizer import tokenizer_assets
from quantize.checkpoint.gguf_values import GgufValues
from quantize.checkpoint.row_order import Index
from quantize.errors import CheckpointError
from quantize.foreign import foreign_gguf
from quantize.gguf.container import TensorInfo, encode_header
from quantize.gguf.files import GgufFiles, Misplaced, open_files
from quantize.gguf.names import WEIGHT_IC
from quantize.types import F32, U8, Array, PlainTensor


class GgufTensors:
    """Those of ``infos``, by the names that a source gives them: what of ``Checkpoint`` does not depend on the decoder."""

    def __init__(self, path: Path, files: GgufFiles, values: GgufValues, infos: Mapping[str, TensorInfo]) -> None:
        self.path, self._files, self._metadata, self._infos = path, files, values, infos

    def read(self, name: str) -> F32:
        """The tensor, dequantized, as F32."""
        return self.read_rows(name, 0, self._infos[name].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> F32:
        """Rows [start, stop) in the source's order, dequantized, as F32."""
        info = self._infos[name]
        if len(info.shape) == 1:
            rows = self._floats(name)
        else:
            rows = self._dequantize(info, self._rows(name, start, stop)).reshape(-1, *info.shape[1:])
            start, stop = 0, len(rows)
        check_finite(rows, "F32", name, str(self.path))
        return rows[start:stop]

    def raw(self, name: str) -> PlainTensor:
        """The tensor in its own dtype where that is F16, BF16 or F32, else dequantized."""
        info = self._infos[name]
        if info.type.name not in FLOATS or len(info.shape) == 1:
            return PlainTensor(name, self.read(name), "F32")
        values: Array = self._rows(name, 0, info.shape[0]).view(FLOATS[info.type.name]).reshape(info.shape)
        check_finite(values, info.type.name, name, str(self.path))
        return PlainTensor(name, values, info.type.name)

    @property
    def sha256(self) -> str:
        """Digest of the file, or of its files."""
        return self._files.sha256

    def assets(self) -> dict[str, bytes]:
        """All key-values verbatim in a GGUF without tensors, and the Hugging Face files that they amount to, as far as they are
        known exactly."""
        return dict(self._assets)

    @cached_property
    def _assets(self) -> dict[str, bytes]:
        kept = {METADATA_ASSET: encode_header(self._files.metadata, []), **self._own_assets()}
        return kept | tokenizer_assets(self._metadata, str(self.path))

    def _own_assets(self) -> dict[str, bytes]:
        """Files that only this kind of source has."""
        return {}

    def _order(self, name: str) -> Index | None:
        """Where the source's rows lie in the file's, intp[rows]; None where they lie in turn."""
        return None

    def _rows(self, name: str, start: int, stop: int) -> U8:
        """Block bytes U8[stop - start, row bytes] in the source's order."""
        rows = self._files.bytes_of(self._infos[name]).reshape(self._infos[name].shape[0], -1)
        order = self._order(name)
        return rows[start:stop] if order is None else rows[order[start:stop]]

    def _floats(self, name: str) -> F32:
        """A one-dimensional tensor in the source's order."""
        info, order = self._infos[name], self._order(name)
        values = self._dequantize(info, self._files.bytes_of(info))
        return values if order is None else values[order]

    def _dequantize(self, info: TensorInfo, data: U8) -> F32:
        if info.type.name in FLOATS:
            return to_f32(np.ascontiguousarray(data).view(FLOATS[info.type.name]), info.type.name)
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused by whoever reads it
                values: F32 = dequantize(np.ascontiguousarray(data), info.type)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: {info.name}: type {info.type.name} cannot be decoded; use another file"
            ) from error
        return values

    def _same(self, left: str, right: str) -> bool:
        rows, columns = self._infos[left].shape
        step = max(1, CHUNK // columns)
        return all(
            np.array_equal(self.read_rows(left, i, min(i + step, rows)), self.read_rows(right, i, min(i + step, rows)))
            for i in range(0, rows, step)
        )


def open_language_model(path: Path) -> tuple[GgufFiles, GgufValues]:
    """All files of a GGUF, and its metadata. Raises CheckpointError for a damaged one, and for what is no language model."""
    files, values = open_values(path)
    other = foreign_gguf(path, values)
    if other is not None:
        raise CheckpointError(other)
    transposed = next((name for name in files.tensors if name.endswith(WEIGHT_IC)), None)
    if transposed is not None:
        raise CheckpointError(f"{path}: {transposed} lies transposed (a gguf-adadim file); use the model it was made from")
    return files, values


def open_values(path: Path) -> tuple[GgufFiles, GgufValues]:
    """The same of any GGUF. Raises CheckpointError."""
    try:
        files = open_files(path)
        return files, GgufValues(files.metadata, str(path))
    except Misplaced as error:
        raise CheckpointError(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def other_gguf(path: Path) -> str | None:
    """What to say of a GGUF that is sound, but no language model, or one file of several that are not found from it.

    None for any other file.
    """
    try:
        return foreign_gguf(path, open_values(path)[1])
    except CheckpointError as error:
        return str(error) if isinstance(error.__cause__, Misplaced) else None

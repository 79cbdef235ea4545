"""A GGUF's header taken piece by piece: no count or length from a file leads past its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime_checks.reference.decode import U8, Array, DamagedFileError

SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
MAX_COUNT = 1 << 16  # of tensors, and of pairs
MAX_HEADER = 1 << 27  # bytes


class Cursor:
    """A place in the mapped file that never passes its end."""

    def __init__(self, path: Path, data: U8) -> None:
        self.path, self.data, self.position = path, data, 0

    def take(self, count: int) -> U8:
        """The next ``count`` bytes."""
        if count > self.data.size - self.position:
            raise DamagedFileError(f"{self.path}: {count} bytes wanted at {self.position}, past the end; it is truncated")
        if self.position + count > MAX_HEADER:
            raise DamagedFileError(f"{self.path}: a header of more than {MAX_HEADER} bytes, which no model has")
        taken = self.data[self.position : self.position + count]
        self.position += count
        return taken

    def scalar(self, dtype: str) -> int:
        """One integer."""
        return int(self.take(np.dtype(dtype).itemsize).view(dtype)[0])

    def string(self) -> str:
        """Length and UTF-8 bytes; bytes that are none survive as surrogates."""
        return self.take(self.scalar("<u8")).tobytes().decode("utf-8", "surrogateescape")

    def check_room(self, count: int, least: int) -> None:
        """Raises DamagedFileError where ``count`` things of at least so many bytes cannot be in what is left."""
        if count * least > self.data.size - self.position:
            raise DamagedFileError(f"{self.path}: {count} entries at {self.position} go past the end; it is truncated")
        if count > MAX_COUNT:
            raise DamagedFileError(f"{self.path}: {count} entries, which no model has")

    def value(self, kind: int) -> object:
        """A value of that type as Python's own; arrays of numbers and bools as numpy's, of strings as lists."""
        if kind == ARRAY:
            kind, count = self.scalar("<i4"), self.scalar("<u8")
            return self._strings(count) if kind == STRING else self._numbers(kind, count)
        return self.string() if kind == STRING else self._numbers(kind, 1)[0].item()

    def _numbers(self, kind: int, count: int) -> Array:
        if kind not in SCALARS:
            raise DamagedFileError(f"{self.path}: value of type {kind} at {self.position} is unknown here")
        items: Array = self.take(count * np.dtype(SCALARS[kind]).itemsize).view(SCALARS[kind])
        return items != 0 if kind == BOOL else items

    def _strings(self, count: int) -> list[str]:
        if 8 * count > min(self.data.size, MAX_HEADER) - self.position:
            raise DamagedFileError(f"{self.path}: {count} strings at {self.position} go past the end; it is truncated")
        out: list[str] = []
        data, position, end = self.data.data, self.position, min(self.data.size, MAX_HEADER)
        for _ in range(count):
            start = position + 8
            position = start + int.from_bytes(data[position:start], "little")
            if position > end or start > end:
                raise DamagedFileError(f"{self.path}: string {len(out)} of {count} goes past the end; it is truncated")
            out.append(str(data[start:position], "utf-8", "surrogateescape"))
        self.position = position
        return out

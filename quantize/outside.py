"""The door: small files from outside are read here, once, bounded, into types that are known.

A file is a regular one and not larger than its kind may be. JSON is JSON: UTF-8, no key twice in an object, not nested without
end, no half of a surrogate pair. What the project reads of it is a ``msgspec.Struct``; other keys are left alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tomllib
from collections import Counter
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from quantize.errors import AdaDimError, shown

T = TypeVar("T")
MIB = 1 << 20
DEPTH = 64  # of objects and lists in one another
LARGEST = 2**31 - 1  # of a size: what runtimes hold in an int32
Size = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Positive = Annotated[float, msgspec.Meta(gt=0, lt=3.5e38)]  # finite in float32
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_PATH = re.compile(r"^(?P<problem>.*) - at `(?P<key>key in )?`?\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


@dataclass(frozen=True)
class Door:
    """How one kind of file is read and refused: ``error`` is raised, ``mend`` says what to do, ``most`` bytes are read."""

    error: type[AdaDimError]
    mend: str
    most: int = 64 * MIB

    def refused(self, where: object, problem: str) -> AdaDimError:
        """The error, to be raised."""
        return self.error(f"{where}: {problem}; {self.mend}")

    def read(self, path: Path) -> bytes:
        """A whole file. Raises the door's error for one that is missing, unreadable, too large or no regular file."""
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                if size > self.most:
                    raise self.refused(path, f"{size:,} bytes, where {self.most:,} are the most that is read")
                return file.read(size)
        except PermissionError as error:
            raise self.error(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        except OSError as error:
            raise self.refused(path, f"cannot be read ({error.strerror or error})") from error

    def text(self, data: bytes, where: object) -> str:
        """UTF-8. Raises the door's error."""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refused(where, f"not UTF-8 at byte {error.start}") from error

    def json(self, data: bytes, where: object, schema: type[T]) -> T:
        """JSON as ``schema``, a ``msgspec.Struct`` or another type that msgspec knows. Raises the door's error."""
        self.text(data, where)
        try:
            value = parsed(data)
        except ValueError as error:
            raise self.refused(where, f"not JSON ({shown(error)})") from error
        return self.convert(value, where, schema)

    def load(self, path: Path, schema: type[T]) -> T:
        """``read``, then ``json``."""
        return self.json(self.read(path), path, schema)

    def toml(self, path: Path, schema: type[T]) -> T:
        """TOML as ``schema``. Raises the door's error."""
        try:
            value = tomllib.loads(self.text(self.read(path), path))
        except (ValueError, RecursionError) as error:
            raise self.refused(path, f"not TOML ({shown(error)})") from error
        return self.convert(value, path, schema)

    def convert(self, value: object, where: object, schema: type[T]) -> T:
        """A parsed value as ``schema``, nothing guessed: "32" and 1.0 are no integers. Raises the door's error."""
        try:
            return msgspec.convert(value, schema, strict=True)
        except msgspec.ValidationError as error:
            raise self.refused(where, _problem(str(error), value)) from error


def parsed(data: bytes) -> Any:  # noqa: ANN401 - JSON
    """What JSON says. Raises ValueError, also for a key twice, nesting without end, and half of a surrogate pair."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        _check_depth(value)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair is no text") from error
    except RecursionError as error:
        raise ValueError("nested without end") from error
    return value


def open_regular(path: Path) -> BufferedReader:
    """The file, opened to be read. Raises OSError for what has no end or would be waited for, as a device or a pipe, as well."""
    # O_NONBLOCK: opening a pipe does not wait for a writer, so that it can be refused.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "no regular file", str(path))


def sha256_of(*paths: Path) -> str:
    """Hex digest of a file, or of several, one after the other. Raises OSError, also for what is no regular file."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} is twice in an object")
    return out


def _check_depth(value: object) -> None:
    """Level by level, so that the check itself cannot run out of stack."""
    level = [value]
    for _ in range(DEPTH):
        inside = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEPTH} levels")


def _problem(message: str, value: Any) -> str:  # noqa: ANN401 - parsed JSON
    """msgspec's message with the key in front, as a file's reader would say it, and the value that is there."""
    message = message.replace("`", "") if " - at `" not in message else message
    found = _PATH.match(message)
    if found is None:
        return shown(message)  # which may name a key of any length
    problem, path = shown(found["problem"].replace("`", "")), found["path"].lstrip(".")
    if found["key"] or "..." in path:
        return f"{shown(path) or 'its top'}: {problem}"
    for name, index in _STEP.findall(found["path"]):
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):
            return f"{shown(path)}: {problem}"
    is_ = f"'{shown(value)}'" if isinstance(value, str) else shown(value)
    return f"{shown(path) or 'its top'} is {is_}: {problem}"

"""Seeded changes to small valid inputs: bytes at random, a GGUF by its fields, JSON by its tree.

Each mutator takes the input and a ``random.Random`` and returns the changed bytes; the same seed gives the same bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

U64 = (0, 1, 2, 3, 31, 33, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)
DEEP = 2000
ODD_JSON = (
    *("null", "true", "false", "-1", "0", "1", "1.9", "1e999", "-1e999", "NaN", "Infinity", "9" * 30, "9" * 5000),
    *('"32"', '""', '"x"', '"\\ud800"', '"\\u0000\\u001b[31m\\u202e"', '"' + "A" * 100_000 + '"'),
    *("[]", "[0]", "[null]", "{}", '{"a": 1, "a": 2}', "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP),
)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}  # GGUF value type -> struct
TEXT, ARRAY = 8, 9
ODD_TEXTS = (b"", b"x", b"0", b"\xff\xfe", b"\0", b"a" * 63, b"a" * 64, b"llama", b"gpt2", b"yarn", "\u202e\x1b[31m".encode())


def mutate_bytes(data: bytes, rng: Random, limit: int | None = None) -> bytes:
    """One to four blind changes, in the first ``limit`` bytes where that is given."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(max(1, min(len(out), limit or len(out))))
        match rng.randrange(6):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                out[at : at + 8] = struct.pack("<Q", rng.choice(U64))
            case 2:
                out[at : at + 4] = struct.pack("<I", rng.choice(U64) & 0xFFFFFFFF)
            case 3:
                del out[at : at + rng.randrange(1, 64)]
            case 4:
                out[at:at] = rng.choice((bytes(out[at : at + 32]), bytes(32), b"\xff" * 7))
            case _:
                del out[at:]
    return bytes(out)


def mutate_json(data: bytes, rng: Random) -> bytes:
    """One to three values of the tree replaced by odd ones, taken out, or written twice."""
    root = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = [place for place in _places(root) if not isinstance(place[0][place[1]], _Raw)]
        if not places:
            break
        parent, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[_Raw(json.dumps(key))] = _Raw(rng.choice(ODD_JSON))  # the same key again
            case 2 if isinstance(parent, dict):
                parent[rng.choice(("", "x", f"{key}x", "../x", "\ud800"))] = parent[key]
            case _:
                parent[key] = _Raw(rng.choice(ODD_JSON))
    return _dump(root).encode("utf-8", "surrogatepass")


class _Raw:
    """A text that stands in the JSON as it is; as a key, beside an equal one."""

    def __init__(self, text: str) -> None:
        self.text = text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) of a tree."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        if not isinstance(key, _Raw):
            yield value, key
            yield from _places(value[key])


def _dump(value: Any) -> str:
    if isinstance(value, _Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_dump(key)}: {_dump(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dump, value)) + "]"
    return json.dumps(value)


class GgufParts:
    """A GGUF (version 3, alignment 32) taken apart without a check: lists that may be changed, then ``encode``."""

    def __init__(self, data: bytes) -> None:
        self.version, n_tensors, n_pairs = struct.unpack_from("<IQQ", data, 4)
        self._data, self._at = data, 24
        self.pairs: list[list[Any]] = [[self._text(), *self._value()] for _ in range(n_pairs)]  # key, type, payload
        self.tensors: list[list[Any]] = [self._tensor() for _ in range(n_tensors)]  # name, dims innermost first, type, offset
        self.body = data[-(-self._at // 32) * 32 :]
        self.counts: list[int | None] = [None, None]  # tensors and key-values that the file claims, where they differ

    def encode(self) -> bytes:
        """The file's bytes again."""
        claimed = [
            len(held) if count is None else count for count, held in zip(self.counts, (self.tensors, self.pairs), strict=True)
        ]
        out = bytearray(b"GGUF" + struct.pack("<IQQ", self.version, *claimed))
        for key, kind, payload in self.pairs:
            out += text(key) + struct.pack("<I", kind) + payload
        for name, dims, kind, offset in self.tensors:
            out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        return bytes(out) + bytes(-len(out) % 32) + self.body

    def _take(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _text(self) -> bytes:
        return bytes(self._take(f"{self._take('Q')}s"))

    def _value(self) -> tuple[int, bytes]:
        kind, start = self._take("I"), self._at
        item, count = (self._take("I"), self._take("Q")) if kind == ARRAY else (kind, 1)
        for _ in range(count):
            self._text() if item == TEXT else self._take(SCALARS[item])
        return kind, self._data[start : self._at]

    def _tensor(self) -> list[Any]:
        name, n_dims = self._text(), self._take("I")
        return [name, [self._take("Q") for _ in range(n_dims)], self._take("I"), self._take("Q")]


def text(data: bytes) -> bytes:
    """A string as GGUF stores it."""
    return struct.pack("<Q", len(data)) + data


def mutate_gguf(data: bytes, rng: Random) -> bytes:
    """One to three fields of a valid GGUF changed: keys, values, types, names, shapes, offsets, counts, version, length."""
    parts = GgufParts(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        change = rng.choice((_change_pair, _change_tensor, _change_file))
        change(parts, rng)
    return parts.encode()


def odd_value(rng: Random) -> tuple[int, bytes]:
    """A GGUF value of any type: (type, payload)."""
    kind = rng.choice((*SCALARS, TEXT, ARRAY))
    if kind == TEXT:
        return kind, text(rng.choice(ODD_TEXTS))
    if kind == ARRAY:
        item, count = rng.choice((0, 4, 5, 6, TEXT, ARRAY, 99)), rng.choice((0, 1, 3, 2**31, 2**63, 2**64 - 1))
        return kind, struct.pack("<IQ", item, count) + b"".join([text(b"q") if item == TEXT else bytes(8)] * min(count, 3))
    if SCALARS[kind] in "fd":
        return kind, struct.pack("<" + SCALARS[kind], rng.choice((0.0, -1.0, 1.5, 1e30, float("inf"), float("nan"))))
    return kind, struct.pack("<Q", rng.choice(U64))[: struct.calcsize("<" + SCALARS[kind])]


def _change_pair(parts: GgufParts, rng: Random) -> None:
    index = rng.randrange(len(parts.pairs))
    key, kind, payload = parts.pairs[index]
    match rng.randrange(6):
        case 0:
            parts.pairs[index] = [key, *odd_value(rng)]
        case 1 if kind in SCALARS:
            parts.pairs[index][2] = struct.pack("<Q", rng.choice(U64))[: len(payload)]
        case 1 | 2:
            at = rng.randrange(len(payload))
            parts.pairs[index][2] = payload[:at] + bytes([rng.randrange(256)]) + payload[at + 1 :]
        case 3 if len(parts.pairs) > 1:
            del parts.pairs[index]
        case 4:
            parts.pairs.append([key, kind, payload])
        case _:
            parts.pairs.append([rng.choice((*ODD_TEXTS, b"general.alignment", b"split.count", b"x")), *odd_value(rng)])


def _change_tensor(parts: GgufParts, rng: Random) -> None:
    index = rng.randrange(len(parts.tensors))
    name, dims, kind, offset = parts.tensors[index]
    match rng.randrange(6):
        case 0:
            parts.tensors[index][0] = rng.choice((*ODD_TEXTS, name[:-1], name.replace(b".0.", b".00."), parts.tensors[0][0]))
        case 1:
            parts.tensors[index][1] = [rng.choice((*dims, *U64)) for _ in range(rng.choice((0, 1, 2, 2, 3, 4, 5)))]
        case 2:
            parts.tensors[index][2] = rng.choice((*range(45), 99, 2**31, 2**32 - 1))
        case 3:
            parts.tensors[index][3] = rng.choice((offset + 1, offset + 32, max(0, offset - 32), parts.tensors[0][3], *U64))
        case 4 if len(parts.tensors) > 1:
            del parts.tensors[index]
        case _:
            parts.tensors.append([rng.choice((name, b"output_norm.bias", b"rope_freqs.weight", b"x\xff")), dims, kind, offset])


def _change_file(parts: GgufParts, rng: Random) -> None:
    match rng.randrange(5):
        case 0 | 1:
            parts.counts[rng.randrange(2)] = rng.choice(U64)
        case 2:
            parts.version = rng.choice((0, 1, 2, 4, 2**31, 3 << 24))
        case 3:
            parts.body = parts.body[: rng.randrange(len(parts.body) + 1)]
        case _:
            parts.body += bytes(rng.choice((1, 31, 5000, 100_000)))

"""The GGUF container: gguf-py reads what we encode, we read what gguf-py encodes, and no lie gets past the parser."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from quantize.gguf.container import TensorInfo, Value, ValueType, encode_header, padded, parse_header

VALUES = {
    "a.u8": (ValueType.U8, 200),
    "a.i8": (ValueType.I8, -3),
    "a.u16": (ValueType.U16, 60000),
    "a.i16": (ValueType.I16, -300),
    "a.u32": (ValueType.U32, 4_000_000_000),
    "a.i32": (ValueType.I32, -70000),
    "a.f32": (ValueType.F32, 0.5),
    "a.bool": (ValueType.BOOL, True),
    "a.text": (ValueType.STRING, "größer\n"),
    "a.u64": (ValueType.U64, 2**63),
    "a.i64": (ValueType.I64, -(2**40)),
    "a.f64": (ValueType.F64, 1e-300),
}
ARRAYS = {"b.texts": (ValueType.STRING, ["", "x", "é"]), "b.ints": (ValueType.I32, [1, -2]), "b.none": (ValueType.F32, [])}
METADATA = {"general.architecture": Value.encode(ValueType.STRING, "llama")}
METADATA |= {key: Value.encode(kind, value) for key, (kind, value) in VALUES.items()}
METADATA |= {key: Value.encode_array(kind, value) for key, (kind, value) in ARRAYS.items()}
TENSORS = [TensorInfo("one", Kind.Q4_0, (3, 64), 0), TensorInfo("two", Kind.F32, (5,), 128)]


@pytest.fixture
def file():
    return encode_header(METADATA, TENSORS) + bytes(128 + 32)


def test_round_trip(file):
    header = parse_header(file)
    assert header.metadata == METADATA and list(header.tensors.values()) == TENSORS
    assert header.data_start == len(file) - 160
    assert header.metadata["a.text"].decode() == "größer\n" and header.metadata["b.texts"].decode() == ["", "x", "é"]
    assert {key: METADATA[key].decode() for key in VALUES} == {key: value for key, (_, value) in VALUES.items()}


def test_gguf_py_reads_it(tmp_path, file):
    path = tmp_path / "x.gguf"
    path.write_bytes(file)
    reader = gguf.GGUFReader(path)
    for key, (_, value) in (VALUES | ARRAYS).items():
        assert reader.fields[key].contents() == value or value == []
    assert [(t.name, t.tensor_type, tuple(t.shape[::-1])) for t in reader.tensors] == [(t.name, t.type, t.shape) for t in TENSORS]


@pytest.mark.parametrize("text", ["v", "v" * 33])  # where 32 bytes more end in another block of 64
def test_it_reads_gguf_py(tmp_path, text):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_string("k", text)
    writer.add_custom_alignment(64)
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = (tmp_path / "x.gguf").read_bytes()
    header = parse_header(data)
    info = header.tensors["t"]
    start = header.data_start + info.offset
    assert start % 64 == 0 and info.shape == (2, 3)
    np.testing.assert_array_equal(np.frombuffer(data[start : start + info.nbytes], np.float32), np.arange(6))


def test_every_truncation_is_noticed(file):
    for size in range(len(file) - 12):  # the last bytes are padding
        with pytest.raises(ValueError, match=r"truncated|no GGUF"):
            parse_header(file[:size])


def test_every_flipped_byte_is_survived(file):
    for position in range(len(file) - 160):
        spoiled = bytearray(file)
        spoiled[position] ^= 0xFF
        try:
            header = parse_header(bytes(spoiled))
            [value.decode() for value in header.metadata.values()]
        except ValueError:
            pass  # the only error that callers catch


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"general.alignment": Value.encode(ValueType.U32, 24)}, [], "no power of two"),
        ({"": Value.encode(ValueType.U32, 1)}, [], "empty or twice"),
        ({"n": Value(ValueType.ARRAY, b"\x09\0\0\0" + bytes(8))}, [], "array of arrays"),
        ({}, [TENSORS[0], TENSORS[0]], "twice"),
        ({}, [TensorInfo("odd", Kind.Q4_0, (3, 40), 0)], "rows of 40 are no multiple of Q4_0's block"),
        ({}, [TensorInfo("far", Kind.F32, (1,), 1 << 40)], "far is at byte 1099511627776 of the data, not at 0"),
        ({}, [TensorInfo("big", Kind.F32, (1 << 62, 1 << 62), 0)], "truncated: big"),
        ({}, [TensorInfo("deep", Kind.F32, (1,) * 5, 0)], "5 dimensions"),
    ],
)
def test_lies(metadata, tensors, message):
    data = bytearray(encode_header({k: v for k, v in metadata.items() if "alignment" not in k}, tensors) + bytes(64))
    if "general.alignment" in metadata:
        data = encode_header({"general.alignment": Value.encode(ValueType.U32, 32)}, []).replace(b"\x20\0\0\0", b"\x18\0\0\0")
    with pytest.raises(ValueError, match=message):
        parse_header(bytes(data))


def test_the_longest_name_is_taken():
    info = TensorInfo("n" * 63, Kind.F32, (1,), 0)
    assert list(parse_header(encode_header({}, [info]) + bytes(4)).tensors.values()) == [info]


@pytest.mark.parametrize(("tensors", "keys", "what"), [(1 << 17, 0, "131072 tensors"), (0, 1 << 17, "131072 keys")])
def test_more_entries_than_any_model_has_are_not_read(tensors, keys, what):
    data = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + bytes(32 << 17)
    with pytest.raises(ValueError, match=f"{what}; at most 65536 are read"):
        parse_header(data)


def test_padded():
    assert [padded(n, 32) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]

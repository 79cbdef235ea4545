from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_checks.reference.decode import BLOCK_BYTES, DamagedFileError, block_codes, decode_blocks, decode_floats, matmul
from runtime_checks.reference.gguf import GgufTensor, decode_gguf, gguf_codes, read_gguf, read_metadata
from tests import word_blocks
from tests.runtime_checks.made import random_blocks

ONE, TWO = b"\x00\x3c", b"\x00\x40"  # float16 1 and 2
NIBBLES = bytes(range(0x10, 0x20))  # byte i: low nibble i, high nibble 1
LEVELS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
LOW = [float(i) for i in range(16)]
# One block by hand for each format: bytes, then the 32 weights.
GOLDEN = {
    "Q4_0": (TWO + NIBBLES, [2 * (v - 8) for v in LOW] + [-14.0] * 16),
    "Q4_1": (TWO + ONE + NIBBLES, [2 * v + 1 for v in LOW] + [3.0] * 16),
    "Q5_0": (TWO + b"\x01\x00\x00\x80" + NIBBLES, [0.0] + [2 * (v - 16) for v in LOW[1:]] + [-30.0] * 15 + [2.0]),
    "Q5_1": (TWO + ONE + b"\x01\x00\x00\x80" + NIBBLES, [33.0] + [2 * v + 1 for v in LOW[1:]] + [3.0] * 15 + [35.0]),
    "Q8_0": (TWO + bytes([0, 1, 127, 128, 255]) + bytes(27), [0.0, 2.0, 254.0, -256.0, -2.0] + [0.0] * 27),
    "IQ4_NL": (TWO + NIBBLES, [2.0 * v for v in LEVELS] + [-208.0] * 16),
}
# Super-blocks: code i is i modulo the number of codes; d is 1 and dmin -2, so minimums are added twice.
SCALES, MINS = [1, 20, 34, 63, 5, 22, 39, 60], [2, 17, 33, 62, 6, 23, 40, 61]
PAIRS = "003c00c0" + "0154a2ff0251a1fe657687dc"
STEPS = "".join(f"{i:x}{i:x}" for i in range(16)) * 8
TWO_BITS = "0055aaff" * 16
PLACES = range(256)
for name, stored, values in (
    (
        "Q2_K",
        "".join(f"{15 - i:x}{i:x}" for i in range(16)) + TWO_BITS + "003c00c0",
        [i // 16 * (i % 4) + 2 * (15 - i // 16) for i in PLACES],
    ),
    (
        "Q3_K",
        "00000000ffffffff" * 4 + TWO_BITS + "004488cc" * 2 + "e4" * 4 + "003c",
        [(4 * (i // 16) - 32) * (i % 8 - 4) for i in PLACES],
    ),
    ("Q4_K", PAIRS + STEPS, [SCALES[i // 32] * (i % 16) + 2 * MINS[i // 32] for i in PLACES]),
    ("Q5_K", PAIRS + "00" * 16 + "ff" * 16 + STEPS, [SCALES[i // 32] * (i % 32) + 2 * MINS[i // 32] for i in PLACES]),
    ("TQ2_0", TWO_BITS + "003c", [i % 4 - 1 for i in PLACES]),
    ("MXFP4", "82" + STEPS[:32], [4 * v for v in (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)] * 2),
    (
        "Q6_K",
        STEPS + ("88" * 16 + "dd" * 16) * 2 + "f8f9fafbfcfdfeff0001020304050607" + "003c",
        [(i // 16 - 8) * (i % 64 - 32) for i in PLACES],
    ),
    ("IQ4_XS", "003c" + "50fa" + "80808080" + STEPS, [(8 * (i // 32) - 32) * LEVELS[i % 16] for i in PLACES]),
):
    GOLDEN[name] = (bytes.fromhex(stored), [float(value) for value in values])
for name, stored in word_blocks.STORED.items():
    GOLDEN[name.upper()] = (bytes.fromhex(stored), word_blocks.values(name))
KINDS = sorted(BLOCK_BYTES)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_block(kind):
    data, weights = GOLDEN[kind]
    assert decode_blocks(kind, np.frombuffer(data, np.uint8)[None]).tolist() == [weights]


def test_codes_are_what_the_block_stores():
    codes, params = block_codes("Q5_1", np.frombuffer(GOLDEN["Q5_1"][0], np.uint8)[None])
    assert codes[0].tolist() == [16, *range(1, 16), *[1] * 15, 17]
    assert (params["d"].tolist(), params["m"].tolist()) == ([[2.0]], [[1.0]])
    codes, _ = block_codes("Q8_0", np.frombuffer(GOLDEN["Q8_0"][0], np.uint8)[None])
    assert codes[0, :5].tolist() == [128, 129, 255, 0, 127]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_bytes_decode_as_in_gguf_py(kind, seed):
    rng = np.random.default_rng(seed)
    data = random_blocks(kind, 3, 5, rng)
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(decode_blocks(kind, data).view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats_decode_as_in_gguf_py(kind):
    data = np.random.default_rng(1).integers(0, 120, (4, 24), np.uint8)
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(decode_floats(kind, data), theirs)


def test_matmul():
    x, w = np.eye(2, 3, dtype=np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    assert matmul(x, w).tolist() == [[0, 3], [1, 4]]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def container(pairs=(), tensors=(), data=b"", version=3, alignment=32) -> bytes:
    """A GGUF file; ``pairs``: (key, type, value bytes), ``tensors``: (name, dims, type, offset)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, kind, value in pairs:
        out += text(key) + struct.pack("<i", kind) + value
    for name, dims, kind, offset in tensors:
        out += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}q", *dims) + struct.pack("<iQ", kind, offset)
    return out + bytes(-len(out) % alignment) + data


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_file_by_hand(tmp_path):
    pairs = [
        ("s", 8, text("Ünïcode")),
        ("b", 7, b"\x01"),
        ("i", 5, struct.pack("<i", -3)),
        ("f", 6, struct.pack("<f", 0.5)),
        ("names", 9, struct.pack("<iQ", 8, 2) + text("x") + text("")),
        ("ids", 9, struct.pack("<iQ", 4, 3) + struct.pack("<3I", 1, 2, 3)),
        ("flags", 9, struct.pack("<iQ", 7, 2) + b"\x00\x01"),
    ]
    tensors = [("a", (3,), 0, 0), ("w", (32, 2), 2, 32)]
    block = GOLDEN["Q4_0"][0]
    file = read_gguf(
        write(tmp_path / "f.gguf", container(pairs, tensors, struct.pack("<3f20x", 1, 2, 3) + block * 2 + bytes(28)))
    )
    scalars = {"s": "Ünïcode", "b": True, "i": -3, "f": 0.5}
    arrays = {key: file.metadata.pop(key).tolist() for key in ("ids", "flags")}
    assert arrays == {"ids": [1, 2, 3], "flags": [False, True]} and file.metadata == scalars | {"names": ["x", ""]}
    assert decode_gguf(file.tensors["a"]).tolist() == [1, 2, 3]
    assert (file.tensors["w"].kind, file.tensors["w"].shape) == ("Q4_0", (2, 32))
    assert decode_gguf(file.tensors["w"]).tolist() == [GOLDEN["Q4_0"][1]] * 2
    assert decode_gguf(file.tensors["w"].rows(1, 2)).shape == (1, 32)
    assert gguf_codes(file.tensors["w"])[0][0, :4].tolist() == [0, 1, 2, 3]


def test_agrees_with_gguf_py_on_a_file_of_its_own(tmp_path):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "f.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b c", "日本"])
    for kind in KINDS:
        writer.add_tensor(kind, random_blocks(kind, 4, 2, rng), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "f.gguf")
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b c", "日本"]
    for tensor in gguf.GGUFReader(tmp_path / "f.gguf").tensors:
        mine = decode_gguf(file.tensors[tensor.name])
        assert mine.shape == (4, 2 * gguf.GGML_QUANT_SIZES[tensor.tensor_type][0])
        np.testing.assert_array_equal(mine, gguf.quants.dequantize(tensor.data, tensor.tensor_type))


F32_PAIR = (("x", (4,), 0, 0), ("y", (4,), 0, 32))
LIES = {
    "no magic": (b"GGML" + bytes(40), "does not begin with GGUF"),
    "too short": (b"GGUF\x03", "5 bytes are no GGUF file"),
    "old version": (container(version=1), "version 1"),
    "a key twice": (container([("k", 7, b"\0"), ("k", 7, b"\0")]), "'k' is empty or there twice"),
    "an empty key": (container([("", 7, b"\0")]), "empty"),
    "unknown value type": (container([("k", 13, b"\0")]), "type 13"),
    "array of arrays": (container([("k", 9, struct.pack("<iQ", 9, 1) + bytes(16))]), "type 9"),
    "a string beyond the end": (container([("k", 8, struct.pack("<Q", 1 << 40))]), "past the end"),
    "an array beyond the end": (container([("k", 9, struct.pack("<iQ", 4, 1 << 60))]), "past the end"),
    "more pairs than there are": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "past the end"),
    "a tensor twice": (container(tensors=(F32_PAIR[0], ("x", (4,), 0, 32)), data=bytes(64)), "x is listed twice"),
    "a gap": (container(tensors=(F32_PAIR[0], ("y", (4,), 0, 64)), data=bytes(96)), "y is at 64, not at 32"),
    "truncated data": (container(tensors=F32_PAIR, data=bytes(40)), "y needs 16 bytes, the file has 8"),
    "five dimensions": (container(tensors=[("x", (1, 1, 1, 1, 1), 0, 0)], data=bytes(32)), "5 dimensions"),
    "a long name": (container(tensors=[("x" * 64, (1,), 0, 0)], data=bytes(32)), "wrong length"),
    "a negative shape": (container(tensors=[("x", (-4,), 0, 0)], data=bytes(32)), "shape"),
    "an unknown type": (container(tensors=[("x", (256,), 19, 0)], data=bytes(50)), "type 19"),
    "half a block": (container(tensors=[("x", (48,), 2, 0)], data=bytes(36)), "rows of 48"),
    "odd alignment": (container([("general.alignment", 4, struct.pack("<I", 48))], F32_PAIR, bytes(96)), "power of two"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(tmp_path, lie):
    data, message = LIES[lie]
    with pytest.raises(DamagedFileError, match=message):
        read_gguf(write(tmp_path / "f.gguf", data))


def test_every_truncation_is_found(tmp_path):
    whole = container([("k", 8, text("v"))], F32_PAIR, bytes(48))
    read_gguf(write(tmp_path / "f.gguf", whole))
    for size in range(len(whole)):
        with pytest.raises(DamagedFileError):
            read_gguf(write(tmp_path / "f.gguf", whole[:size]))


def test_metadata_of_types_that_the_reference_does_not_decode(tmp_path):
    data = container([("k", 7, b"\x01")], [("x", (256,), 16, 0)], bytes(66))
    assert read_metadata(write(tmp_path / "f.gguf", data)) == {"k": True}


def test_rows_keep_the_shape_of_a_vector():
    tensor = GgufTensor("v", "F32", (2,), np.zeros((1, 8), np.uint8))
    assert decode_gguf(tensor.rows(0, 1)).shape == (2,)

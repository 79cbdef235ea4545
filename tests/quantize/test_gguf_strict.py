"""GGUF files as llama.cpp judges them: its own reader is asked about every mutant, and models that do not add up are one line."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from random import Random

import numpy as np
import pytest

from exporter.bundle.facts import read_facts
from exporter.gguf.file import write_gguf
from exporter.inspect import inspect
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.gguf_values import GgufValues
from quantize.errors import CheckpointError, FileFormatError
from quantize.gguf.container import MAX_METADATA, Value, ValueType, map_file, parse_header
from quantize.llama_cpp.library import library
from quantize.llama_cpp.model import LlamaVocab
from runtime_checks.reference.decode import DamagedFileError
from runtime_checks.reference.gguf import read_metadata
from tests.mutations import ARRAY, GgufParts, mutate_bytes, mutate_gguf, text
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

MUTANTS = 250
# What ours refuses and llama.cpp's container does not: no model has it.
STRICTER = (
    "has shape",
    "0 dimensions",
    "bytes follow",
    "zero byte",
    "UTF-8",
    "0 bytes long",
    "no power of two up to",
    "ends at byte",
)


class _Params(ctypes.Structure):
    """struct gguf_init_params."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    source = make_tiny_model(folder / "m", hidden=32, heads=2, kv_heads=1, ffn=32, layers=1, vocab=320)
    return write_gguf(rtn_store(source, folder / "s"), folder / "m.gguf").read_bytes()


def judge(folder):
    """What llama.cpp's reader says of each file: a child for each, as it may abort."""
    out = {}
    library()  # loaded once, not by each child
    for path in sorted(folder.glob("*.gguf")):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os._exit(0 if _takes(str(path)) else 1)
        out[path.name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return out


def _takes(path):
    lib = library()
    lib.gguf_init_from_file.argtypes, lib.gguf_init_from_file.restype = (ctypes.c_char_p, _Params), ctypes.c_void_p
    return bool(lib.gguf_init_from_file(path.encode(), _Params(True, None)))


def ours(path):
    """None, or why our parser refuses it."""
    try:
        parse_header(map_file(path))
    except ValueError as error:
        return str(error)
    return None


def test_mutants_are_taken_where_llama_cpp_takes_them(tmp_path, whole):
    header = parse_header(whole).data_start
    for seed in range(MUTANTS):
        rng = Random(seed)
        mutant = mutate_gguf(whole, rng) if seed % 3 else mutate_bytes(whole, rng, header)
        (tmp_path / f"{seed:03}.gguf").write_bytes(mutant)
    run = subprocess.run(
        [sys.executable, "-m", __spec__.name, tmp_path], capture_output=True, text=True, check=True, env=_environment()
    )
    said = dict(line.split() for line in run.stdout.splitlines())
    assert len(said) == MUTANTS
    refused = {name: ours(tmp_path / name) for name in said}
    wrong = [(name, why) for name, why in refused.items() if why is None and said[name] == "False"]
    lost = [
        (name, why) for name, why in refused.items() if why and said[name] == "True" and not any(word in why for word in STRICTER)
    ]
    assert not wrong and not lost
    assert sum(why is None for why in refused.values()) > MUTANTS / 10 and sum(map(bool, refused.values())) > MUTANTS / 3


def _environment():
    return {**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def pair(key, kind, payload):
    """Put a key-value in the place of one with that key."""

    def change(parts):
        parts.pairs = [item for item in parts.pairs if item[0] != key.encode()] + [[key.encode(), int(kind), payload]]

    return change


def scalar(key, kind, value):
    return pair(key, kind, Value.encode(kind, value).payload)


def numbers(key, kind, *values):
    return pair(key, ARRAY, Value.encode_array(kind, values).payload)


def drop(key):
    return lambda parts: parts.pairs.remove(next(item for item in parts.pairs if item[0] == key.encode()))


def add(name, shape, data):
    def change(parts):
        parts.tensors.append([name, list(shape), 0, len(parts.body)])
        parts.body += data + bytes(-len(data) % 32)

    return change


def tensor(index, part, value):
    return lambda parts: parts.tensors[index].__setitem__(part, value)


def twice(parts):
    tokens = next(item for item in parts.pairs if item[0] == b"tokenizer.ggml.tokens")
    held = Value(ValueType.ARRAY, tokens[2]).decode()
    tokens[2] = Value.encode_array(ValueType.STRING, [*held[:-1], held[5]]).payload


def two_empty(parts):
    """Two tokens that no merge makes or takes."""
    tokens, merges = (next(item for item in parts.pairs if item[0] == b"tokenizer.ggml." + key) for key in (b"tokens", b"merges"))
    held, pairs = (Value(ValueType.ARRAY, item[2]).decode() for item in (tokens, merges))
    used = {part for merge in pairs for part in (*merge.split(" "), merge.replace(" ", ""))}
    free = [index for index, token in enumerate(held) if token not in used][-2:]
    empty = ["" if index in free else token for index, token in enumerate(held)]
    tokens[2] = Value.encode_array(ValueType.STRING, empty).payload


T, U32, F32 = ValueType, ValueType.U32, ValueType.F32
NAN, INF = float("nan"), float("inf")
ROPE, EPS, HEADS = "llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon", "llama.attention.head_count"
CONTAINER = {
    "version 1": (lambda parts: setattr(parts, "version", 1), "GGUF version 1 is not supported"),
    "version 0": (lambda parts: setattr(parts, "version", 0), "GGUF version 0 is not supported"),
    "big-endian": (lambda parts: setattr(parts, "version", 3 << 24), r"big-endian GGUF \(version 3\)"),
    "tensors": (lambda parts: setattr(parts, "counts", [1 << 62, None]), "4611686018427387904 tensors are in it, it says"),
    "keys": (lambda parts: setattr(parts, "counts", [None, 1 << 62]), "4611686018427387904 keys are in it, it says"),
    "a key twice": (lambda parts: parts.pairs.append(parts.pairs[0]), "'general.architecture' is empty or twice"),
    "no key": (scalar("", U32, 1), "is empty or twice"),
    "a key of no text": (lambda parts: parts.pairs.append([b"\xff", 0, b"\0"]), r"a key b'\\xff' is not UTF-8"),
    "a key of type 13": (lambda parts: parts.pairs.append([b"x", 13, b"\0"]), "key x is of type 13"),
    "an array of arrays": (pair("x", ARRAY, struct.pack("<IQ", 9, 0)), "key x is an array of arrays"),
    "long array": (pair("x", ARRAY, struct.pack("<IQ", 0, 1 << 40)), "truncated"),
    "long text array": (pair("x", ARRAY, struct.pack("<IQ", 8, 1 << 60)), "truncated"),
    "alignment 0": (scalar("general.alignment", U32, 0), "0 is no power of two"),
    "alignment 2 MiB": (scalar("general.alignment", U32, 1 << 21), "2097152 is no power of two up to 1048576"),
    "alignment u64": (scalar("general.alignment", T.U64, 32), "general.alignment is of type u64, not u32"),
    "a name twice": (tensor(1, 0, b"token_embd.weight"), "tensor token_embd.weight is twice"),
    "a long name": (tensor(1, 0, b"x" * 64), "name is 64 bytes long"),
    "no name": (tensor(1, 0, b""), "name is 0 bytes long"),
    "a cut name": (tensor(1, 0, b"x\0y"), "holds a zero byte"),
    "no text": (tensor(1, 0, b"\xff"), "is not UTF-8"),
    "a dimension of 0": (tensor(1, 1, [0]), r"has shape \(0,\)"),
    "a negative one": (tensor(1, 1, [2**64 - 32]), r"has shape \(-32,\)"),
    "no dimension": (tensor(1, 1, []), "0 dimensions"),
    "overflow": (tensor(0, 1, [1 << 62, 1 << 62]), "truncated: token_embd.weight"),
    "overlapping": (tensor(2, 3, 0), "is at byte 0 of the data, not at"),
    "unaligned": (tensor(1, 3, 10201), "is at byte 10201 of the data, not at"),
    "another type": (tensor(1, 2, 4), "is of ggml type 4, which is unknown"),
    "bytes after it": (lambda parts: setattr(parts, "body", parts.body + b"\1"), "1 bytes follow the last tensor"),
    "much after it": (lambda parts: setattr(parts, "body", parts.body + bytes(1 << 17)), "131072 bytes follow the last tensor"),
}
MODEL = {
    "rope 0": (scalar(ROPE, F32, 0.0), "rope.freq_base is 0.0"),
    "rope -1": (scalar(ROPE, F32, -1.0), "rope.freq_base is -1.0"),
    "rope NaN": (scalar(ROPE, F32, NAN), "rope.freq_base is nan"),
    "rope infinite": (scalar(ROPE, F32, INF), "rope.freq_base is inf"),
    "eps NaN": (scalar(EPS, F32, NAN), "epsilon is nan"),
    "eps negative": (scalar(EPS, F32, -1e-5), "epsilon is -"),
    "eps f64": (scalar(EPS, T.F64, 1e-5), "epsilon is of type f64, not f32"),
    "no eps": (drop(EPS), "epsilon' is missing"),
    "no heads": (scalar(HEADS, U32, 0), "head_count is 0; it must be positive"),
    "heads differ": (numbers(HEADS, U32, 2, 1), "head_count has 2 entries for 1 layers"),
    "neither layers nor heads": (
        lambda parts: [change(parts) for change in (scalar("llama.block_count", U32, 0), numbers(HEADS, U32))],
        "head_count has 0 entries for 0 layers",
    ),
    "heads of text": (scalar(HEADS, T.STRING, "2"), "head_count is of type string, not u32"),
    "heads of floats": (numbers(HEADS, F32, 2.0), "head_count is of type array of f32"),
    "layers": (scalar("llama.block_count", U32, 5_000_000), "block_count"),
    "no layers": (scalar("llama.block_count", U32, 0), "block_count is 0"),
    "half a layer": (scalar("llama.block_count", F32, 1.5), "block_count is of type f32, not u32"),
    "a layer that is true": (scalar("llama.block_count", T.BOOL, True), "block_count is of type bool, not u32"),
    "a list of sizes": (numbers("llama.embedding_length", U32, 32), "embedding_length is of type array of u32"),
    "context": (scalar("llama.context_length", U32, 0), "context_length is 0"),
    "values": (scalar("llama.attention.value_length", U32, 8), "value_length"),
    "norm's bias": (add(b"output_norm.bias", [32], bytes(128)), "model.norm.bias is not part"),
    "embedding's bias": (add(b"token_embd.bias", [32], bytes(128)), "model.embed_tokens.bias is not part"),
    "a second name": (add(b"blk.00.attn_norm.weight", [32], bytes(128)), "blk.00.attn_norm.weight is not part"),
    "another digit": (add("blk.\u0661.attn_norm.weight".encode(), [32], bytes(128)), "is not part"),
    "bos": (scalar("tokenizer.ggml.bos_token_id", U32, 320), "bos_token_id is 320, and there are 320 tokens"),
    "an eos that is none": (
        scalar("tokenizer.ggml.eos_token_id", U32, 2**32 - 1),
        "eos_token_id is 4294967295, and there are 320",
    ),
    "eos i32": (scalar("tokenizer.ggml.eos_token_id", T.I32, 2), "eos_token_id is of type i32, not u32"),
    "flag": (scalar("tokenizer.ggml.add_bos_token", T.U8, 1), "add_bos_token is of type u8, not bool"),
    "template": (scalar("tokenizer.chat_template", U32, 1), "chat_template is of type u32, not string"),
    "types": (numbers("tokenizer.ggml.token_type", T.I32, 1, 1), "token_type has 2 entries for 320 tokens"),
    "types u8": (numbers("tokenizer.ggml.token_type", T.U8, 1), "token_type is of type array of u8, not array of i32"),
    "scores": (numbers("tokenizer.ggml.scores", F32, 1.0), "scores has 1 entries for 320 tokens"),
    "few tokens": (numbers("tokenizer.ggml.tokens", T.STRING, "a"), "entries for 1 tokens"),
    "equal tokens": (twice, "has two tokens"),
    "no merges": (drop("tokenizer.ggml.merges"), "merges' is missing"),
    "no text": (pair("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", 8, 320) + text(b"\xff") * 320), "tokens is not UTF-8"),
    "split": (scalar("split.count", T.U16, 2), "let its name end in -00001-of-00002.gguf"),
    "split u32": (scalar("split.count", U32, 2), "split.count is of type u32, not u16"),
}
SOURCE = {
    "no rope_freqs": (add(b"rope_freqs.weight", [1], bytes(4)), "rope_freqs.weight does not follow"),
    "rope_freqs of 3": (add(b"rope_freqs.weight", [3], struct.pack("<3f", 1, 1, 1)), "rope_freqs.weight does not follow"),
    "rope_freqs NaN": (add(b"rope_freqs.weight", [8], struct.pack("<8f", *[NAN] * 8)), "rope_freqs.weight does not follow"),
    "rope_freqs square": (add(b"rope_freqs.weight", [2, 4], bytes(32)), r"rope_freqs.weight is F32 \(4, 2\)"),
}


@pytest.fixture
def made(tmp_path, whole):
    """Write the model with a change."""

    def make(change):
        parts = GgufParts(whole)
        change(parts)
        (tmp_path / "m.gguf").write_bytes(parts.encode())
        return tmp_path / "m.gguf"

    return make


@pytest.mark.parametrize("case", CONTAINER)
def test_a_damaged_container_is_refused_everywhere(made, case):
    change, words = CONTAINER[case]
    path = made(change)
    with pytest.raises(CheckpointError, match=rf"m\.gguf: .*{words}"):
        open_checkpoint(path)
    for reads in (inspect, read_facts):
        with pytest.raises(FileFormatError, match=rf"m\.gguf: a damaged GGUF \(.*{words}"):
            reads(path)


@pytest.mark.parametrize("case", MODEL)
def test_a_model_that_does_not_add_up_is_one_line(made, case):
    change, words = MODEL[case]
    path = made(change)
    with pytest.raises(CheckpointError, match=rf"m\.gguf: .*{words}") as error:
        open_checkpoint(path).assets()
    assert "\n" not in str(error.value)
    if "value_length" not in words:
        with pytest.raises(Exception, match=rf"m\.gguf: .*({words}|one of several files)") as error:
            read_facts(path)
        assert type(error.value).__module__ == "quantize.errors"


@pytest.mark.parametrize("case", SOURCE)
def test_rotary_factors_that_are_none(made, case):
    change, words = SOURCE[case]
    with pytest.raises(CheckpointError, match=rf"m\.gguf: .*{words}"):
        open_checkpoint(made(change))


KEPT = {
    "as it is": lambda parts: None,
    "version 2": lambda parts: setattr(parts, "version", 2),
    "a page of padding": lambda parts: setattr(parts, "body", parts.body + bytes(4096)),
    "heads by layer": numbers(HEADS, U32, 2),
    "heads by layer, with a sign": numbers(HEADS, T.I32, 2),
    "no padding token": scalar("tokenizer.ggml.padding_token_id", U32, 2**32 - 1),
    "two empty tokens": two_empty,
    "a description in Latin-1": pair("general.description", T.STRING, text(b"gr\xfc\xdfe")),
    "an alignment": scalar("general.alignment", U32, 32),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_llama_cpp_loads_and_people_have_is_kept(made, case):
    path = made(KEPT[case])
    LlamaVocab(path, vocab_only=False).close()
    assert open_checkpoint(path).config.num_heads == 2 and read_facts(path).kv_bytes == 2 * 2 * 16
    assert inspect(path)["totals"]["weights"] > 0
    open_checkpoint(path).assets()


@pytest.mark.parametrize(
    ("kind", "heads", "size", "by_layer"),
    [
        (U32, [2, 2], 2, [2, 2]),
        (U32, [2, 0], "differs from layer to layer", [2, 0]),
        (T.I32, [2, -1], "differs from layer to layer", "is -1; it must be positive"),
        (U32, [0, 0], "is 0; it must be positive", "is 0; it must be positive"),
    ],
)
def test_a_number_for_each_layer(kind, heads, size, by_layer):
    held = {"general.architecture": Value.encode(T.STRING, "llama"), "llama.block_count": Value.encode(U32, len(heads))}
    values = GgufValues(held | {HEADS: Value.encode_array(kind, heads)}, "m.gguf")
    for read, expected in ((values.size, size), (values.per_layer, by_layer)):
        if isinstance(expected, str):
            with pytest.raises(CheckpointError, match=f"^m.gguf: metadata key {HEADS} {expected}"):
                read(HEADS)
        else:
            assert read(HEADS) == expected


def test_arrays_stay_arrays_and_are_not_copied(made):
    path = made(numbers("x.many", T.U8, *range(200)))
    value = parse_header(map_file(path)).metadata["x.many"]
    held = value.decode()
    assert isinstance(value.payload, memoryview) and not held.flags.owndata and held.tolist() == list(range(200))
    assert Value.encode_array(T.BOOL, [True, False]).decode().tolist() == [True, False]
    assert isinstance(read_metadata(path)["x.many"], np.ndarray)


@pytest.mark.parametrize("kind", [T.U8, T.STRING])
def test_a_huge_array_is_refused_before_it_is_read(tmp_path, whole, kind):
    """2 GiB that are not there: a file with a hole."""
    count = (1 << 31) // (1 if kind is T.U8 else 8)
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"x") + struct.pack("<IIQ", ARRAY, kind, count))
        file.truncate(3 << 30)
    with pytest.raises(ValueError, match=f"more than {MAX_METADATA} bytes of metadata"):
        parse_header(map_file(path))
    with pytest.raises(DamagedFileError, match=r"which no model has|go past the end"):
        read_metadata(path)


@pytest.mark.parametrize("reads", [open_checkpoint, inspect, read_facts, read_metadata])
def test_a_pipe_is_not_waited_for(tmp_path, reads):
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises((CheckpointError, FileFormatError, DamagedFileError), match=r"m\.gguf: (no regular|is not a GGUF)"):
        reads(tmp_path / "m.gguf")


def test_what_is_no_file_with_bytes_in_it_is_not_mapped(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="truncated: the file is empty"):
        map_file(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    held = os.open(tmp_path / "pipe", os.O_RDWR)  # so that whoever opens it does not wait
    with pytest.raises(OSError, match="no regular file"):
        map_file(tmp_path / "pipe")
    os.close(held)


if __name__ == "__main__":
    from pathlib import Path

    for name, takes in judge(Path(sys.argv[1])).items():
        print(name, takes)

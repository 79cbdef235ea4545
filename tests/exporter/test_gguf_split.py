"""A GGUF that is written in several files holds what the one file does, runs, and appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from exporter.cli import export as cli_export
from exporter.cli.main import main
from exporter.gguf import layout
from exporter.gguf.file import check_gguf_output, gguf_files, gguf_size, write_gguf
from exporter.inspect import inspect
from quantize.errors import ExportError, OutputError
from quantize.gguf.container import alignment_of, padded, parse_header
from quantize.gguf.files import COUNT, NUMBER, TENSORS, TYPES, open_files
from quantize.llama_cpp.model import LlamaModel
from quantize.store.tensors import QuantizedStore
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

SIZES = {  # bytes of a file at most -> how many files
    10**6: 1,
    87_936: 1,  # just what it takes
    87_935: 2,
    40_000: 3,
    22_000: 5,  # the embedding does not fit beside the metadata: the first has no tensor
}
SOME = 40_000
OF_THE_FIRST = {"adadim.sha256.header"}
AT_LEAST = "more than a file of {}, and is not cut; ask for split_size of at least"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> QuantizedStore:
    folder = tmp_path_factory.mktemp("store")
    return rtn_store(make_tiny_model(folder / "model", tied=False), folder / "store")


@pytest.fixture(scope="module")
def whole(store) -> Path:
    return write_gguf(store, store.path.with_name("whole.gguf"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def written(folder: Path) -> list[Path]:
    return sorted(folder.glob("m*.gguf"))


@pytest.mark.parametrize("size", SIZES)
def test_all_files_hold_what_the_one_does(store, whole, tmp_path, size):
    """By gguf-py, which reads each by itself."""
    first = write_gguf(store, tmp_path / "m.gguf", split_size=size)
    paths, one = written(tmp_path), gguf.GGUFReader(whole)
    assert len(paths) == SIZES[size] and first == paths[0]
    assert paths == gguf_files(store, tmp_path / "m.gguf", split_size=size)
    assert sum(path.stat().st_size for path in paths) == gguf_size(store, split_size=size)
    assert max(path.stat().st_size for path in paths) <= size
    readers = [gguf.GGUFReader(path) for path in paths]
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    assert [tensor.name for tensor in tensors] == [tensor.name for tensor in one.tensors]
    for tensor, expected in zip(tensors, one.tensors, strict=True):
        assert (tensor.tensor_type, tensor.shape.tolist()) == (expected.tensor_type, expected.shape.tolist())
        np.testing.assert_array_equal(tensor.data, expected.data)
    for key, field in one.fields.items():
        if not key.startswith("GGUF.") and key not in OF_THE_FIRST:
            assert readers[0].fields[key].contents() == field.contents(), key
    data = b"".join(path.read_bytes()[reader.data_offset :] for path, reader in zip(paths, readers, strict=True))
    assert data == whole.read_bytes()[one.data_offset :]


def test_the_parts_say_which_they_are(store, tmp_path):
    write_gguf(store, tmp_path / "m.gguf", split_size=SOME)
    headers = [parse_header(path.read_bytes()) for path in written(tmp_path)]
    assert [path.name for path in written(tmp_path)] == [f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    total = sum(len(header.tensors) for header in headers)
    for number, header in enumerate(headers):
        held = {key: header.metadata[key] for key in TYPES}
        assert {key: value.type for key, value in held.items()} == TYPES
        assert {key: value.decode() for key, value in held.items()} == {NUMBER: number, COUNT: 3, TENSORS: total}
        assert number == 0 or header.metadata.keys() == {*TYPES, "adadim.target"}


def test_the_bytes_of_a_part(store, tmp_path):
    write_gguf(store, tmp_path / "m.gguf", split_size=SOME)
    text = lambda value: struct.pack("<Q", len(value)) + value  # noqa: E731
    values = [
        (b"adadim.target", struct.pack("<I", 8) + text(b"llama.cpp")),
        (b"split.no", b"\x02\0\0\0" + b"\x02\0"),
        (b"split.count", b"\x02\0\0\0" + b"\x03\0"),
        (b"split.tensors.count", b"\x05\0\0\0" + b"\x15\0\0\0"),
    ]
    expected = b"GGUF" + struct.pack("<IQQ", 3, 1, 4) + b"".join(text(key) + value for key, value in values)
    expected += text(b"output.weight") + struct.pack("<IQQIQ", 2, 64, 320, 8, 0)
    data = (tmp_path / "m-00003-of-00003.gguf").read_bytes()
    assert data[: len(expected)] == expected
    assert len(data) == padded(len(expected), 32) + 320 * 2 * 34


def test_what_fits_is_the_file_of_no_option(store, whole, tmp_path):
    write_gguf(store, tmp_path / "m.gguf", split_size=10**6)
    assert names(tmp_path) == {"m.gguf"}
    assert (tmp_path / "m.gguf").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("size", [SOME, 22_000])
def test_the_same_store_gives_the_same_bytes(store, tmp_path, size):
    for name in "ab":
        write_gguf(store, tmp_path / name / "m.gguf", split_size=size)
    assert names(tmp_path / "a") == names(tmp_path / "b")
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes() for path in (tmp_path / "a").iterdir())


@pytest.mark.parametrize("size", [87_935, SOME, 22_000])
def test_llama_cpp_runs_it_from_the_first(store, whole, tmp_path, size):
    tokens = list(range(3, 40))
    with LlamaModel(write_gguf(store, tmp_path / "m.gguf", split_size=size)) as split, LlamaModel(whole) as one:
        np.testing.assert_array_equal(split.logits(tokens), one.logits(tokens))


def test_our_reader_takes_it_as_a_whole(store, whole, tmp_path):
    first = write_gguf(store, tmp_path / "m.gguf", split_size=SOME)
    assert inspect(first)["tensors"] == inspect(whole)["tensors"]
    files = open_files(first)
    assert len(files.paths) == 3 and alignment_of(files.metadata) == 32
    assert files.metadata.keys() == parse_header(whole.read_bytes()).metadata.keys()


REFUSED = {
    "a tensor": (21_900, f"model: token_embd.weight takes 21,760 bytes, {AT_LEAST.format('21,900')} 0.03MB$"),
    "the least": (1, f"model: token_embd.weight takes 21,760 bytes, {AT_LEAST.format('1')} 0.03MB$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fits_in_no_file_is_refused_before_anything_is_written(store, tmp_path, case):
    size, words = REFUSED[case]
    for refused in (gguf_size, gguf_files, write_gguf):
        out = () if refused is gguf_size else (tmp_path / "m.gguf",)
        with pytest.raises(ExportError, match=words):
            refused(store, *out, split_size=size)
    assert not names(tmp_path)


def test_metadata_is_not_cut(tmp_path):
    """Of many tokens, each of few weights."""
    source = make_tiny_model(tmp_path / "m", hidden=32, ffn=32, vocab=400)
    store = rtn_store(source, tmp_path / "s", embedding="q4_0", bits=4)
    largest = 400 * 18
    header = parse_header(write_gguf(store, tmp_path / "w.gguf").read_bytes()).data_start
    assert header > largest + 500
    with pytest.raises(ExportError, match=r"m: its metadata takes [\d,]+ bytes, more than a file of [\d,]+, and is not cut; ask"):
        write_gguf(store, tmp_path / "x.gguf", split_size=largest + 400)
    assert not list(tmp_path.glob("x*"))


def test_too_many_files(store, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "MAX_PARTS", 4)
    with pytest.raises(ExportError, match=r"model: 5 files, more than 4; ask for a larger split_size$"):
        write_gguf(store, tmp_path / "m.gguf", split_size=22_000)
    assert not names(tmp_path)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_is_there_is_replaced_only_with_force_and_only_if_it_is_ours(store, tmp_path, number):
    out, path = tmp_path / "m.gguf", tmp_path / f"m-{number:05d}-of-00003.gguf"
    path.write_bytes(b"GGUF of somebody else")
    for force, words in (
        (False, "exists already; name another out or pass force=True"),
        (True, "is none of our files, so force"),
    ):
        with pytest.raises(OutputError, match=f"{path.name}: {words}"):
            write_gguf(store, out, split_size=SOME, force=force)
        with pytest.raises(OutputError, match=f"{path.name}: {words}"):
            check_gguf_output(tmp_path / "m-00001-of-00003.gguf", force)
    assert names(tmp_path) == {path.name} and path.read_bytes() == b"GGUF of somebody else"
    path.unlink()
    write_gguf(store, out, split_size=SOME)
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    path.write_bytes(path.read_bytes()[:-32] + bytes(32))  # ours, and damaged
    with pytest.raises(OutputError, match="exists already"):
        write_gguf(store, out, split_size=SOME)
    write_gguf(store, out, split_size=SOME, force=True)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


def test_a_whole_file_beside_it_is_left_alone(store, tmp_path):
    (tmp_path / "m.gguf").write_text("mine")
    write_gguf(store, tmp_path / "m.gguf", split_size=SOME)
    assert (tmp_path / "m.gguf").read_text() == "mine" and len(written(tmp_path)) == 4


def test_several_files_do_not_go_into_a_pipe_or_a_folder(store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OutputError, match=f"{name}: cannot take 3 files; name a file, or drop split_size$"):
            write_gguf(store, tmp_path / name, split_size=SOME)
    assert names(tmp_path) == {"pipe", "folder"}


def test_a_name_without_an_ending(store, tmp_path):
    assert write_gguf(store, tmp_path / "model.v2", split_size=SOME) == tmp_path / "model.v2-00001-of-00003.gguf"


WORDS = ("--target", "llama.cpp", "--method", "rtn-oc", "--quiet")


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_the_command(store, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    assert run("export", "gguf", store.path, "--out", out, "--split-size", "40 kB", "--quiet") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'm-00001-of-00003.gguf'}\n") and "3, of which this is the first" in said
    assert run("export", "gguf", store.path, "--out", out, "--split-size", "20kB", "--quiet") == 2
    assert "token_embd.weight takes 21,760 bytes, more than a file of 20,000" in (err := capsys.readouterr().err)
    assert err.rstrip().endswith("ask for --split-size of at least 0.03MB") and err.count("\n") == 1
    assert len(names(tmp_path)) == 3


def test_run_goes_on_from_what_it_made(store, tmp_path, capsys):
    words = ("run", store.path.with_name("model"), "--out", tmp_path / "out", "--split-size", "40kB", *WORDS)
    assert run(*words) == 0
    capsys.readouterr()
    folder = tmp_path / "out" / "llama.cpp"
    parts = {f"model-{number:05d}-of-00003.gguf" for number in (1, 2, 3)}
    assert names(folder) == {"store", "verify.json", *parts}
    assert run(*words) == 0
    first = folder / "model-00001-of-00003.gguf"
    assert f"left it: {folder / 'store'}, {first}, {folder / 'verify.json'}" in capsys.readouterr().out
    last = folder / "model-00003-of-00003.gguf"
    data = last.read_bytes()
    last.write_bytes(data[:-1] + b"\1")
    assert run(*words) == 2
    assert f"{first}: {cli_export.OTHER}" in capsys.readouterr().err
    for name in parts:
        (folder / name).unlink()
    (folder / "verify.json").unlink()
    assert run(*words) == 0
    assert names(folder) == {"store", "verify.json", *parts} and last.read_bytes() == data


def test_run_refuses_what_cannot_be_split_before_any_work(store, tmp_path, capsys):
    words = ("run", store.path.with_name("model"), "--out", tmp_path / "out", "--split-size")
    assert run(*words, "20kB", *WORDS) == 2
    assert "model: token_embd.weight takes 21,760 bytes" in capsys.readouterr().err
    (tmp_path / "out" / "llama.cpp").mkdir(parents=True)
    shutil.copy(store.path / "plan.json", tmp_path / "out" / "llama.cpp" / "model-00002-of-00003.gguf")
    assert run(*words, "40kB", *WORDS) == 2
    assert "model-00002-of-00003.gguf: exists already" in capsys.readouterr().err
    assert names(tmp_path / "out" / "llama.cpp") == {"model-00002-of-00003.gguf"}


def test_a_size_budget_counts_all_files(store, tmp_path):
    words = ("run", store.path.with_name("model"), "--out", tmp_path / "out", "--target-size", "90kB", "--split-size", "50kB")
    assert run(*words, *WORDS) == 0
    sizes = [path.stat().st_size for path in (tmp_path / "out" / "llama.cpp").glob("model-*.gguf")]
    assert len(sizes) > 1 and max(sizes) <= 50_000 and 85_000 < sum(sizes) <= 90_000

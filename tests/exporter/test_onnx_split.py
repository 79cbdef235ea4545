"""An ONNX folder whose data lie in several files holds what the one does, runs, and is refused where a file is not its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
import pytest

from exporter.bundle.folder import BundleOptions, write_bundle
from exporter.cli.main import main
from exporter.inspect import inspect
from exporter.onnx import layout
from exporter.onnx.file import onnx_size, write_onnx
from exporter.writers import WRITERS
from quantize.checkpoint import open_checkpoint
from quantize.errors import ExportError, FileFormatError, OutputError
from quantize.onnx.reader import read_graph
from quantize.store.tensors import QuantizedStore
from runtime_checks.checks.verify import verify
from runtime_checks.runtimes.onnx_runner import OnnxRunner
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

SIZES = {36_000: 3, 26_000: 5, 10**7: 1}  # bytes of a file at most -> how many data files
SOME, PARTS = 36_000, ("model.onnx.data", "model.onnx.data.1", "model.onnx.data.2")
TOKENS = np.arange(3, 40)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> QuantizedStore:
    folder = tmp_path_factory.mktemp("store")
    return rtn_store(make_tiny_model(folder / "model"), folder / "store", "onnxruntime", group_size=32)


@pytest.fixture(scope="module")
def whole(store) -> Path:
    return write_onnx(store, store.path.with_name("whole"))


@pytest.fixture(scope="module")
def split(store) -> Path:
    return write_onnx(store, store.path.with_name("split"), split_size=SOME)


def data_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model.onnx.data*"), key=lambda path: (len(path.name), path.name))


@pytest.mark.parametrize("size", SIZES)
def test_all_files_hold_what_the_one_does(store, whole, tmp_path, size):
    out = write_onnx(store, tmp_path / "out", split_size=size)
    paths = data_files(out)
    assert [path.name for path in paths] == ["model.onnx.data", *(f"model.onnx.data.{i}" for i in range(1, SIZES[size]))]
    assert max(path.stat().st_size for path in out.glob("model.onnx*")) <= size
    assert sum(path.stat().st_size for path in out.glob("model.onnx*")) == onnx_size(store, split_size=size)
    one, several = read_graph(whole), read_graph(out)
    assert one.initializers.keys() == several.initializers.keys()
    for name in one.places:
        np.testing.assert_array_equal(several.mapped(name), one.mapped(name))
    assert inspect(out)["tensors"] == inspect(whole)["tensors"]
    if SIZES[size] == 1:
        assert all((whole / path.name).read_bytes() == path.read_bytes() for path in out.iterdir())


def test_the_runtimes_run_it(whole, split):
    np.testing.assert_array_equal(OnnxRunner(split).logits(TOKENS), OnnxRunner(whole).logits(TOKENS))
    genai.Model(str(split))


def test_the_same_store_gives_the_same_bytes(store, split, tmp_path):
    again = write_onnx(store, tmp_path / "out", split_size=SOME)
    assert {path.name for path in again.iterdir()} == {path.name for path in split.iterdir()} >= {*PARTS}
    assert all((split / path.name).read_bytes() == path.read_bytes() for path in again.iterdir())


REFUSED = {
    "a tensor": (20_479, "model: model.embed_tokens.weight.codes takes 20,480 bytes, more than a file of 20,479, and is not cut"),
    "the graph": (22_000, r"model: its graph takes [\d,]+ bytes, more than a file of 22,000, and is not cut"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fits_in_no_file_is_refused_before_anything_is_written(store, tmp_path, case):
    size, words = REFUSED[case]
    with pytest.raises(ExportError, match=f"{words}; ask for split_size of at least 0.0[0-9]MB$"):
        write_onnx(store, tmp_path / "out", split_size=size)
    with pytest.raises(ExportError, match=words):
        WRITERS["onnx"].files(store, tmp_path / "out", split_size=size)
    assert not list(tmp_path.iterdir())


def test_too_many_files(store, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "MAX_FILES", 2)
    with pytest.raises(ExportError, match=r"model: 3 files, more than 2; ask for a larger split_size$"):
        write_onnx(store, tmp_path / "out", split_size=SOME)


def misses(folder: Path, store: QuantizedStore) -> set[str]:
    source = open_checkpoint(store.path.with_name("model"))
    return {check.name for check in verify(folder, source, store) if not check.ok}


def exchange(folder: Path, left: str, right: str) -> None:
    (folder / left).rename(folder / "kept")
    (folder / right).rename(folder / left)
    (folder / "kept").rename(folder / right)


def test_it_verifies(split, store):
    assert not misses(split, store)


def same_size(folder: Path) -> None:
    """Two files of one size, exchanged: nothing but the digest can tell."""
    sizes = [(folder / name).stat().st_size for name in PARTS[:2]]
    for name in PARTS[:2]:
        with (folder / name).open("ab") as file:
            file.truncate(max(sizes))
    exchange(folder, *PARTS[:2])


DAMAGES = {
    "stray": (lambda folder: shutil.copy(folder / PARTS[1], folder / "model.onnx.data.7"), "files that are no part of an export"),
    "exchanged": (same_size, "sha256 of the data = the file's seal"),
    "a byte": (lambda folder: np.memmap(folder / PARTS[2], np.uint8, "r+").__setitem__(-1, 0x55), "sha256 of the data"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_file_that_is_not_its_own_is_a_miss(split, store, tmp_path, case):
    damage, words = DAMAGES[case]
    copy = Path(shutil.copytree(split, tmp_path / "copy"))
    damage(copy)
    assert any(name.startswith(words) for name in misses(copy, store))


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_file_is_refused_in_one_line(split, tmp_path, name):
    copy = Path(shutil.copytree(split, tmp_path / "copy"))
    (copy / name).unlink()
    for read in (inspect, OnnxRunner):
        with pytest.raises(FileFormatError, match=rf"model\.onnx: the external data of .*{name}: No such file") as told:
            read(copy)
        assert "\n" not in str(told.value)


def test_force_replaces_the_files_of_an_export_and_no_others(split, store, tmp_path):
    out = Path(shutil.copytree(split, tmp_path / "out"))
    (out / "model.onnx.data.7").write_text("mine")
    with pytest.raises(OutputError, match=r"model\.onnx\.data\.7 in it is no part of an export"):
        write_onnx(store, out, force=True)
    (out / "model.onnx.data.7").unlink()
    write_onnx(store, out, force=True)
    assert [path.name for path in data_files(out)] == ["model.onnx.data"]


def test_it_is_bundled_whole(split, tmp_path):
    write_bundle(split, tmp_path / "bundle", BundleOptions("web", part_size=30_000))
    told = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())["files"]
    files = {item["path"]: [part["path"] for part in item.get("parts", [item])] for item in told}
    for name in PARTS:
        parts = [(tmp_path / "bundle" / part).read_bytes() for part in files[f"model/{name}"]]
        assert b"".join(parts) == (split / name).read_bytes()


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_the_command(store, split, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("export", "onnx", store.path, "--out", out, "--split-size", "36kB", "--quiet") == 0
    assert all((split / path.name).read_bytes() == path.read_bytes() for path in out.iterdir())
    assert run("export", "onnx", store.path, "--out", tmp_path / "no", "--split-size", "20kB", "--quiet") == 2
    assert "ask for --split-size of at least 0.03MB" in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_run_splits_both_formats_and_goes_on_from_what_it_made(store, tmp_path, capsys):
    words = ("run", store.path.with_name("model"), "--out", tmp_path / "out", "--split-size", "36kB", "--method", "rtn-oc")
    assert run(*words, "--quiet") == 0
    folder = tmp_path / "out" / "onnxruntime" / "onnx"
    assert [path.name for path in data_files(folder)][:2] == [*PARTS[:2]]
    capsys.readouterr()
    assert run(*words, "--quiet") == 0
    assert capsys.readouterr().out.count("left it:") == 2

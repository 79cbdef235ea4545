from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from exporter.gguf.file import write_gguf
from quantize.errors import FileFormatError, StoreError
from quantize.grids import BLOCK_GRIDS
from quantize.store.tensors import QuantizedStore
from runtime_checks.checks.gguf_check import check_gguf
from tests.cases import GRIDS
from tests.stores import rtn_store
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf_check")


def exported(folder: Path, model: Path, **options) -> tuple[Path, QuantizedStore]:
    name = "-".join([model.name, "store", *map(str, options.values())])
    store = rtn_store(model, folder / name, **options)
    return write_gguf(store, folder / f"{name}.gguf"), store


@pytest.fixture(scope="module")
def plain(folder):
    return exported(folder, make_tiny_model(folder / "tied"), grid="q4_1")


@pytest.fixture(scope="module")
def transposed(folder):
    return exported(folder, make_tiny_model(folder / "tied_ic"), target="gguf-adadim", method="rtn-ic")


def failures(checks) -> set[tuple[str, str]]:
    assert checks
    return {(check.name, check.tensor) for check in checks if not check.ok}


def edited(path: Path, out: Path, edit) -> Path:
    """A copy whose tensors (name -> writable array) ``edit`` has changed."""
    shutil.copy(path, out)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out, "r+").tensors}
    edit(tensors)
    for data in tensors.values():
        data.flush()
    return out


@pytest.mark.parametrize("grid", [grid.name for grid in GRIDS if grid.name in BLOCK_GRIDS])
def test_every_grid_passes(tmp_path, grid):
    path, store = exported(tmp_path, make_tiny_model(tmp_path / "wide", hidden=256, ffn=256, layers=1), grid=grid)
    assert not failures(check_gguf(path, store))


@pytest.mark.parametrize(
    ("model_type", "tied", "dtype", "embedding"),
    [("llama", False, "BF16", "source"), ("qwen2", False, "F16", "source"), ("qwen3", True, "F32", "q8_0")],
)
def test_every_architecture_passes(tmp_path, model_type, tied, dtype, embedding):
    model = make_tiny_model(tmp_path / model_type, model_type, tied=tied, dtype=dtype)
    path, store = exported(tmp_path, model, embedding=embedding)
    assert not failures(check_gguf(path, store))


def test_transposed_tensors_go_through_libggml(transposed):
    checks = check_gguf(*transposed)
    assert not failures(checks)
    assert sum(check.name == "ggml_out_prod = reference" for check in checks) == 14


def test_without_a_store_only_the_decoders_speak(plain):
    names = {check.name for check in check_gguf(plain[0])}
    assert names == {"reference = gguf-py", "reference = our grid", "bytes after the last tensor"}


def test_one_flipped_code_is_found(plain, tmp_path):
    def flip(tensors):
        tensors["blk.1.ffn_up.weight"][3, 7] ^= 0x10

    checks = check_gguf(edited(plain[0], tmp_path / "f.gguf", flip), plain[1])
    assert failures(checks) == {("codes = store's", "blk.1.ffn_up.weight")}
    assert max(check.error for check in checks) == 1


def test_two_swapped_scales_are_found(plain, tmp_path):
    def swap(tensors):
        row = tensors["blk.0.attn_v.weight"][5]
        row[:2], row[20:22] = row[20:22].copy(), row[:2].copy()

    checks = check_gguf(edited(plain[0], tmp_path / "f.gguf", swap), plain[1])
    assert failures(checks) == {("d = store's", "blk.0.attn_v.weight")}
    assert max(check.error for check in checks) == 2


def test_swapped_gate_and_up_are_found(plain, tmp_path):
    def swap(tensors):
        gate, up = tensors["blk.0.ffn_gate.weight"], tensors["blk.0.ffn_up.weight"]
        gate[:], up[:] = up.copy(), gate.copy()

    found = failures(check_gguf(edited(plain[0], tmp_path / "f.gguf", swap), plain[1]))
    assert {tensor for _, tensor in found} == {"blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"}


def test_one_changed_norm_is_found(plain, tmp_path):
    def nudge(tensors):
        tensors["output_norm.weight"][9] = np.nextafter(tensors["output_norm.weight"][9], np.float32(9))

    found = failures(check_gguf(edited(plain[0], tmp_path / "f.gguf", nudge), plain[1]))
    assert found == {("values = store's", "output_norm.weight")}


def test_a_missing_and_an_unknown_tensor_are_found(plain):
    path, store = plain
    said = QuantizedStore(store.path)
    said.records["model.layers.0.self_attn.q_proj.bias"] = said.records.pop("model.norm.weight")
    name = "in the file and in the store, once"
    assert failures(check_gguf(path, said)) == {(name, "blk.0.attn_q.bias"), (name, "output_norm.weight")}


def test_a_type_that_the_store_does_not_have(plain):
    path, store = plain
    said = QuantizedStore(store.path)
    name = "model.layers.0.mlp.up_proj.weight"
    grid = next(record.grid for record in said.records.values() if record.grid is not None and record.grid.name == "q8_0")
    said.records[name] = replace(said.records[name], grid=grid)
    with pytest.raises(StoreError, match=r"has \['codes', 'd', 'm'\], where \['codes', 'd'\] should be"):
        check_gguf(path, said)


def misses(path: Path, store: QuantizedStore) -> dict[str, tuple[str, float]]:
    return {check.tensor: (check.name, check.error) for check in check_gguf(path, store) if not check.ok}


def test_a_file_of_another_type_than_the_stores(plain, folder):
    store = rtn_store(folder / "tied", folder / "q4_0", grid="q4_0")
    found = misses(plain[0], store)
    assert set(found.values()) == {("codes = store's", math.inf)}
    assert len(found) == sum(record.grid is not None and record.grid.name == "q4_0" for record in store.records.values()) == 14


@pytest.mark.parametrize(
    ("sizes", "missed"),
    [({"ffn": 128}, {"ffn_gate", "ffn_up", "ffn_down"}), ({"vocab": 352}, {"token_embd"}), ({"hidden": 128}, None)],
    ids=["ffn", "vocab", "hidden"],
)
def test_a_store_of_another_shape(plain, folder, sizes, missed):
    """Rows or columns fewer or more, in the file or in the store."""
    other = exported(folder, make_tiny_model(folder / str(sizes), **sizes), grid="q4_1")
    for path, store in ((plain[0], other[1]), (other[0], plain[1])):
        found = [name for name, (_, error) in misses(path, store).items() if error == math.inf]
        parts = {name.removeprefix("blk.").lstrip("01.").removesuffix(".weight") for name in found}
        assert parts == missed or (missed is None and len(found) == len(store.records))


@pytest.mark.parametrize("other", [{"dtype": "F16"}, {"dtype": "BF16", "hidden": 128}], ids=["type", "columns"])
def test_floats_of_another_kind(tmp_path, other):
    path, _ = exported(tmp_path, make_tiny_model(tmp_path / "model", dtype="BF16"), embedding="source")
    store = rtn_store(make_tiny_model(tmp_path / "other", **other), tmp_path / "store", embedding="source")
    assert misses(path, store)["token_embd.weight"] == ("values = store's", math.inf)


def test_no_gguf_at_all(tmp_path):
    (tmp_path / "f.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(FileFormatError, match="version 0"):
        check_gguf(tmp_path / "f.gguf")


def test_bytes_after_the_last_tensor(plain, tmp_path):
    path = Path(shutil.copy(plain[0], tmp_path / "f.gguf"))
    with path.open("ab") as file:
        file.write(bytes(32))
    (miss,) = [check for check in check_gguf(path, plain[1]) if not check.ok]
    assert (miss.name, miss.error) == ("bytes after the last tensor", 32)

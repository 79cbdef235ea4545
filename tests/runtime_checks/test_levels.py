"""A folder of level grids: verified as it is, by the portable body, and after one change at a time."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter.inspect import inspect
from exporter.onnx.file import onnx_size, write_onnx
from exporter.onnx.levels_op import points_of
from exporter.targets import TARGETS
from quantize import open_checkpoint, quantize_checkpoint
from quantize.grids.levels import Levels
from quantize.types import Axis, QuantizedTensor
from runtime_checks.checks.onnx_check import check_onnx
from runtime_checks.checks.source_check import SLOPE_TOLERANCE, check_source
from runtime_checks.checks.verify import verify
from runtime_checks.reference.decode import DamagedFileError
from runtime_checks.reference.onnx import read_onnx
from tests.cases import config_of
from tests.runtime_checks.made import Made, tensor
from tests.tiny import make_tiny_model

TARGET = TARGETS["onnxruntime+adadim"]
UP = "model.layers.0.mlp.up_proj"
FORMS = {
    "lm2 per IC": {"method": "rtn-ic", "grid": "lm2", "group_size": 32},
    "lm3": {"method": "gptq-oc", "grid": "lm3"},
    "lm4, both axes": {"method": "rtn-ada", "grid": "lm4", "group_size": 64},
    "hg2": {"method": "gptq-ada", "grid": "hg2"},
    "hg3 in groups, beside floats": {"method": "gptq-oc", "grid": "hg3", "group_size": 32, "float_columns": 2},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """96 and 80 are no powers of two, 80 is no multiple of a block of 32 either."""
    return open_checkpoint(
        make_tiny_model(tmp_path_factory.mktemp("odd") / "model", hidden=96, ffn=80, layers=1, heads=3, kv_heads=1)
    )


def made(source, folder, **options) -> Made:
    store = quantize_checkpoint(source, folder / "store", config_of(calibration_tokens=1024, **options), TARGET)
    return Made(source, store, write_onnx(store, folder / "onnx"))


@pytest.fixture(scope="module", params=["lm3", "hg3"])
def item(request, source, tmp_path_factory) -> Made:
    return made(source, tmp_path_factory.mktemp(request.param), method="rtn-oc", grid=request.param, group_size=32)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_verified_by_the_portable_body(source, tmp_path, form):
    item = made(source, tmp_path, **FORMS[form])
    assert not [check for check in verify(item.file, source, item.store) if not check.ok]
    size = sum(path.stat().st_size for path in item.file.glob("model.onnx*"))
    assert size == onnx_size(item.store)
    said = {entry["name"]: entry for entry in inspect(item.file)["tensors"]}
    grids = {said[name]["grid"] for name, record in item.store.records.items() if isinstance(record.grid, Levels)}
    assert grids == {FORMS[form]["grid"]}
    levels = {tensor.name for tensor in onnx.load(item.file / "model.onnx", load_external_data=False).graph.initializer}
    assert f"adadim.levels_{FORMS[form]['grid']}" in levels


def test_the_reference_reads_levels_and_scales(item):
    for name, held in read_onnx(item.file).items():
        q = item.store.read(name)
        if isinstance(q, QuantizedTensor) and isinstance(q.grid, Levels):
            expected = q.grid.values[q.codes] * np.repeat(q.params["d"].astype(np.float32), 32, axis=1)[:, : q.codes.shape[1]]
            np.testing.assert_array_equal(held.decode(), expected)
            assert held.codes().bits == q.grid.bits
            if q.grid.dims == 2:
                points = points_of(q, q.grid)
                np.testing.assert_array_equal(np.array(q.grid.levels)[0][points], held.codes().codes[:, ::2])


def changed(item: Made, folder, change) -> Made:
    shutil.copytree(item.file, folder / "copy")
    model = onnx.load(folder / "copy" / "model.onnx", load_external_data=False)
    change(model.graph)
    (folder / "copy" / "model.onnx").write_bytes(model.SerializeToString())
    return Made(item.source, item.store, folder / "copy")


def levels_changed(edit):
    def change(graph):
        (table,) = [tensor for tensor in graph.initializer if tensor.name.startswith("adadim.levels_")]
        table.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(table).copy()), table.name))

    return change


def flipped(table: np.ndarray) -> np.ndarray:
    table[0, 2] *= -1
    return table


def test_a_flipped_level_is_seen(item, tmp_path):
    other = changed(item, tmp_path, levels_changed(flipped))
    misses = [check for check in check_onnx(other.file, item.store) if not check.ok]
    linears = {name for name, record in item.store.records.items() if isinstance(record.grid, Levels)}
    assert {(check.name, check.tensor) for check in misses} == {("codes = store's", name) for name in linears}
    assert [check for check in verify(other.file, item.source, None) if not check.ok]  # the seal


@pytest.mark.parametrize("what", ["codes", "scale"])
def test_a_changed_byte_is_seen(item, tmp_path, what):
    other = changed(item, tmp_path, lambda graph: None)
    tensor(other.file, f"{UP}.weight.{what}")[-2 if what == "scale" else 0] ^= 1
    misses = {(check.name, check.tensor) for check in check_onnx(other.file, item.store) if not check.ok}
    assert misses == {(f"{'scales' if what == 'scale' else what} = store's", f"{UP}.weight")}


def test_another_size_is_seen_without_the_store(item, tmp_path):
    assert all(check.ok for check in check_source(item.file, item.source))
    other = changed(item, tmp_path, lambda graph: None)
    tensor(other.file, f"{UP}.weight.scale").view(np.float16)[:] *= 2
    misses = [check for check in check_source(other.file, item.source) if not check.ok]
    assert any(check.tolerance == SLOPE_TOLERANCE for check in misses) and {check.tensor for check in misses} == {f"{UP}.weight"}


def attribute(key: str, value: int):
    def change(graph):
        for node in graph.node:
            for item in node.attribute:
                if node.name == f"{UP}/MatMulLevels" and item.name == key:
                    item.i = value

    return change


DAMAGED = {
    "another layout": (attribute("layout", 0), "layout 0, which is not specified"),
    "no width": (attribute("bits", 5), "5 bits"),
    "no groups": (attribute("group_size", 0), "groups of 0"),
    "no axis": (attribute("per_oc", 2), "which is not specified"),
    "other sizes": (attribute("K", 500), "has the shape"),
    "none": (attribute("N", 0), "has 0 rows"),
    "three sides": (levels_changed(lambda table: np.resize(table, (3, table.shape[1]))), "which is not specified"),
    "few levels": (levels_changed(lambda table: table[:, :-1]), "has the shape"),
    "other numbers": (levels_changed(lambda table: table.astype(np.uint8)), "is of type 2"),
}


@pytest.mark.parametrize("lie", DAMAGED)
def test_a_node_that_is_not_specified_is_refused(item, tmp_path, lie):
    change, told = DAMAGED[lie]
    other = changed(item, tmp_path, change)
    with pytest.raises(DamagedFileError, match=told):
        for held in read_onnx(other.file).values():
            held.decode()


def test_pairs_per_ic_are_refused(item, tmp_path):
    other = changed(item, tmp_path, attribute("per_oc", 0))
    with pytest.raises(DamagedFileError, match=r"has the shape|not specified"):
        read_onnx(other.file)[f"{UP}.weight"].decode()


def test_an_axis_is_chosen_where_both_are_held(source, tmp_path):
    store = made(source, tmp_path, method="rtn-ada", grid="lm2", group_size=32).store
    assert {record.axis for record in store.records.values() if isinstance(record.grid, Levels)} == set(Axis)

"""A store that somebody changed: what plan.json and the tensor files may not say, each in one line with its key."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporter.made_for import target_of
from quantize.errors import StoreError
from quantize.store.tensors import QuantizedStore
from tests.stores import rtn_store, unseal
from tests.tiny import make_tiny_model

Edit = Callable[[dict[str, Any]], object]
NORM, QUERY = 1, 2  # places in plan.json


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("schema")
    store = rtn_store(make_tiny_model(folder / "model", layers=1), folder / "store", "onnxruntime", group_size=32).path
    unseal(store / "plan.json")
    return store


@pytest.fixture
def store(whole, tmp_path) -> Path:
    """Links to the files, of which each test replaces one."""
    for path in sorted(whole.rglob("*")):
        copy = tmp_path / "store" / path.relative_to(whole)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            os.link(path, copy)
    return tmp_path / "store"


def rewrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def tensor(index: int, **values: object) -> Edit:
    return lambda plan: plan["tensors"][index].update(values)


def header(**values: object) -> Edit:
    return lambda plan: plan.update(values)


SHA = "0" * 64
PLANS: dict[str, tuple[Edit, str]] = {
    "no tensors": (lambda plan: plan.pop("tensors"), "missing required field tensors"),
    "a tensor that is a list": (lambda plan: plan["tensors"].append([]), r"tensors\[\d+\] is \[\]: Expected object"),
    "a name that climbs": (tensor(QUERY, name="../../x"), r"tensors\[2\]: name is '../../x': Expected str matching"),
    "an absolute name": (tensor(QUERY, name="/etc/passwd"), r"tensors\[2\]: name is '/etc/passwd'"),
    "a name without end": (tensor(QUERY, name="a" * 10**5), r"tensors\[2\]: name is 'aaa"),
    "a name with an escape": (tensor(QUERY, name="a\x1b[31m"), r"tensors\[2\]: name is 'a\\x1b\[31m'"),
    "a name twice": (lambda plan: plan["tensors"].append(plan["tensors"][0]), r"embed_tokens\.weight is there twice"),
    "a shape of words": (tensor(QUERY, shape=["64", 64]), r"tensors\[2\]: shape\[0\] is '64': Expected int"),
    "a shape below nothing": (tensor(QUERY, shape=[-1, 64]), r"shape\[0\] is -1"),
    "a shape without end": (tensor(QUERY, shape=[2**40, 64]), r"shape\[0\] is 1099511627776"),
    "no shape": (tensor(QUERY, shape=[]), r"shape is \[\]: Expected array of length >= 1"),
    "three lengths": (tensor(QUERY, shape=[64, 64, 1]), r"q_proj\.weight has shape \(64, 64, 1\), config\.json says \(64, 64\)"),
    "five lengths": (tensor(QUERY, shape=[64, 64, 1, 1, 1]), r"Expected array of length <= 4"),
    "codes of one length": (tensor(QUERY, shape=[64]), r"shape \(64,\) on the grid int"),
    "another shape": (tensor(QUERY, shape=[32, 128]), r"q_proj\.weight has shape \(32, 128\), config\.json says \(64, 64\)"),
    "chunks of a fraction": (tensor(QUERY, chunks=1.5), r"tensors\[2\]: chunks is 1\.5"),
    "more chunks than rows": (tensor(QUERY, chunks=65), "chunks is 65, but there are 64 rows"),
    "an unknown grid": (tensor(QUERY, grid="q9_9"), r"q9_9 of 4 bits in groups of 32, symmetric: False, is no grid"),
    "a grid of nothing": (tensor(QUERY, grid=None), r"tensors\[2\]: grid is None: Expected str"),
    "another grid's bits": (tensor(QUERY, grid="q4_1", bits=5), "q4_1 of 5 bits .* is no grid"),
    "true bits": (tensor(QUERY, bits=True), r"bits is True: Expected int, got bool"),
    "bits that no grid has": (tensor(QUERY, bits=7), "no grid: bits=7: the int grid stores 2, 3, 4, 8 bits"),
    "a group of 48": (tensor(QUERY, group_size=48), "no grid: group size 48: must be a power of two"),
    "a group without end": (tensor(QUERY, group_size=2**30), "group_size 1073741824 for groups that run along 64 weights"),
    "scales of a type of nobody": (tensor(QUERY, scale_dtype="float8"), "no grid: scale_dtype='float8'"),
    "an axis of nobody": (tensor(QUERY, axis="per_xc"), r"axis is 'per_xc': Invalid enum value"),
    "a loss without end": (tensor(QUERY, loss={"per_oc": float("inf")}), "loss"),
    "a loss of no axis": (tensor(QUERY, loss={"x": 1.0}), "loss"),
    "a type of nobody": (tensor(NORM, dtype="F8"), r"tensors\[1\]: dtype is 'F8': Invalid enum value"),
    "no type": (lambda plan: plan["tensors"][NORM].pop("dtype"), "missing required field dtype"),
    "a target that is a number": (header(target=3), "target is 3: Expected str"),
    "an order of nobody": (header(row_order="x"), "row_order is 'x'"),
    "no source": (header(source=None), "source is None: Expected object"),
    "a sum that is none": (header(source={"name": "m", "sha256": "x"}), r"source\.sha256 is 'x'"),
    "no method": (lambda plan: plan["config"].pop("method"), "missing required field method"),
    "a seed below nothing": (lambda plan: plan["config"].update(seed=-1), "seed is -1"),
    "calibration that is a word": (header(calibration="x"), "calibration is 'x'"),
    "tokens of a fraction": (header(calibration={"text": "t", "sha256": SHA, "tokens": 0.5}), r"calibration\.tokens is 0\.5"),
    "an imatrix of no text": (
        header(imatrix={"name": "i", "sha256": SHA, "datasets": None, "chunks": 1}),
        r"imatrix\.datasets is None",
    ),
    "losses that do not pair": (header(blocks={"steps": 1, "before": [1.0], "after": []}), "1 losses before and 0 after"),
    "no losses": (header(blocks={"steps": 1, "before": [], "after": []}), r"blocks\.before is \[\]"),
    "a budget of nothing": (header(budget={"target_bytes": 0, "bytes": 1, "predicted_kl": 0.1}), r"budget\.target_bytes is 0"),
    "transforms of letters": (header(transforms={"norm-gains": "x"}), "transforms"),
    "transforms of other layers": (
        header(transforms={"norm-gains": "0101"}),
        "norm-gains has 4 digits, config.json says 1 layers",
    ),
    "notes that are numbers": (header(notes=[3]), r"notes\[0\] is 3"),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_changed_plan_is_one_line_with_its_key(case, store):
    edit, words = PLANS[case]
    plan = json.loads((store / "plan.json").read_bytes())
    edit(plan)
    rewrite(store / "plan.json", json.dumps(plan).encode())
    with pytest.raises(StoreError, match=words) as raised:
        QuantizedStore(store)
    assert str(raised.value).startswith(f"{store}/plan.json: ") and len(str(raised.value)) < 1200
    assert str(raised.value).isprintable()


TEXTS = {
    "deep": (b"[" * 100_000, "not JSON"),
    "a key twice": (b'{"format": 1, "format": 1}', "the key format is twice"),
    "half a pair": (b'{"format": "\\ud800"}', "half of a surrogate pair"),
    "not UTF-8": (b'{"\xff": 1}', "not UTF-8 at byte 2"),
    "digits without end": (b"9" * 5000, "not JSON"),
    "a list": (b"[]", "Expected object, got array"),
    "another format": (b'{"format": ' + b"9" * 4000 + b"}", "store format 999"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_plan_that_is_no_json(case, store):
    data, words = TEXTS[case]
    rewrite(store / "plan.json", data)
    with pytest.raises(StoreError, match=words) as raised:
        QuantizedStore(store)
    assert len(str(raised.value)) < 1200


def test_layers_are_counted_before_they_are_believed(store):
    path = store / "assets" / "config.json"
    rewrite(path, json.dumps(json.loads(path.read_bytes()) | {"num_hidden_layers": 5_000_000}).encode())
    with pytest.raises(StoreError, match=r"has 11 tensors, config\.json says 5000000 layers"):
        QuantizedStore(store)


def test_a_tensor_that_the_target_cannot_hold(store):
    plan = json.loads((store / "plan.json").read_bytes())
    plan["tensors"][QUERY].update(grid="q4_0", symmetric=True)
    del plan["tensors"][QUERY]["scale_dtype"]
    rewrite(store / "plan.json", json.dumps(plan).encode())
    with pytest.raises(StoreError, match=r"q_proj\.weight: target onnxruntime stores the int grid, not ggml's q4_0; plan"):
        target_of(QuantizedStore(store))


ARRAYS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no codes": (lambda a: a.pop("codes"), "where .'codes', 'scale', 'zero_point'. should be"),
    "one too many": (lambda a: a.update(more=np.zeros(1, np.uint8)), r"has .*'more'"),
    "codes of another type": (lambda a: a.update(codes=a["codes"].astype(np.int16)), r"bytes, where|codes is int16"),
    "codes of other columns": (lambda a: a.update(codes=a["codes"][:, :32].copy()), r"codes is uint8\[64, 32\]"),
    "a code of five bits": (lambda a: a["codes"].__setitem__((3, 5), 16), "codes has 0 to 16, where 0 to 15 fit"),
    "a zero point of five bits": (
        lambda a: a["zero_point"].__setitem__((3, 0), 99),
        "zero_point has .* to 99, where 0 to 15 fit",
    ),
    "scales of another type": (lambda a: a.update(scale=a["scale"].astype(np.float32)), r"scale is float32\[64, 2\]"),
    "scales that are flat": (lambda a: a.update(scale=a["scale"].ravel()), r"scale is float16\[128\], not"),
    "a scale that is no number": (lambda a: a["scale"].__setitem__((3, 0), np.nan), "scale is not finite"),
    "fewer scales than rows": (lambda a: a.update(scale=a["scale"][:3].copy()), r"its arrays have \[3, 64\] rows"),
    "no rows": (lambda a: a.update({key: value[:0] for key, value in a.items()}), r"codes is uint8\[0, 64\]"),
    "a file too large": (lambda a: a.update(codes=np.zeros((4096, 64), np.uint8)), "bytes, where plan.json makes .* the most"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_not_the_grids(case, store):
    edit, words = ARRAYS[case]
    path = store / "tensors" / "model.layers.0.self_attn.q_proj.weight.00000.safetensors"
    arrays = load_file(path)
    edit(arrays)
    path.unlink()
    save_file(arrays, path)
    with pytest.raises(StoreError, match=words):
        QuantizedStore(store).read("model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", ["plan.json", "assets/config.json", "tensors/model.norm.weight.00000.safetensors"])
def test_a_pipe_is_not_waited_for(store, tmp_path, name, sealed):
    if sealed:
        store = rtn_store(make_tiny_model(tmp_path / "model", layers=1), tmp_path / "sealed", "onnxruntime", group_size=32).path
    (store / name).unlink()
    os.mkfifo(store / name)
    with pytest.raises(StoreError, match=r"no regular file|is not a store"):
        QuantizedStore(store).read("model.norm.weight")

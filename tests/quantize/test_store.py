"""The store: what is appended comes back, nothing stands half-written under its final name, damage is named."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from quantize.errors import OutputError, StoreError
from quantize.grids import make_grid
from quantize.rounding.rtn import rtn
from quantize.store.record import TensorRecord
from quantize.store.schema import PLAN_DOOR, read_record
from quantize.store.tensors import QuantizedStore
from quantize.store.writer import StoreWriter
from quantize.types import Axis, PlainTensor, QuantizedTensor
from quantize.weight import Part
from tests.cases import AXES, GRIDS, grid_id, weight_of
from tests.tiny import Sizes, tiny_config

CONFIG = json.dumps(tiny_config(Sizes(64, 4, 2, 16, 96, 1, 320), "llama", True, "F32")).encode()
HEADER = {
    "target": "onnxruntime",
    "row_order": "hf",
    "source": {"name": "model", "sha256": "0" * 64},
    "config": {"method": "rtn-oc", "selection": "hessian", "token_weight": "unit"},
}


def write(path, pieces, force=False):
    with StoreWriter(path, force) as writer:
        for tensor, record in pieces:
            writer.append(Part(tensor), record)
        writer.finish(HEADER, {"config.json": CONFIG})
    return QuantizedStore(path)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
def test_quantized_tensors_come_back(tmp_path, grid, axis):
    tensor = rtn("w", weight_of((64, 96)), grid, axis)
    loss = {"per_oc": 1.0, "per_ic": 0.1 + 0.2}
    record = TensorRecord("w", (64, 96), grid, axis=axis, rounder="rtn", loss=loss)
    store = write(tmp_path / "s", [(tensor, record)])
    back = store.read("w")
    assert isinstance(back, QuantizedTensor)
    assert (back.grid, back.axis, store.records["w"].loss) == (grid, axis, loss)
    assert np.array_equal(back.codes, tensor.codes)
    for key, value in tensor.params.items():
        assert back.params[key].dtype == value.dtype and np.array_equal(back.params[key], value)


def test_an_int_grid_of_before_there_was_a_choice_has_float32_scales():
    record = TensorRecord("w", (64, 96), make_grid("int", 4, 32, scale_dtype="float32"), rounder="rtn")
    raw = record.to_json()
    assert raw.pop("scale_dtype") == "float32"
    assert TensorRecord.from_json(read_record(raw, PLAN_DOOR, "plan.json")) == record


def test_chunks_join_in_order(tmp_path):
    grid, weight = GRIDS[0], weight_of((64, 32))
    record = TensorRecord("w", (64, 32), grid, rounder="rtn")
    pieces = [(rtn("w", weight[i : i + 10], grid, Axis.PER_OC), record) for i in range(0, 64, 10)]
    store = write(tmp_path / "s", pieces)
    assert store.records["w"].chunks == 7 and len(list(store.chunks("w"))) == 7
    whole, joined = rtn("w", weight, grid, Axis.PER_OC), store.read("w")
    assert np.array_equal(joined.codes, whole.codes) and np.array_equal(joined.params["scale"], whole.params["scale"])


def test_plain_tensors_keep_their_bits(tmp_path):
    bits = np.arange(12, dtype=np.uint16).reshape(3, 4)
    store = write(tmp_path / "s", [(PlainTensor("e", bits, "BF16"), TensorRecord("e", (3, 4), dtype="BF16"))])
    back = store.read("e")
    assert isinstance(back, PlainTensor) and back.dtype == "BF16" and np.array_equal(back.values, bits)


def norm():
    return PlainTensor("n", np.ones(4, np.float32), "F32"), TensorRecord("n", (4,))


def test_an_interrupted_store_leaves_no_trace(tmp_path):
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "s") as writer:
        tensor, record = norm()
        writer.append(Part(tensor), record)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_forced(tmp_path):
    write(tmp_path / "s", [norm()])
    with pytest.raises(OutputError, match=r"s: exists already; name another out or pass force=True"):
        StoreWriter(tmp_path / "s")
    assert list(write(tmp_path / "s", [norm()], force=True).records) == ["n"]


def test_force_replaces_a_store_but_never_another_directory(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(OutputError, match="photos: is no store, so force does not replace it"):
        StoreWriter(tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "plan.json").unlink(), r"is not a store; make one: adadim quantize"),
        (lambda path: (path / "plan.json").write_text("{"), "plan.json is damaged"),
        (lambda path: (path / "plan.json").write_text('{"format": 99}'), "store format 99"),
        (lambda path: (path / "plan.json").write_text('{"format": 1, "tensors": [{}]}'), "plan.json is damaged"),
        (lambda path: (path / "assets" / "config.json").unlink(), r"config\.json: missing, so the store is damaged"),
    ],
)
def test_damaged_plans_are_named(tmp_path, damage, message):
    write(tmp_path / "s", [norm()])
    damage(tmp_path / "s")
    with pytest.raises(StoreError, match=message):
        QuantizedStore(tmp_path / "s")


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.unlink(),
        lambda p: p.write_bytes(p.read_bytes()[:-3]),
        lambda p: p.write_bytes(b""),
        lambda p: (p.unlink(), os.mkfifo(p)),
    ],
    ids=["missing", "truncated", "empty", "a pipe"],
)
def test_damaged_tensors_are_named(tmp_path, damage):
    store = write(tmp_path / "s", [norm()])
    damage(tmp_path / "s" / "tensors" / "n.00000.safetensors")
    with pytest.raises(StoreError, match=r"n\.00000\.safetensors: cannot be read"):
        store.read("n")


CHANGES = {
    "a bit": lambda data, at: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
    "a high bit": lambda data, at: data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :],
    "a byte less": lambda data, at: data[:at] + data[at + 1 :],
    "a byte more": lambda data, at: data[:at] + b"0" + data[at:],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store of a tensor in two chunks, a norm and two assets."""
    grid, weight = GRIDS[0], weight_of((32, 32))
    record = TensorRecord("w", (32, 32), grid, rounder="rtn")
    pieces = [(rtn("w", weight[i : i + 16], grid, Axis.PER_OC), record) for i in (0, 16)]
    path = tmp_path_factory.mktemp("whole") / "s"
    with StoreWriter(path) as writer:
        for tensor, record in [*pieces, norm()]:
            writer.append(Part(tensor), record)
        writer.finish(HEADER, {"config.json": CONFIG, "tokenizer.json": b'{"model": {"type": "BPE"}}'})
    return path


def read_all(path):
    store = QuantizedStore(path)
    for name in store.records:
        store.read(name)


FILES = [
    "plan.json",
    "assets/config.json",
    "assets/tokenizer.json",
    "tensors/n.00000.safetensors",
    "tensors/w.00000.safetensors",
    "tensors/w.00001.safetensors",
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FILES)
def test_no_byte_changes_unnoticed(tmp_path, whole, name, change):
    path = shutil.copytree(whole, tmp_path / "s")
    read_all(path)
    data = (path / name).read_bytes()
    rng = np.random.default_rng(0)
    for at in {0, len(data) - 2, *rng.integers(0, len(data), 20).tolist()}:
        (path / name).write_bytes(CHANGES[change](data, at))
        with pytest.raises(StoreError, match=name if name in (path / name).as_posix() else "plan.json"):
            read_all(path)


def test_chunks_that_change_places_are_noticed(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "s")
    first, second = (path / "tensors" / f"w.{index:05d}.safetensors" for index in (0, 1))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    with pytest.raises(StoreError, match=r"w\.00000\.safetensors: cannot be read \(has changed"):
        read_all(path)


def test_rows_that_are_too_many_are_given_to_nobody(tmp_path):
    part = PlainTensor("n", np.ones(3, np.float32), "F32")
    chunks = write(tmp_path / "s", [(part, TensorRecord("n", (5,)))] * 2).chunks("n")
    assert len(next(chunks).values) == 3
    with pytest.raises(StoreError, match=r"n is not of the shape \(5,\) of plan\.json"):
        next(chunks)


def test_the_files_of_the_list_are_those_of_the_store(whole):
    assert sorted(item.relative_to(whole).as_posix() for item in whole.rglob("*.*")) == sorted(FILES)


@pytest.mark.parametrize(("name", "message"), [("chat_template.jinja", "is no part"), ("tokenizer.json", "missing")])
def test_an_asset_too_many_or_too_few(tmp_path, whole, name, message):
    path = shutil.copytree(whole, tmp_path / "s")
    asset = path / "assets" / name
    asset.unlink() if asset.exists() else asset.write_text("{{ messages }}")
    with pytest.raises(StoreError, match=rf"assets/{name}: {message}"):
        QuantizedStore(path)


@pytest.mark.parametrize("key", ["sha256", "assets"])
def test_a_key_that_names_no_digest_hides_nothing(tmp_path, whole, key):
    path = shutil.copytree(whole, tmp_path / "s")
    text = (path / "plan.json").read_text()
    (path / "plan.json").write_text('"other"'.join(text.rsplit(f'"{key}"', 1)))
    with pytest.raises(StoreError, match=r"plan\.json: has changed"):
        QuantizedStore(path)


def test_a_store_of_before_there_were_digests_is_read(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "s")
    plan = json.loads((path / "plan.json").read_text())
    for item in (plan, *plan["tensors"]):
        del item["sha256"]
    del plan["assets"]
    (path / "plan.json").write_text(json.dumps(plan))
    read_all(path)
    assert QuantizedStore(path).asset("config.json") == CONFIG


def test_a_foreign_file_in_a_store_survives_force(tmp_path):
    write(tmp_path / "s", [norm()])
    for name in ("mine.txt", "assets/thesis.tex", "tensors/mine.safetensors"):
        (tmp_path / "s" / name).write_text("mine")
        with pytest.raises(OutputError, match=f"s: {name} in it is no part of a store, so force does not replace it"):
            StoreWriter(tmp_path / "s", force=True)
        (tmp_path / "s" / name).unlink()
    write(tmp_path / "s", [norm()], force=True)


def test_shapes_that_are_not_the_models_are_damage(tmp_path):
    name, values = "model.norm.weight", np.ones(4, np.float32)
    with pytest.raises(StoreError, match=r"model\.norm\.weight has shape \(4,\), config\.json says \(64,"):
        write(tmp_path / "s", [(PlainTensor(name, values, "F32"), TensorRecord(name, (4,)))])
    store = write(tmp_path / "t", [(PlainTensor("n", values, "F32"), TensorRecord("n", (5,)))])
    with pytest.raises(StoreError, match=r"n is not of the shape \(5,\) of plan\.json"):
        store.read("n")

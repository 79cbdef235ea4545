"""Turns that were found in data: in a store once for each input, refused where they turn nothing, and where none are found."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from exporter.cli.main import main
from exporter.targets import TARGETS
from exporter.writers import WRITERS
from quantize import build_plan, open_checkpoint, quantize_checkpoint
from quantize.errors import ConfigError, StoreError
from quantize.store.tensors import QuantizedStore
from runtime_checks.checks.verify import verify
from tests.any_model import make_model
from tests.cases import config_of
from tests.stores import reseal
from tests.tiny import make_tiny_model

STOCK = TARGETS["onnxruntime"]
LAYER = "model.layers.0."
SITES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
CONFIG = config_of("duquant", group_size=32, calibration_tokens=1024)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("found") / "m"
    return open_checkpoint(make_tiny_model(folder, layers=1, hidden=96, heads=4, kv_heads=2, head_dim=32, ffn=160))


@pytest.fixture(scope="module")
def store(source, tmp_path_factory):
    return quantize_checkpoint(source, tmp_path_factory.mktemp("found") / "store", CONFIG, STOCK)


def test_stores_are_the_same_every_time(source, store, tmp_path):
    again = quantize_checkpoint(source, tmp_path / "s", CONFIG, STOCK)
    assert (again.path / "plan.json").read_bytes() == (store.path / "plan.json").read_bytes()


@pytest.fixture
def copied(store, tmp_path):
    return shutil.copytree(store.path, tmp_path / "copy")


OWNER = f"{LAYER}mlp.gate_proj.weight"
READER = f"{LAYER}mlp.up_proj.weight"


def test_a_store_holds_each_turn_once(store):
    held = {path.name.removesuffix(".00000.safetensors") for path in (store.path / "tensors").iterdir() if turn_in(path)}
    assert held == {f"{LAYER}{name}.weight" for name in SITES}
    one, other = store.turn(OWNER), store.turn(READER)
    assert one.site == other.site == OWNER and all(np.array_equal(one.arrays[key], other.arrays[key]) for key in one.arrays)


def turn_in(path) -> bool:
    with safe_open(path, "np") as file:
        return {"turn.first", "turn.second", "turn.order"} <= set(file.keys())


def change_plan(copied, change) -> None:
    plan = copied / "plan.json"
    raw = json.loads(plan.read_text())
    change(raw)
    plan.write_text(json.dumps(raw, indent=1) + "\n")
    reseal(plan)


def change_arrays(copied, change) -> None:
    """Of the file that holds the turn, and its digest."""
    path = copied / "tensors" / f"{OWNER}.00000.safetensors"
    arrays = {key: value.copy() for key, value in load_file(path).items()}
    change(arrays)
    save_file(arrays, path)

    def digest(plan):
        record = next(one for one in plan["tensors"] if one["name"] == OWNER)
        record["sha256"] = [hashlib.sha256(path.read_bytes()).hexdigest()]

    change_plan(copied, digest)


def not_orthogonal(arrays):
    arrays["turn.first"][0, 0] += 1


def not_finite(arrays):
    arrays["turn.second"][0, 0] = np.inf


def a_channel_twice(arrays):
    arrays["turn.order"][0] = arrays["turn.order"][1]


def another_shape(arrays):
    arrays["turn.first"] = np.eye(16, dtype=np.float32)


def another_type(arrays):
    arrays["turn.order"] = arrays["turn.order"].astype(np.int64)


def no_order(arrays):
    del arrays["turn.order"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (not_orthogonal, "first, which turns blocks of 32 channels, is .* from orthogonal"),
        (not_finite, "second, which turns blocks of 32 channels, is .* from orthogonal"),
        (a_channel_twice, "order is none of 96 channels, each once"),
        (another_shape, r"turn.first is float32\[16, 16\], not float32\[32, 32\]"),
        (another_type, r"turn.order is int64\[96\], not int32\[96\]"),
        (no_order, "where .*turn.order.* should be"),
    ],
)
def test_a_turn_that_is_none_is_refused(copied, change, told):
    change_arrays(copied, change)
    opened = QuantizedStore(copied)
    for name in (OWNER, READER):
        with pytest.raises(StoreError, match=rf"gate_proj.*cannot be read \(.*{told}.*quantize again$"):
            opened.weight(name)


CLAIMS = {
    "of nobody": ({"size": 32, "site": "model.layers.0.mlp.none.weight"}, "with 'model.layers.0.mlp.none.weight', where none is"),
    "of one that reads another": (
        {"size": 32, "site": f"{LAYER}mlp.down_proj.weight"},
        "with '.*down_proj.weight', where none is",
    ),
    "of another size": ({"size": 16, "site": OWNER}, f"with '{OWNER}', where none is"),
    "not yet found": ({"size": 32}, "with '', where none is"),
}


@pytest.mark.parametrize("claimed", CLAIMS)
def test_a_turn_that_is_elsewhere_is_refused(copied, claimed):
    said, told = CLAIMS[claimed]

    def claim_it(plan):
        next(one for one in plan["tensors"] if one["name"] == READER)["found_turn"] = said

    change_plan(copied, claim_it)
    with pytest.raises(StoreError, match=rf"up_proj.weight: its input's turn is said to be {told}; quantize again"):
        QuantizedStore(copied).weight(READER)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"found_turn": {"size": 48}}, "a turn in blocks of 48 input channels"),
        ({"found_turn": {"size": 32}, "turn": {"size": 96, "seed": 0}}, "two turns"),
        ({"found_turn": {"size": 32, "site": "../x"}}, "site"),
        ({"axis": "per_ic"}, "a turn in blocks of 32 input channels"),
    ],
)
def test_what_plan_json_cannot_say(copied, change, told):
    change_plan(copied, lambda plan: next(one for one in plan["tensors"] if one["name"] == READER).update(change))
    with pytest.raises(StoreError, match=told):
        QuantizedStore(copied)


@pytest.mark.parametrize("name", ["llama.cpp", "gguf-adadim"])
def test_gguf_turns_nothing(source, name):
    with pytest.raises(ConfigError, match="turns no input of a linear; onnxruntime does; choose another method"):
        build_plan(source.specs, config_of("duquant"), TARGETS[name])


def test_channels_that_no_block_divides_stay_as_they_are(tmp_path):
    source = open_checkpoint(make_tiny_model(tmp_path / "m", layers=1, hidden=96, heads=3, kv_heads=1, head_dim=32, ffn=100))
    plans = {plan.name: plan for plan in build_plan(source.specs, CONFIG, STOCK)}
    down = plans[f"{LAYER}mlp.down_proj.weight"]
    assert down.turn_blocks == 0 and "no power of two from 16 on divides its 100 channels" in down.note
    assert plans[OWNER].turn_blocks == 32


def test_a_size_does_not_weigh_turns(source, tmp_path, capsys):
    asked = ["quantize", str(source.path), "--method", "duquant", "--target", "onnxruntime", "--target-size", "1MB"]
    assert main([*asked, "--out", str(tmp_path / "s")]) == 2
    assert "turns inputs, which a target size does not weigh" in capsys.readouterr().err


def test_inputs_of_a_template_are_turned(tmp_path):
    from quantize.template.onnx_convert import convert_onnx

    model = make_model(tmp_path / "m", "gpt2", "float32")
    convert_onnx(model, tmp_path / "template")
    source = open_checkpoint(tmp_path / "template", model)
    found = quantize_checkpoint(source, tmp_path / "s", config_of("duquant", group_size=32, token_weight="unit"), STOCK)
    assert all(found.turn(name) is not None for name, record in found.records.items() if name.startswith(LAYER) and record.grid)
    checks = verify(WRITERS["onnx"].write(found, tmp_path / "onnx"), source, found)
    assert checks and all(check.ok for check in checks)

"""Inputs turned in blocks, in ONNX's own operators: where they stand in a graph, what runs, and what verify sees of changes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from exporter.cli.main import main
from exporter.inspect import inspect
from exporter.onnx.file import onnx_size, write_onnx
from exporter.onnx.turns import OP_TYPE
from exporter.targets import TARGETS
from quantize import build_plan, open_checkpoint, quantize_checkpoint
from quantize.planning.plan import ModelPlan
from quantize.run.pipeline import planned_store
from runtime_checks.checks.verify import steps_of, verify
from runtime_checks.reference.decode import DamagedFileError
from runtime_checks.reference.onnx import read_onnx
from runtime_checks.reference.onnx_sum import whole_weights
from tests.cases import config_of
from tests.tiny import make_tiny_model

STOCK, ADADIM = TARGETS["onnxruntime"], TARGETS["onnxruntime+adadim"]
LAYER = "model.layers.0."
SITES = {"self_attn.q_proj": 32, "self_attn.o_proj": 64, "mlp.gate_proj": 32, "mlp.down_proj": 32}  # and channels of a block
CONFIG = config_of("duquant", group_size=32, calibration_tokens=1024)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks") / "m"
    return open_checkpoint(make_tiny_model(folder, layers=1, hidden=96, heads=4, kv_heads=2, head_dim=32, ffn=160))


@pytest.fixture(scope="module", params=[STOCK, ADADIM], ids=lambda target: target.name)
def store(source, tmp_path_factory, request):
    return quantize_checkpoint(source, tmp_path_factory.mktemp("blocks") / "store", CONFIG, request.param)


@pytest.fixture(scope="module")
def written(store, tmp_path_factory):
    return write_onnx(store, tmp_path_factory.mktemp("blocks") / "onnx")


def loaded(folder) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def test_each_input_is_turned_once_in_operators_of_onnx(source, store, written):
    model = loaded(written)
    own = [node for node in model.graph.node if ".turned/" in node.name]
    assert {node.op_type for node in own} == {"Shape", "Reshape", "MatMul", "Gather"}
    assert {node.domain for node in own} == {""} and OP_TYPE not in {function.name for function in model.functions}
    assert list(dict.fromkeys(node.name.partition("/")[0] for node in own)) == [f"{LAYER}{name}.turned" for name in SITES]
    held = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer if ".turn." in tensor.name}
    assert {name: held[f"{LAYER}{name}.weight.turn.second"] for name in SITES} == {name: [n, n] for name, n in SITES.items()}
    assert len(held) == 3 * len(SITES)
    size = sum(path.stat().st_size for path in written.iterdir() if path.name.startswith("model.onnx"))
    assert onnx_size(store) == size
    target = TARGETS[store.target]
    with planned_store(source, ModelPlan(CONFIG, target, build_plan(source.specs, CONFIG, target))) as planned:
        assert onnx_size(planned) == size


def test_what_is_written_verifies(source, store, written):
    checks = verify(written, source, store)
    assert not [check for check in checks if not check.ok]
    names = {check.name for check in checks}
    assert {"turn = store's", "onnxruntime = reference, turned", "turn is orthogonal", "metadata = the turn's signs"} <= names
    assert {"codes = store's", "logits at accuracy level 0 = torch", "turns that no codes are behind"} <= names
    assert store.header["transforms"] == {"smooth": "1"}
    told = {item["name"]: item for item in inspect(written)["tensors"]}
    assert told[f"{LAYER}mlp.down_proj.weight"]["grid"] == "int"


def test_the_reference_leads_weights_back(store, written):
    turned = 0
    for name, weight in whole_weights(read_onnx(written)).items():
        if weight.first.read_turn is not None:
            dense, turned = store.weight(name).dense(), turned + 1
            np.testing.assert_allclose(weight.whole(weight.first.decode()), dense, atol=1e-5 * np.abs(dense).max())
            assert np.abs(dense - weight.first.decode()).max() > 0.1 * np.abs(dense).max()
    assert turned == 7


def test_a_graph_of_float16_verifies(source, store, tmp_path):
    folder = write_onnx(store, tmp_path / "onnx", onnx_dtype="float16")
    own = [node.op_type for node in loaded(folder).graph.node if ".turned/" in node.name]
    assert own.count("Cast") == 2 * len(SITES)
    checks = verify(folder, source, store)
    assert not [check for check in checks if not check.ok]


def edited(folder, change) -> None:
    """All data inside of the graph, and the seals as they were."""
    model = loaded(folder)
    load_external_data_for_model(model, str(folder))
    for path in folder.glob("model.onnx.data*"):
        path.unlink()
    for tensor in model.graph.initializer:
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def of(model, name) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == f"{LAYER}{name}")


def put(tensor, values) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def flip_an_entry(model):
    tensor = of(model, "mlp.down_proj.weight.turn.second")
    values = numpy_helper.to_array(tensor).copy()
    values[3, 5] *= -1
    put(tensor, values)


def exchange_two(model):
    tensor = of(model, "self_attn.q_proj.weight.turn.order")
    values = numpy_helper.to_array(tensor).copy()
    values[[4, 70]] = values[[70, 4]]
    put(tensor, values)


def other_way_round(model):
    tensor = of(model, "self_attn.q_proj.weight.turn.first")
    put(tensor, np.ascontiguousarray(numpy_helper.to_array(tensor).T))


def pass_by(model):
    """up reads what is not turned."""
    shape = next(node for node in model.graph.node if node.name == f"{LAYER}mlp.gate_proj.turned/Shape")
    next(node for node in model.graph.node if node.name.startswith(f"{LAYER}mlp.up_proj/MatMul")).input[0] = shape.input[0]


def claim(change):
    def changed(model):
        for entry in model.metadata_props:
            if entry.key == "adadim.tensors":
                tensors = json.loads(entry.value)
                change(next(item for item in tensors if item["name"].endswith("down_proj.weight")))
                entry.value = json.dumps(tensors)

    return changed


CHANGES = {
    "an entry flipped": (flip_an_entry, {"turn = store's", "turn is orthogonal"}),
    "two places exchanged": (exchange_two, {"turn = store's"}),
    "a matrix the other way round": (other_way_round, {"turn = store's"}),
    "an input passed by": (pass_by, {"turn = store's", "metadata = the turn's signs"}),
    "another size claimed": (
        claim(lambda item: item["found_turn"].update(size=16)),
        {"metadata = the turn's signs", "metadata = store's"},
    ),
    "no turn claimed": (claim(lambda item: item.pop("found_turn")), {"metadata = the turn's signs", "metadata = store's"}),
    "a turn by seed claimed": (
        claim(lambda item: item.update(turn={"size": 160, "seed": 0})),
        {"metadata = the turn's signs", "metadata = store's"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(source, store, written, tmp_path, change):
    """With the store, and of what does not only contradict it by the file alone."""
    folder = shutil.copytree(written, tmp_path / "onnx")
    edit, expected = CHANGES[change]
    edited(folder, edit)
    missed = {known: set() for known in (True, False)}
    for known, names in missed.items():
        for step in ("claims", "tensors"):
            checks = steps_of(folder)[step](folder, source, store if known else None)
            names.update(check.name for check in checks if not check.ok)
    assert missed[True] == expected
    assert missed[False] == expected - {"turn = store's", "metadata = store's"}


def test_without_its_store_weights_tell(source, written, tmp_path):
    """They are folded, and so compared with the source's by what they compute."""
    folder = shutil.copytree(written, tmp_path / "onnx")
    edited(folder, other_way_round)
    steps = steps_of(folder)
    assert [check for step in ("source", "folds") for check in steps[step](folder, source, None) if not check.ok]


def node_of(model, name):
    return next(node for node in model.graph.node if node.name == f"{LAYER}{name}")


DAMAGE = {
    "an order with a channel twice": lambda model: put(of(model, "mlp.down_proj.weight.turn.order"), np.zeros(160, np.int32)),
    "an order of another length": lambda model: put(of(model, "mlp.down_proj.weight.turn.order"), np.arange(159, dtype=np.int32)),
    "blocks that do not fit": lambda model: put(of(model, "mlp.down_proj.weight.turn.first"), np.eye(48, dtype=np.float32)),
    "blocks of two sizes": lambda model: put(of(model, "mlp.down_proj.weight.turn.second"), np.eye(16, dtype=np.float32)),
    "no blocks": lambda model: put(of(model, "mlp.down_proj.weight.turn.first"), np.float32(1)),
    "another operator": lambda model: setattr(node_of(model, "mlp.down_proj.turned/MatMul second"), "op_type", "Mul"),
    "an input less": lambda model: node_of(model, "mlp.down_proj.turned/Gather").input.pop(),
}


REFUSED = {
    "an order with a channel twice": "does not take each of 160 channels once",
    "an order of another length": r"has the shape \[159\], not \[160\]",
    "blocks that do not fit": "turns 160 channels in blocks of 48",
    "blocks of two sizes": r"has the shape \[16, 16\], not \[32, 32\]",
    "no blocks": "turns 160 channels in blocks of 0",
    "another operator": "turns an input, but not by Reshape, MatMul, Reshape, Gather",
    "an input less": "turns an input, but not by",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_reference_refuses_it(written, tmp_path, damage):
    folder = shutil.copytree(written, tmp_path / "onnx")
    edited(folder, DAMAGE[damage])
    with pytest.raises(DamagedFileError, match=REFUSED[damage]):
        read_onnx(folder)[f"{LAYER}mlp.down_proj.weight"].turn()


@pytest.mark.parametrize("damage", ["an order with a channel twice", "an input less"])
def test_damage_is_one_line(source, written, tmp_path, damage, capsys):
    folder = shutil.copytree(written, tmp_path / "onnx")
    edited(folder, DAMAGE[damage])
    assert main(["verify", str(folder), "--source", str(source.path), "--quiet"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_gptq_rounds_what_is_turned(source, tmp_path):
    """Beside linears of another method that share their input, and read it as it is."""
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "*.k_proj"\nmethod = "rtn-oc"\n')
    config = config_of("duquant", group_size=32, calibration_tokens=1024, rounder="gptq", recipe=recipe)
    store = quantize_checkpoint(source, tmp_path / "s", config, STOCK)
    turned = {name for name, record in store.records.items() if record.found_turn is not None}
    assert len(turned) == 6 and f"{LAYER}self_attn.k_proj.weight" not in turned
    assert store.records[f"{LAYER}self_attn.v_proj.weight"].rounder == "gptq"
    folder = write_onnx(store, tmp_path / "onnx")
    checks = verify(folder, source, store)
    assert not [check for check in checks if not check.ok]

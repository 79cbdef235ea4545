from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exporter.onnx.file import write_onnx
from quantize import Axis, make_grid
from quantize.errors import ExportError, OutputError, StoreError
from quantize.model_config import EMBEDDING
from quantize.source import build_model, logits
from tests.exporter.onnx_stores import Recipe, Session, make_store, tiny_store
from tests.tiny import make_tiny_model

FLOAT_MODEL = 1e-5  # relative: float32 kernels of two runtimes through two layers (1e-6 was seen)
INT8 = make_grid("int", 8, 32)
MODELS = [("llama", True), ("qwen2", False), ("qwen3", True), ("mistral", False)]
ODD = {"hidden": 72, "head_dim": 16}  # rows of 72: ragged groups everywhere


def in_turns(name: str) -> Axis:
    return Axis.PER_IC if sum(name.encode()) % 2 else Axis.PER_OC


def per_ic(name: str) -> Axis:
    return Axis.PER_IC


def assert_same_logits(folder: Path, store, weights) -> None:
    """Prompt of a batch of two at once, then the same tokens in a prompt and one by one from the KV cache."""
    tokens = np.random.default_rng(1).integers(3, 300, (2, 12))
    expected = logits(build_model(store.config, weights.__getitem__, store.tied), tokens)
    whole = Session(folder, store.config, 2)(tokens)
    stepwise = Session(folder, store.config, 2)
    steps = np.concatenate([stepwise(part) for part in np.split(tokens, [6, 7, 8, 9, 10, 11], axis=1)], axis=1)
    for actual in (whole, steps):
        np.testing.assert_allclose(actual, expected, atol=FLOAT_MODEL * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime+adadim"])
@pytest.mark.parametrize(("model_type", "tied"), MODELS)
def test_every_architecture_gives_the_logits_of_its_decoded_weights(model_type, tied, target, tmp_path):
    recipe = Recipe(make_grid("int", 4, 32), in_turns, INT8, target)
    store, weights = tiny_store(tmp_path, recipe, model_type, tied=tied, **ODD)
    assert_same_logits(write_onnx(store, tmp_path / "out", accuracy_level=0), store, weights)


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime+adadim"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 32), (4, 64), (8, 32), (4, 1024)])
def test_every_grid_gives_the_logits_of_its_decoded_weights(bits, group_size, symmetric, target, tmp_path):
    grid = make_grid("int", bits, group_size, symmetric)
    store, weights = tiny_store(tmp_path, Recipe(grid, in_turns, grid, target), **ODD)
    assert_same_logits(write_onnx(store, tmp_path / "out", accuracy_level=0), store, weights)


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime+adadim"])
def test_float16_scales_are_widened_when_the_file_is_loaded(target, tmp_path):
    """Every scale is stored as float16, and what runs reads float32 scales: no Cast but those of the attention's mask."""
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8, target), **ODD)
    folder = write_onnx(store, tmp_path / "out")
    stored = onnx.load(folder / "model.onnx", load_external_data=False).graph
    kinds = {tensor.data_type for tensor in stored.initializer if tensor.name.endswith(".weight.scale")}
    assert kinds == {onnx.TensorProto.FLOAT16}
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    running = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    assert not [tensor.name for tensor in running.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    scales = {node.input[2] for node in running.node if node.op_type == "MatMulNBits"}
    assert scales <= {tensor.name for tensor in running.initializer}


def test_float32_scales_give_the_logits_of_their_decoded_weights(tmp_path):
    grid = make_grid("int", 4, 32, scale_dtype="float32")
    store, weights = tiny_store(tmp_path, Recipe(grid, in_turns, grid), **ODD)
    assert_same_logits(write_onnx(store, tmp_path / "out", accuracy_level=0), store, weights)


def test_the_groups_of_a_wide_ragged_layer_are_kept_outside_the_graph(tmp_path):
    recipe = Recipe(make_grid("int", 4, 64), per_ic, INT8, "onnxruntime")
    store, weights = tiny_store(tmp_path, recipe, ffn=160)  # 160 int64 group numbers: more than the protobuf takes in
    assert_same_logits(write_onnx(store, tmp_path / "out", accuracy_level=0), store, weights)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_floats_of_the_source_are_stored_as_they_are(dtype, tied, tmp_path):
    store, weights = tiny_store(tmp_path, Recipe(make_grid("int", 4, 64), per_ic, None), tied=tied, dtype=dtype)
    folder = write_onnx(store, tmp_path / "out", accuracy_level=0)
    assert_same_logits(folder, store, weights)
    tensors = {tensor.name: tensor for tensor in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer}
    assert (
        onnx.TensorProto.DataType.Name(tensors[EMBEDDING].data_type)
        == {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}[dtype]
    )


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
SCALINGS = [
    {"rope_type": "linear", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "default", "rope_theta": 50.0},
    YARN,
    YARN | {"attention_factor": 1.0},
    YARN | {"factor": None},
    YARN | {"mscale": 3.0, "mscale_all_dim": 0.5},
    YARN | {"beta_fast": 4, "beta_slow": 0.5},
    YARN | {"truncate": False},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_rope_scaling(scaling, tmp_path):
    store, weights = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8), head_dim=32, rope_scaling=scaling)
    assert_same_logits(write_onnx(store, tmp_path / "out", accuracy_level=0), store, weights)


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime+adadim"])
@pytest.mark.parametrize(
    ("model_type", "biases"),
    [("llama", {"attention_bias": True, "mlp_bias": True}), ("llama", {"mlp_bias": True}), ("qwen3", {"attention_bias": True})],
)
def test_biases(model_type, biases, target, tmp_path):
    recipe = Recipe(make_grid("int", 4, 32), in_turns, INT8, target)
    store, weights = tiny_store(tmp_path, recipe, model_type, **biases)
    assert_same_logits(write_onnx(store, tmp_path / "out", accuracy_level=0), store, weights)


@pytest.mark.parametrize("key", ["use_bias", "add_bias_linear", "bias", "use_qk_norm", "rotary_pct", "head_dim_x"])
def test_keys_that_the_source_does_not_read_change_nothing(key, tmp_path):
    """Not even those that mobius-onnx would read for other families."""
    config = make_tiny_model(tmp_path / "source") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: 1}))
    store, weights = make_store(config.parent, tmp_path / "store", Recipe(make_grid("int", 4, 32), in_turns, INT8))
    assert_same_logits(write_onnx(store, tmp_path / "out", accuracy_level=0), store, weights)


def test_a_tied_head_shares_the_embeddings_bytes(tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8))
    folder = write_onnx(store, tmp_path / "out")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    gather, head = ([node for node in graph.node if node.op_type == op] for op in ("GatherBlockQuantized", "MatMulNBits"))
    assert head[-1].name == "lm_head/MatMulNBits"
    assert gather[0].input[0] == head[-1].input[1] == f"{EMBEDDING}.codes"
    assert all(int(attribute.i) == 4 for node in head for attribute in node.attribute if attribute.name == "accuracy_level")


def test_graph_is_named_and_described(tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 3, 32), in_turns, INT8))
    folder = write_onnx(store, tmp_path / "out", context=128)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    described = json.loads({prop.key: prop.value for prop in model.metadata_props}["adadim.tensors"])
    matrices = [record for record in store.records.values() if len(record.shape) == 2]
    assert [tensor["name"] for tensor in described] == [record.name for record in matrices]
    names = {node.name for node in model.graph.node}
    for tensor in described[1:]:
        record = store.records[tensor["name"]]
        form, suffix = ("matmulnbits", "MatMulNBits") if record.axis is Axis.PER_OC else ("split", "MatMulNBits_00000")
        assert (tensor["form"], tensor["axis"], tensor["bits"]) == (form, str(record.axis), 3)
        assert f"{tensor['name'].removesuffix('.weight')}/{suffix}" in names
    tables = [tensor for tensor in model.graph.initializer if tensor.name.endswith("cos_cache")]
    assert [tensor.dims[0] for tensor in tables] == [128]
    assert json.loads((folder / "genai_config.json").read_text())["model"]["context_length"] == 128


def test_same_store_same_bytes(tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8))
    one, two = (write_onnx(store, tmp_path / name) for name in ("one", "two"))
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {path.name: path.read_bytes() for path in two.iterdir()}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (one / name).read_bytes() == store.asset(name)


def test_genai_generates_what_onnxruntime_does(tmp_path):
    og = pytest.importorskip("onnxruntime_genai")
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8))
    folder = write_onnx(store, tmp_path / "out", accuracy_level=0)
    model = og.Model(str(folder))
    prompt = [int(token) for token in og.Tokenizer(model).encode("The quick brown fox")]
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + 8, min_length=len(prompt) + 8)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    expected, session = list(prompt), Session(folder, store.config, 1)
    step = session(np.array([prompt]))
    for _ in range(8):
        step[0, -1, [2]] = -np.inf  # min_length bars the end token
        expected.append(int(step[0, -1].argmax()))
        step = session(np.array([[expected[-1]]]))
    assert [int(token) for token in generator.get_sequence(0)] == expected


def test_an_existing_folder_is_refused_without_force(tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8))
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already; name another out or pass force=True"):
        write_onnx(store, tmp_path / "out")
    assert (write_onnx(store, tmp_path / "out", force=True) / "model.onnx").exists()


def test_an_unwritable_place_leaves_nothing(tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_onnx(store, tmp_path / "file" / "out")


def test_a_damaged_store_leaves_nothing(tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8))
    (store.path / "tensors" / "model.norm.weight.00000.safetensors").unlink()
    with pytest.raises(StoreError, match=r"model\.norm\.weight.*quantize again"):
        write_onnx(store, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "store"]


@pytest.mark.parametrize(
    ("sizes", "grid", "message"),
    [
        ({"hidden": 80, "heads": 4}, make_grid("int", 4, 32), "head_dim 20: .*needs a multiple of 16; export this model to GGUF"),
        *(({"head_dim": size}, make_grid("int", 4, 32), f"head_dim {size}: ") for size in (8, 24, 40, 72, 120)),
    ],
)
def test_what_onnx_cannot_hold(sizes, grid, message, tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(grid, in_turns, INT8), **sizes)
    with pytest.raises(ExportError, match=message):
        write_onnx(store, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "store"]


def test_a_store_that_lacks_a_tensor_is_refused(tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8))
    del store.records["model.norm.weight"]
    with pytest.raises(ExportError, match=r"lacks model\.norm\.weight"):
        write_onnx(store, tmp_path / "out")


def test_force_replaces_an_export_and_nothing_else(tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8))
    out = write_onnx(store, tmp_path / "out")
    with pytest.raises(OutputError, match=r"out: exists already; name another out or pass force=True"):
        write_onnx(store, out)
    write_onnx(store, out, force=True)
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"out: thesis\.txt in it is no part of an export, so force does not replace it"):
        write_onnx(store, out, force=True)
    for other in (store.path, tmp_path / "source"):
        with pytest.raises(OutputError, match=r"has no model\.onnx of an earlier export"):
            write_onnx(store, other, force=True)
    assert (out / "thesis.txt").read_text() == "mine" and (tmp_path / "source" / "model.safetensors").is_file()


def test_a_model_of_another_tool_survives_force(tmp_path):
    store, _ = tiny_store(tmp_path, Recipe(make_grid("int", 4, 32), in_turns, INT8))
    out = write_onnx(store, tmp_path / "out")
    model = onnx.load(out / "model.onnx", load_external_data=False)
    model.producer_name = "another"
    (out / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OutputError, match=r"model\.onnx in it was not written by adadim-edge"):
        write_onnx(store, out, force=True)

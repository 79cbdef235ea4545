"""ONNX folders of any architecture: written by whoever's graph computes what torch does, quantized by what onnxruntime and torch
say of them, and verified down to onnxruntime-genai's tokens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.onnx.file import write_onnx
from exporter.targets import TARGETS
from exporter.writers import WRITERS
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.gguf_template import GgufTemplate
from quantize.checkpoint.onnx_template import OnnxTemplate
from quantize.checkpoint.template import SKELETON_ASSET
from quantize.checkpoint.tokenizer_files import TEMPLATES
from quantize.effort import effort_for
from quantize.errors import CheckpointError, ConfigError, ExportError, OutputError
from quantize.model_config import EMBEDDING, HEAD
from quantize.onnx.template import parse_skeleton
from quantize.run.pipeline import quantize_checkpoint
from quantize.source import measure_curvature
from quantize.statistics.by_template import template_blocks
from quantize.store.tensors import QuantizedStore
from quantize.template.convert import convert
from quantize.template.converter import find_converter
from quantize.template.onnx_convert import convert_onnx, made_of
from runtime_checks.checks.verify import steps_of, verify
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from tests.any_model import gguf_template, make_model
from tests.cases import config_of
from tests.tiny import TEXT

ONNX = TARGETS["onnxruntime"]
HALVES = ("gpt2", "gemma3_text")  # whose gelu llama.cpp looks up in a table of half floats
TOKENS = np.random.default_rng(0).integers(3, 400, (2, 96))
BY = {  # whose graph is the first that computes what torch does
    "gpt2": "mobius-onnx with GroupQueryAttention",  # whose names have no "model.layers"
    "granitemoe": "mobius-onnx with GroupQueryAttention and MoE",  # experts
    "gemma3_text": "mobius-onnx",  # a window in some layers
    "lfm2": "onnxruntime-genai's builder",  # states of convolutions
}


@pytest.fixture(scope="module", params=BY)
def made(request, kept) -> tuple[str, Path, Path]:
    """(model_type, Hugging Face folder, template)."""
    dtype = "float32" if request.param == "lfm2" else "bfloat16"
    return request.param, kept.model(request.param, dtype), kept.onnx(request.param, dtype)


@pytest.fixture(scope="module")
def source(made) -> OnnxTemplate:
    found = open_checkpoint(made[2], made[1])
    assert isinstance(found, OnnxTemplate)
    assert found.facts.made_by.startswith(f"{BY[made[0]]} (")
    return found


def test_it_holds_the_weights_in_their_own_floats(made, source):
    """Every matrix of the folder's safetensors is one of the template's, by content, whatever either calls it."""
    from safetensors.torch import load_file

    theirs = [weight.float().numpy() for weight in load_file(made[1] / "model.safetensors").values() if weight.ndim == 2]
    ours = {source.read(name).tobytes() for name, spec in source.specs.items() if len(spec.shape) == 2}
    missing = [weight.shape for weight in theirs if not {weight.tobytes(), np.ascontiguousarray(weight.T).tobytes()} & ours]
    packed = {"gpt2": 2, "granitemoe": 0}  # q, k and v are one matrix there
    assert len(missing) == packed.get(made[0], 0)
    kinds = {spec.dtype for name, spec in source.specs.items() if len(spec.shape) == 2 and not spec.kept}
    assert kinds == {"F32" if made[0] == "lfm2" else "BF16"}
    assert source.tied == json.loads((made[1] / "config.json").read_text())["tie_word_embeddings"]
    assert source.config.num_layers == 2 and source.config.vocab_size == 400
    if made[0] == "granitemoe":
        assert {spec.kept for name, spec in source.specs.items() if spec.shape == (4, 64)} == {"a router"}


def test_what_is_made_of_it_verifies(made, source, tmp_path):
    """Every step: reference, onnxruntime at both levels, genai's own tokens, the source's graph and its words for genai."""
    store = quantize_checkpoint(source, tmp_path / "store", effort_for("default", source), ONNX)
    weighed = store.header["config"]["token_weight"]
    assert weighed == ("unit" if made[0] == "granitemoe" else "gradient")
    assert QuantizedStore(store.path).config == source.config
    checks = verify(write_onnx(store, tmp_path / "onnx"), source, store)
    assert not [check for check in checks if not check.ok]
    names = {check.name for check in checks}
    assert {"genai's tokens = onnxruntime's, as shipped", "nodes = source's"} <= names
    assert ("constant = source's" in names) == bool(source.skeleton.graph.initializer)
    assert {"logits at accuracy level 0 = torch", "codes = store's"} <= names
    assert evaluate(tmp_path / "onnx", source, TEXT, EvalOptions(64))["kld"] < 0.2
    again = write_onnx(store, tmp_path / "again")
    assert all((again / item.name).read_bytes() == item.read_bytes() for item in (tmp_path / "onnx").iterdir())


def test_both_axes_and_a_head_of_its_own(made, source, tmp_path):
    config = config_of("rtn-ic", bits=4, group_size=32, head="int4", embedding="source", token_weight="unit")
    store = quantize_checkpoint(source, tmp_path / "store", config, ONNX)
    out = write_onnx(store, tmp_path / "onnx")
    assert not [check for check in verify(out, source, store) if not check.ok]
    assert HEAD in store.records and store.records[EMBEDDING].grid is None


def test_onnxruntime_and_llama_cpp_see_the_same_inputs(made, source, tmp_path):
    """Weights are told by content; experts are known by the tokens that torch sends them."""
    if made[0] == "granitemoe":
        _check_experts(source, gguf_template(made[1], tmp_path))
        with pytest.raises(ConfigError, match="onnxruntime, which gives no gradients"):
            quantize_checkpoint(source, tmp_path / "store", config_of("gptq-oc"), ONNX)
        return
    other = gguf_template(made[1], tmp_path)
    theirs = {_mark(other, name): stats for run in template_blocks(other, TOKENS, "none") for name, stats in run.stats.items()}
    found = 0
    for run in template_blocks(source, TOKENS, "none"):
        for name, stats in run.stats.items():
            if _mark(source, name) in theirs:
                hessian = theirs[_mark(source, name)].hessian
                np.testing.assert_allclose(
                    stats.hessian, hessian, rtol=0, atol=(1e-2 if made[0] in HALVES else 1e-4) * np.abs(hessian).max()
                )
                assert stats.n_tokens == TOKENS.size
                found += 1
    assert found >= 6
    curvature = measure_curvature(source, TOKENS, 0)
    assert set(curvature.rows) == {name for name in source.specs if source.is_quantized(name)}


def _check_experts(source: OnnxTemplate, other: GgufTemplate) -> None:
    """Each of the stack's matrices: of gate and up rows lie in turn, and the way down."""
    theirs = {}
    for run in template_blocks(other, TOKENS, "unit"):
        for name, stack in run.experts.items():
            theirs |= {expert.tobytes(): stack.of(index) for index, expert in enumerate(other.read(name))}
    found = 0
    for run in template_blocks(source, TOKENS, "unit"):
        for name, stack in run.experts.items():
            for index, expert in enumerate(source.read(name)):
                for matrix in (expert[0::2], expert[1::2]) if "gate_up" in name else (expert,):
                    stats, known = stack.of(index), theirs[np.ascontiguousarray(matrix).tobytes()]
                    assert stats.n_tokens == known.n_tokens < TOKENS.size
                    np.testing.assert_allclose(
                        stats.hessian, known.hessian, atol=1e-2 * np.abs(known.hessian).max()
                    )  # BF16 there
                    found += 1
    assert found == 2 * 4 * 3  # blocks, experts, matrices


def _mark(source: OnnxTemplate | GgufTemplate, name: str) -> bytes:
    """Of a weight's content, whatever the order of its rows."""
    return source.read(name)[np.lexsort(source.read(name).T)].tobytes()


@pytest.fixture(scope="module")
def template(made) -> Path:
    """One of them, to be damaged."""
    return made[2]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "model.onnx.data").unlink(), "model.onnx.data"),
        (lambda folder: (folder / "model.onnx.data").write_bytes(b"short"), "which has 5 bytes"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no"), "not an ONNX model"),
        (lambda folder: (folder / "assets" / "config.json").write_bytes(b"{"), "not JSON"),
        (lambda folder: _changed(folder, lambda model: model.metadata_props.pop(0)), "was not written as a source"),
        (lambda folder: _told(folder, {"hidden_size": "64"}), "hidden_size"),
        (lambda folder: _changed(folder, lambda model: _rename(model, EMBEDDING)), f"{EMBEDDING} is missing"),
    ],
)
def test_a_damaged_one_is_refused_in_one_line(template, tmp_path, damage, told):
    copy = Path(shutil.copytree(template, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(CheckpointError, match=re.escape(told)) as error:
        open_checkpoint(copy).read(EMBEDDING)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


def _changed(folder: Path, change) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def _told(folder: Path, facts: dict) -> None:
    def change(model: onnx.ModelProto) -> None:
        held = json.loads(model.metadata_props[0].value)
        model.metadata_props[0].value = json.dumps(held | facts)

    _changed(folder, change)


def _rename(model: onnx.ModelProto, name: str) -> None:
    for tensor in (one for one in model.graph.initializer if one.name == name):
        tensor.name = "table"
    for node in model.graph.node:
        node.input[:] = ["table" if value == name else value for value in node.input]


def test_verify_sees_another_graph(made, source, tmp_path):
    """A node's attribute, a constant, and what genai is told: each by the step of verify that looks there."""
    store = quantize_checkpoint(source, tmp_path / "store", effort_for("fast", source), ONNX)
    out = write_onnx(store, tmp_path / "onnx")

    def missed(change, step: str = "graph") -> set[str]:
        copy = Path(shutil.copytree(out, tmp_path / "copy"))
        change(copy)
        found = {check.name for check in steps_of(copy)[step](copy, source, store) if not check.ok}
        shutil.rmtree(copy)
        return found

    def epsilon(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if any(item.name == "epsilon" for item in node.attribute))
        next(item for item in node.attribute if item.name == "epsilon").f *= 1.5

    constants = {tensor.name for tensor in source.skeleton.graph.initializer if tensor.data_type == TensorProto.INT64}

    def constant(model: onnx.ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.name in constants)
        value = numpy_helper.to_array(tensor).copy()
        value.reshape(-1)[0] += 1
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    def genai(folder: Path) -> None:
        raw = json.loads((folder / "genai_config.json").read_text())
        raw["model"]["decoder"]["head_size"] *= 2
        (folder / "genai_config.json").write_text(json.dumps(raw))

    def inserted(model: onnx.ModelProto) -> None:
        """Before the first product, where no value of a weight is touched."""
        node = next(node for node in model.graph.node if node.name.endswith("/MatMulNBits"))
        limit = numpy_helper.from_array(np.array(6, np.float32), "limit")
        model.graph.initializer.append(limit)
        model.graph.node.insert(
            list(model.graph.node).index(node), helper.make_node("Min", [node.input[0], "limit"], ["less"], "m")
        )
        node.input[0] = "less"

    def more_outputs(model: onnx.ModelProto) -> None:
        value = next(node for node in model.graph.node if node.name.endswith("/MatMulNBits")).output[0]
        model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))

    def older(model: onnx.ModelProto) -> None:
        next(one for one in model.opset_import if one.domain in ("", "ai.onnx")).version -= 1

    assert "nodes = source's" in missed(lambda folder: _changed(folder, epsilon))
    assert {"nodes = source's", "reads and makes what the source's does"} <= missed(lambda folder: _changed(folder, inserted))
    assert "outputs = source's" in missed(lambda folder: _changed(folder, more_outputs))
    assert "operators' versions = source's" in missed(lambda folder: _changed(folder, older))
    if constants:  # those of the builder are nodes
        assert "constant = source's" in missed(lambda folder: _changed(folder, constant))
    assert "genai_config = expected" in missed(genai, "assets")


def test_a_store_of_it_is_replaced_as_any_other(made, source, tmp_path):
    for force in (False, True):
        quantize_checkpoint(source, tmp_path / "store", config_of("rtn-oc"), ONNX, force)
    assert SKELETON_ASSET in QuantizedStore(tmp_path / "store").asset_names()


def test_other_formats_say_where_to_go(made, source):
    with pytest.raises(ExportError, match="adadim convert DIR --out MODEL"):
        WRITERS["gguf"].check(source, None)


def test_made_before_is_made_of_the_same_and_whole(made, tmp_path):
    assert made_of(made[2], made[1])
    with pytest.raises(OutputError, match="exists already"):
        convert_onnx(made[1], made[2])
    copy = Path(shutil.copytree(made[2], tmp_path / "copy"))
    data = bytearray((copy / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx.data").write_bytes(data)
    assert not made_of(copy, made[1])
    (copy / "app.js").write_text("of somebody else")
    with pytest.raises(OutputError, match=r"app\.js in it is no part of a source"):
        convert_onnx(made[1], copy, force=True)
    assert (copy / "app.js").is_file()


def test_more_chat_templates_are_read(made, tmp_path):
    copy = Path(shutil.copytree(made[2], tmp_path / "copy"))
    before = open_checkpoint(copy).sha256
    (copy / "assets" / "additional_chat_templates").mkdir()
    (copy / "assets" / "additional_chat_templates" / "tools.jinja").write_text("{{ messages[0].content }}")
    assert open_checkpoint(copy).sha256 != before
    assert b"tools" in open_checkpoint(copy).assets()[TEMPLATES]


def test_a_store_s_graph_is_checked(source, tmp_path):
    """It reads no file, and what is no graph is one line."""
    model = onnx.ModelProto.FromString(source.assets()[SKELETON_ASSET])
    assert parse_skeleton(model.SerializeToString(), "here") == model
    outside = helper.make_tensor("secret", TensorProto.FLOAT, [1], [0.0])
    outside.ClearField("float_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="secret.txt")
    twice = onnx.ModelProto.FromString(model.SerializeToString())
    twice.graph.node.append(twice.graph.node[0])
    model.graph.initializer.append(outside)
    for damaged, told in ((model, "lies outside"), (twice, "there already"), (onnx.ModelProto(), "empty")):
        with pytest.raises(CheckpointError, match=f"^here: .*{told}"):
            parse_skeleton(damaged.SerializeToString(), "here")


def test_past_the_length_from_which_factors_change(tmp_path):
    """Phi 3.5's rotary factors are others beyond a length; GroupQueryAttention's table would hold both, one after the other."""
    factors = {"short_factor": [1.0 + index / 10 for index in range(8)], "long_factor": [2.0 + index for index in range(8)]}
    sizes = {"max_position_embeddings": 512, "original_max_position_embeddings": 64}
    model = make_model(tmp_path / "model", "phi3", "float32", rope_scaling={"rope_type": "longrope", **factors}, **sizes)
    assert convert_onnx(model, tmp_path / "onnx").by == "mobius-onnx"


def test_a_gguf_that_transformers_reads_gives_the_same_floats(tmp_path):
    """Matrices in BF16, norms in F32 that no 16 bits hold."""
    from safetensors.torch import load_file, save_file

    model = make_model(tmp_path / "model", "qwen2", "float32")
    weights = load_file(model / "model.safetensors")
    rounded = {name: weight.bfloat16() if weight.ndim > 1 else weight + 1e-5 for name, weight in weights.items()}
    save_file(rounded, model / "model.safetensors", metadata={"format": "pt"})
    gguf = tmp_path / "model.gguf"
    convert(model, gguf, find_converter(), pre="qwen2")
    convert_onnx(gguf, tmp_path / "onnx")
    source, theirs = open_checkpoint(tmp_path / "onnx", gguf), open_checkpoint(gguf)
    assert {spec.dtype for name, spec in source.specs.items() if len(spec.shape) > 1} == {"BF16"}
    ours = {source.read(name).tobytes() for name in source.specs}
    assert not [name for name in theirs.specs if theirs.read(name).tobytes() not in ours]
    assert measure_curvature(source, TOKENS, 0).rows


def test_code_of_a_model_runs_nowhere(tmp_path):
    model = make_model(tmp_path / "model", "llama")
    raw = json.loads((model / "config.json").read_text())
    (model / "own.py").write_text("open('/tmp/adadim-ran', 'w')\n")
    (model / "config.json").write_text(json.dumps(raw | {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    with pytest.raises(CheckpointError, match="transformers does not run it"):
        convert_onnx(model, tmp_path / "onnx")
    assert not Path("/tmp/adadim-ran").exists()

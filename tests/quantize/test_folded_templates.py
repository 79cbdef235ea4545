"""Changes of basis in blocks of any architecture where they are known, in the runtime's own file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from gguf import GGUFReader

from exporter.targets import TARGETS
from exporter.writers import WRITERS
from quantize import open_checkpoint
from quantize.checkpoint.gguf_template import GgufTemplate
from quantize.checkpoint.gguf_tensors import open_language_model
from quantize.checkpoint.onnx_template import OnnxTemplate
from quantize.checkpoint.template import Template
from quantize.errors import ConfigError
from quantize.gguf.names import to_gguf_name
from quantize.run.pipeline import quantize_checkpoint
from quantize.source import walk_blocks
from quantize.statistics.by_template import template_blocks
from quantize.transforms import NAMES, TRANSFORMS
from runtime_checks.checks.verify import verify
from tests.cases import config_of
from tests.quantize.test_transforms import block_of

TOKENS = np.random.default_rng(0).integers(3, 400, 48)
BOTH_NORMS = {"norm-scales": 2, "ffn-scales": 1, "value-scales": 1, "ffn-order": 1, "value-order": 1}
PLACES = {"olmo2": BOTH_NORMS | {"norm-scales": 0}}  # its norms come after
IN_GGUF = ("llama", "qwen2", "qwen3", "phi3", "gemma3_text", "granite", "olmo2", "smollm3")
IN_ONNX = ("phi3", "gemma3_text")
HALVES = ("gemma3_text",)  # llama.cpp looks its gelu up in a table of half floats
TARGET = {"gguf": "llama.cpp", "onnx": "onnxruntime"}


@pytest.fixture(scope="module", params=[("gguf", word) for word in IN_GGUF] + [("onnx", word) for word in IN_ONNX], ids="-".join)
def made(request, kept) -> tuple[str, Template]:
    """(model_type, template); families as templates too."""
    writer, model_type = request.param
    if writer == "onnx":
        return model_type, _graph(kept, model_type)
    return model_type, kept.gguf(model_type)


def _graph(kept, model_type: str) -> OnnxTemplate:
    return OnnxTemplate(kept.onnx(model_type, "float32"), kept.model(model_type, "float32"))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_runtime_computes_the_same_in_another_basis(made, tmp_path, name):
    model_type, source = made
    blocks = [block_of(source, index) for index in range(source.config.num_layers)]
    places = [len(list(TRANSFORMS[name](block, block.fold_sites))) for block in blocks]
    assert places == [PLACES.get(model_type, BOTH_NORMS)[name]] * 2
    changed = {}
    for block in blocks:
        for place in range(places[0]):
            block = block.folded(list(TRANSFORMS[name](block, block.fold_sites))[place][0])
        changed |= {key: value for key, value in block.tensors.items() if not np.array_equal(value, source.read(key))}
        for linear in block.plans:
            np.testing.assert_allclose(block.in_source_basis(linear, block.tensors[linear]), source.read(linear), rtol=1e-6)
    assert len(changed) >= 4 * places[0]
    expected = source.logits(TOKENS)
    tolerance = (3e-3 if model_type in HALVES and source.writer == "gguf" else 3e-5) * np.abs(expected).max()
    np.testing.assert_allclose(_with(source, changed, tmp_path).logits(TOKENS), expected, rtol=0, atol=tolerance)


def _with(source: Template, changed: dict[str, np.ndarray], folder: Path) -> Template:
    """A copy of its file that holds other values."""
    if isinstance(source, GgufTemplate):
        path = Path(shutil.copy(source.path, folder / "changed.gguf"))
        held = {tensor.name: tensor for tensor in GGUFReader(path, "r+").tensors}
        for name, value in changed.items():
            held[to_gguf_name(name)].data[...] = value
            held[to_gguf_name(name)].data.flush()
        return GgufTemplate(path, *open_language_model(path))
    shutil.copytree(source.path, folder / "changed")
    graph = onnx.load(folder / "changed" / "model.onnx", load_external_data=False).graph
    places = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer}
    with (folder / "changed" / "model.onnx.data").open("r+b") as file:
        for name, value in changed.items():
            file.seek(int(places[name]["offset"]))
            file.write(value.astype("<f4").tobytes())
    return OnnxTemplate(folder / "changed")


def test_what_is_rounded_in_another_basis_verifies(made, tmp_path):
    model_type, source = made
    config = config_of("rtn-oc", bits=4, group_size=32, transforms=NAMES, token_weight="unit")
    store = quantize_checkpoint(source, tmp_path / "store", config, TARGETS[TARGET[source.writer]])
    applied = store.header["transforms"]
    assert "1" in applied["ffn-scales"] + applied["value-scales"] + applied["ffn-order"]
    assert ("1" in applied["norm-gains"]) == (model_type != "olmo2")
    out = WRITERS[source.writer].write(store, tmp_path / f"model.{source.writer}")
    checks = verify(out, source, store)
    assert not [check for check in checks if not check.ok]
    assert "decoded path = source's, but for rounding" in {check.name for check in checks}


@pytest.mark.parametrize("weigh", ["unit", "none"])
def test_its_runtime_shows_the_tokens_that_torch_does(kept, weigh):
    tokens = np.random.default_rng(1).integers(3, 400, (11, 64))  # every other token is kept
    named, source = open_checkpoint(kept.model("llama", "float32")), kept.gguf("llama")
    for one, other in zip(walk_blocks(named, tokens, weigh, 0), template_blocks(source, tokens, weigh), strict=True):
        assert one.stats.keys() == other.stats.keys()
        for name, stats in one.stats.items():
            expected, found = stats.inputs, other.stats[name].inputs
            scale = np.abs(expected.sample).max()
            assert len(found.sample) == 11 * 64 // 2
            for field in ("sample", "low", "high"):
                np.testing.assert_allclose(getattr(found, field), getattr(expected, field), rtol=0, atol=1e-4 * scale)
            np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-3)


@pytest.mark.parametrize("method", ["smoothquant", "outliertune", "outlier-suppression"])
def test_channels_are_scaled_by_what_its_runtime_shows(made, method, tmp_path):
    model_type, source = made
    config = config_of(method, bits=4, group_size=32, token_weight="unit")
    store = quantize_checkpoint(source, tmp_path / "store", config, TARGETS[TARGET[source.writer]])
    (places,) = store.header["transforms"].values()
    assert set(places) == {"0" if (model_type, method) == ("olmo2", "smoothquant") else "1"}  # no norm before a linear
    checks = verify(WRITERS[source.writer].write(store, tmp_path / f"model.{source.writer}"), source, store)
    assert checks and all(check.ok for check in checks)


@pytest.mark.parametrize("model_type", IN_ONNX)
def test_inputs_of_a_graph_get_static_scales(kept, model_type, tmp_path):
    source = _graph(kept, model_type)
    config = config_of("outliertune", token_weight="unit", max_slowdown=1.0)
    store = quantize_checkpoint(source, tmp_path / "store", config, TARGETS["onnxruntime-w8a8"])
    held = {record.activation.name for record in store.records.values() if record.activation}
    assert "a8-tensor" in held
    out = WRITERS["onnx"].write(store, tmp_path / "onnx")
    checks = verify(out, source, store)
    assert checks and all(check.ok for check in checks)
    model = onnx.load(out / "model.onnx", load_external_data=False)
    coded = [node for node in model.graph.node if node.name.endswith("mlp.down_proj.rounded/QuantizeLinear")]
    coded[0].input[0], coded[1].input[0] = coded[1].input[0], coded[0].input[0]
    onnx.save(model, out / "model.onnx")
    missed = {
        check.tensor
        for check in verify(out, source, store)
        if check.name == "reads and makes what the source's does" and not check.ok
    }
    assert missed == {f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)}


def test_a_folded_block_does_not_learn(made, tmp_path):
    _, source = made
    config = config_of("rtn-oc", bits=4, group_size=32, transforms=NAMES, token_weight="unit", tune_steps=4)
    with pytest.raises(ConfigError, match="whose basis changes does not learn; drop "):
        quantize_checkpoint(source, tmp_path / "store", config, TARGETS[TARGET[source.writer]])

"""The decoder graph, built by mobius-onnx from config.json alone: no weights, no network.

Attention is GroupQueryAttention with rotary embedding inside and three separate inputs (mobius's own ``cpu`` graph packs q, k
and v into one MatMul, whose parts could not choose their axes). Inputs: input_ids, attention_mask and
past_key_values.N.key/value; outputs: logits and present.N.key/value. Texts of a batch are padded on the right (the mask's sum is
their length), as onnxruntime-genai does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto, helper, numpy_helper

from quantize.errors import ExportError
from quantize.model_config import EMBEDDING, ModelConfig, ModelSizes
from quantize.onnx.template import with_head
from quantize.types import Array

PROVIDER = "adadim"
HOLE = "adadim.hole"
TABLES = ("cos_cache", "sin_cache")  # endings of what is looked up by position
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True)
class Decoder:
    """``model`` without initializers. A weight matrix's nodes are one ``Gather`` or ``MatMul`` of the domain HOLE, with inputs
    (activations, weight name), to be replaced by the nodes that hold the quantized weight; ``weights`` are the names of all
    weights that it needs; ``constants`` is what mobius computed."""

    model: ModelProto
    weights: frozenset[str]
    constants: Mapping[str, Array]


def exported_context(config: ModelSizes, wanted: int) -> int:
    """The context that is written: no longer than the model's own."""
    return min(wanted, config.context)


def build_decoder(config: ModelConfig, tied: bool, context: int) -> Decoder:
    """The graph of a model, with rotary tables for ``context`` positions.

    Raises ExportError for a config.json that mobius-onnx cannot read.
    """
    model, constants = _mobius_model(config, tied, context)
    constants |= _rope_tables(config, constants)
    return _cut_holes(model, constants)


def template_decoder(model: ModelProto, tied: bool, context: int, longest: int) -> Decoder:
    """Of a template's skeleton, its rotary tables cut from ``longest`` to ``context`` positions; one of another length is several
    in one. ``tied``: whether the store's head is its embedding, which may have been put apart."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    cut = {name: table[:context] for name, table in constants.items() if name.endswith(TABLES) and len(table) == longest}
    bare = with_head(model, own=not tied)
    del bare.graph.initializer[:]
    return _cut_holes(bare, constants | cut)


def _cut_holes(model: ModelProto, constants: Mapping[str, Array]) -> Decoder:
    graph = model.graph
    made = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    weights = {name for node in graph.node for name in node.input if name} - made - set(constants)
    transposed = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights
    }
    kept = []
    for node in graph.node:
        del node.metadata_props[:]
        if node.op_type == "MatMul" and node.input[1] in transposed:
            kept.append(helper.make_node("MatMul", [node.input[0], transposed[node.input[1]]], node.output, domain=HOLE))
        elif node.op_type == "Gather" and node.input[0] == EMBEDDING:
            kept.append(helper.make_node("Gather", [node.input[1], EMBEDDING], node.output, domain=HOLE))
        elif not (node.output and node.output[0] in transposed):
            kept.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    return Decoder(model, frozenset(weights), constants)


def _rope_tables(config: ModelConfig, constants: Mapping[str, Array]) -> dict[str, Array]:
    """Cosines and sines by the names of mobius's, which knows not every key of a scaling."""
    places = {end: [name for name in constants if name.endswith(f"{end}_cache")] for end in ("cos", "sin")}
    out = dict[str, Array]()
    for end, names in places.items():
        assert len(names) == 1, f"mobius-onnx made {names} for the {end} table"
        table = config.rope.tables(config.head_dim, len(constants[names[0]]))[("cos", "sin").index(end)]
        assert table.shape == constants[names[0]].shape, f"{table.shape} where mobius-onnx has {constants[names[0]].shape}"
        out[names[0]] = table
    return out


def _mobius_config(config: ModelConfig, tied: bool, context: int) -> dict[str, Any]:
    """A config.json of nothing but what the graph follows from, in the words that mobius reads."""
    out: dict[str, Any] = {
        "architectures": [CLASSES[config.model_type]],
        "model_type": config.model_type,
        **config.sizes,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": tied,
        "sliding_window": None,
        "use_mlp_bias": config.mlp_bias,
    }
    # qwen2 has its biases without being asked, and with the key one more, on o_proj.
    return out | ({} if config.model_type == "qwen2" else {"attention_bias": config.attention_bias})


def _mobius_model(config: ModelConfig, tied: bool, context: int) -> tuple[ModelProto, dict[str, Array]]:
    """mobius's graph as a proto, and its constants, which are taken out."""
    import mobius  # imports torch, which only this step needs
    import onnx_ir as ir

    if PROVIDER not in mobius.ep_registry:
        mobius.register_ep(mobius.EpCapabilities(name=PROVIDER, gqa_dtypes=frozenset({ir.DataType.FLOAT})))
    raw = _mobius_config(config, tied, context)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(raw), encoding="utf-8")
        try:
            built = mobius.build(directory, load_weights=False, dtype="f32", execution_provider=PROVIDER)["model"]
        except Exception as error:  # whatever its many parts and transformers raise on a config.json that they do not expect
            advice = "compare the file with the original model's"
            raise ExportError(f"config.json: mobius-onnx cannot build this decoder ({error}); {advice}") from error
    built.graph.name, graph = config.model_type, built.graph
    known = {name: value.const_value.numpy() for name, value in graph.initializers.items() if value.const_value is not None}
    graph.initializers.clear()
    built.functions.clear()  # the body of a fused norm, for runtimes without it: GroupQueryAttention has none either
    return ir.serde.serialize_model(built), known

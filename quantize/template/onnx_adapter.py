"""Asks torch and the makers of ONNX graphs about a Hugging Face folder, under ``serve.py``. Imports nothing of ours.

Requests::

    {"action": "unpack", "source", "out"}             OUT: a GGUF, or a folder that is quantized, as one of floats, no tokenizer
    {"action": "twin", "folder", "out", "whole"}      OUT: a small random model of the same config, and its logits; "whole":
                                                      with all of its tokens and its window
    {"action": "logits", "folder", "out"}             OUT/tokens.npy, OUT/logits.npy of the folder's own model
    {"action": "build", "by", "folder", "out"}        OUT/model.onnx in float32, as that tool writes it
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

TWIN_TOKENS, FEW_TOKENS = 48, 12  # of a twin, past its window; of a model of any size
WINDOW, VOCABULARY, EXPERTS = 16, 1024, 8  # of a twin, at most
SPECIAL, IDS = ("<unk>", "<s>", "</s>"), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DENSE_FIRST = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
MOST_KINDS = 4  # of layers that a list tells apart; more are numbers of their own
TURNS = ("sliding_window", "original_max_position_embeddings", "attention_chunk_size")
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
LONGEST = 2048  # tokens of a model that says nothing of them
ANY = 1 << 30  # as many as the config has
LOUDER = 4  # times the weights that transformers starts with, so that logits differ
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
USED = ("num_experts_per_tok", "moe_k", "top_k", "moe_topk")
STACKS = "adadim.stacks"  # a domain, while a graph is built, of matrices that are put one below the other


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What its action gives."""
    return ACTIONS[request["action"]](request)


def _unpack(request: Mapping[str, Any]) -> dict[str, Any]:
    """Each matrix in the narrowest floats that hold it; all else in float32."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    source = Path(request["source"])
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if source.is_file():
        options |= {"gguf_file": source.name, "quantization_config": GgufConfig(gguf_file=source.name, dequantize=True)}
        source = source.parent
    else:
        config = _config(source)
        config.quantization_config["dequantize"] = True
        options |= {"config": config, "use_safetensors": True}
    read: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)
    for parameter in (one for one in model.parameters() if one.ndim > 1):
        exact = (kind for kind in (torch.bfloat16, torch.float16) if torch.equal(parameter, parameter.to(kind).float()))
        parameter.data = parameter.data.to(next(exact, torch.float32))
    model.save_pretrained(request["out"])
    return {}


def _twin(request: Mapping[str, Any]) -> dict[str, Any]:
    """The folder's sizes, too."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, out = Path(request["folder"]), Path(request["out"])
    config = _config(folder)
    text = config.get_text_config(decoder=True)
    sizes = {key: getattr(text, key, 0) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    longest = next((int(length) for key in LENGTHS if (length := getattr(text, key, None))), LONGEST)
    sizes |= {"model_type": text.model_type, "max_position": longest}
    sizes["experts"] = next((int(count) for key in EXPERT_COUNTS if (count := getattr(text, key, None))), 0)
    files = [path for path in folder.iterdir() if path.name.startswith(("tokenizer", "special_tokens", "chat_template"))]
    whole = request["whole"]
    small = _shrunk(text, text.vocab_size if whole and files else VOCABULARY, ANY if whole else WINDOW)
    sizes["twin_layers"] = small.num_hidden_layers
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(LOUDER)
            elif name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) / 8)
    model.save_pretrained(out)
    for path in files:
        shutil.copyfile(path, out / path.name)
    if not files:
        _write_tokenizer(out)
    _save_logits(model, out, TWIN_TOKENS)
    return sizes


def _config(folder: Path) -> Any:  # noqa: ANN401 - transformers has no types
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _write_tokenizer(out: Path) -> None:
    """Of bytes, for a config without one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(out / "tokenizer.json"))
    named = {"unk_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    told = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False, "clean_up_tokenization_spaces": False, **named}
    (out / "tokenizer_config.json").write_text(json.dumps(told))


def _shrunk(config: Any, tokens: int, window: int) -> Any:  # noqa: ANN401
    """Of the same widths, but of few layers, which are of all its kinds, few tokens and experts, and a short window."""
    raw, called = config.to_dict(), type(config).attribute_map
    layers = called.get("num_hidden_layers", "num_hidden_layers")
    count = raw[layers]
    lists = [[str(item) for item in value] for value in raw.values() if isinstance(value, list) and len(value) == count]
    first = [int(raw[key]) + 1 for key in DENSE_FIRST if isinstance(raw.get(key), int)]  # layers before others begin
    few = [each for each in lists if len(set(each)) <= MOST_KINDS]
    kinds = [next(n for n in range(1, count + 1) if set(each[:n]) == set(each)) for each in few]
    kept = min(count, max([2, *first, *kinds]))
    small = {key: value[:kept] if isinstance(value, list) and len(value) == count else value for key, value in raw.items()}
    small |= {layers: kept, "vocab_size": min(raw["vocab_size"], tokens)}
    small |= {key: min(EXPERTS, raw[key]) for key in EXPERT_COUNTS if raw.get(key)}
    small |= {key: min(EXPERTS, raw[key]) for key in USED if raw.get(key)}
    small = _shortened(small, window)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = raw[key] if isinstance(raw.get(key), list) else [raw.get(key)]
        known = [token for token in ids if token is not None and token < small["vocab_size"]]
        small[key] = known[0] if known else None if ids == [None] else IDS[key]
    small.pop("dtype", None)
    return type(config)(**small)


def _shortened(raw: Any, window: int) -> Any:  # noqa: ANN401 - JSON
    """With every length from which on something changes no longer than ``window``, wherever it stands."""
    if not isinstance(raw, dict):
        return raw
    out = {key: _shortened(value, window) for key, value in raw.items()}
    return out | {key: min(window, out[key]) for key in TURNS if isinstance(out.get(key), int)}


def _logits(request: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    model = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.float32, **options)
    _save_logits(model, Path(request["out"]), FEW_TOKENS)
    return {}


def _save_logits(model: Any, out: Path, count: int) -> None:  # noqa: ANN401
    import numpy as np
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    tokens = np.random.default_rng(0).integers(min(3, rows - 1), rows, count)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].float()
    np.save(out / "tokens.npy", tokens)
    np.save(out / "logits.npy", logits.numpy())


def _build(request: Mapping[str, Any]) -> dict[str, Any]:
    BUILDERS[request["by"]](Path(request["folder"]), Path(request["out"]))
    return {}


def _by_mobius(folder: Path, out: Path, provider: str) -> None:
    _mobius_package(folder, provider).save(str(out))


def _mobius_package(folder: Path, provider: str) -> Any:  # noqa: ANN401 - mobius has no types
    import mobius
    import onnx_ir as ir

    if provider not in mobius.ep_registry:
        mobius.register_ep(mobius.EpCapabilities(name=provider, gqa_dtypes=frozenset({ir.DataType.FLOAT})))
    config = _config(folder)
    pictured = config.get_text_config(decoder=True) is not config
    return mobius.build(str(folder), dtype="f32", execution_provider=provider, text_only=pictured)


def _by_mobius_moe(folder: Path, out: Path) -> None:
    """Each layer's experts as one MoE, where mobius computes each for every token: for layers of its two kinds."""
    from mobius.components import MoELayer
    from mobius.models import gptoss

    MoELayer.forward = gptoss._GptOssMoELayer.forward = _experts
    package = _mobius_package(folder, "adadim")
    found = [(model.graph, node) for model in package.values() for node in model.graph if node.domain == STACKS]
    if not found:
        raise ValueError("it has no layer of experts of these kinds")
    for graph, node in found:
        _stack(graph, node)
    package.save(str(out))


def _experts(layer: Any, op: Any, hidden: Any) -> Any:  # noqa: ANN401 - mobius's
    """In place of the forward of a layer: the softmax of the best scores, or the best of a softmax, and of silu(gate) * up."""
    layer.gate.forward = partial(_scores, layer.gate)
    scores = op.Reshape(layer.gate(op, hidden), [-1, layer.num_experts])
    held: dict[str, list[Any]] = {"gate_proj": [], "up_proj": [], "down_proj": []}
    for expert in layer.experts:
        parts = {name: getattr(expert, name) for name in held}
        for part in parts.values():
            part.forward = partial(_own, part)
        expert.forward = partial(_each, parts)
        for name, own in expert(op).items():
            held[name].append(own)
    gates = [matrix for pair in zip(held["gate_proj"], held["up_proj"], strict=True) for matrix in pair]
    inputs = [op.Stack(*one, _domain=STACKS) for sums in (gates, held["down_proj"]) for one in zip(*sums, strict=True)]
    up, *up_bias, down, down_bias = inputs if len(inputs) > 2 else (inputs[0], None, inputs[1], None)
    limit = getattr(layer.experts[0], "_LIMIT", None)  # of the one kind of experts that has biases too
    swiglu = {"activation_alpha": 1.0, "activation_beta": 0.0}
    if limit is not None:
        swiglu = {"activation_alpha": layer.experts[0]._ALPHA, "activation_beta": 1.0, "swiglu_limit": limit}
    return op.MoE(
        hidden, scores, up, up_bias[0], down, down_bias, _domain="com.microsoft", k=layer.top_k, activation_type="swiglu",
        swiglu_fusion=1, normalize_routing_weights=int(getattr(layer.gate, "norm_topk_prob", True)), **swiglu,
    )  # fmt: skip


def _scores(gate: Any, op: Any, hidden: Any) -> Any:  # noqa: ANN401
    found = op.MatMul(hidden, op.Transpose(gate.weight, perm=[1, 0]))
    return op.Add(found, gate.bias) if hasattr(gate, "bias") else found


def _each(parts: Mapping[str, Any], op: Any) -> dict[str, Any]:  # noqa: ANN401
    """Of the linears of an expert, whose parameters are called so."""
    return {name: part(op) for name, part in parts.items()}


def _own(linear: Any, _: Any) -> list[Any]:  # noqa: ANN401
    return [linear.weight] if linear.bias is None else [linear.weight, linear.bias]


def _stack(graph: Any, node: Any) -> None:  # noqa: ANN401 - onnx_ir's
    """An initializer in place of ``node``: [experts, OC, IC], rows of gate and up in turn; or biases [experts, OC]."""
    import onnx_ir as ir

    own = [value.const_value for value in node.inputs]
    name, (rows, *columns) = node.inputs[0].name, own[0].shape.numpy()
    together = 2 if ".gate_proj." in name else 1
    shape = ir.Shape([len(own) // together, rows * together, *columns])
    called = name.replace(".0.gate_proj.", ".gate_up_proj.").replace(".0.down_proj.", ".down_proj.")
    tensor = ir.LazyTensor(partial(_stacked, own, shape), dtype=ir.DataType.FLOAT, shape=shape, name=called)
    value = ir.Value(name=called, shape=shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    graph.register_initializer(value)
    graph.remove(node, safe=True)
    for old in {value.name for value in own}:
        graph.initializers.pop(old)


def _stacked(own: Sequence[Any], shape: Any) -> Any:  # noqa: ANN401
    """In memory only while it is written."""
    import numpy as np
    import onnx_ir as ir

    together = len(own) // shape[0]
    pairs = [np.stack([one.numpy() for one in own[start : start + together]], 1) for start in range(0, len(own), together)]
    return ir.tensor(np.stack(pairs).reshape(shape.numpy()))


def _by_genai(folder: Path, out: Path) -> None:
    import onnxruntime_genai

    rooms = Path(onnxruntime_genai.__file__).parent / "models"
    sys.path.insert(0, str(rooms))
    options = ["hf_token=false", "fuse_qkv=false", "windowed_kv_cache=false"]  # q, k and v may have axes of their own
    where = ["-i", str(folder), "-o", str(out), "-c", str(out.parent / "cache")]
    sys.argv = ["builder.py", *where, "-p", "fp32", "-e", "cpu", "--extra_options", *options]
    runpy.run_path(str(rooms / "builder.py"), run_name="__main__")


BUILDERS: Mapping[str, Callable[[Path, Path], None]] = {
    "mobius-moe": _by_mobius_moe,
    "mobius-gqa": lambda folder, out: _by_mobius(folder, out, "adadim"),
    "genai": _by_genai,
    "mobius": lambda folder, out: _by_mobius(folder, out, "default"),
}
ACTIONS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "unpack": _unpack,
    "twin": _twin,
    "logits": _logits,
    "build": _build,
}

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
from collections.abc import Callable, Mapping
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
    """Each layer's experts as one node."""
    own = runpy.run_path(str(Path(__file__).with_name("mobius_experts.py")))
    own["replace_layers"]()
    package = _mobius_package(folder, "adadim")
    own["fold"](model.graph for model in package.values())
    package.save(str(out))


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

"""Asks torch and the makers of ONNX graphs about a Hugging Face folder, in a process of its own. Imports nothing of ours.

A request comes as JSON on stdin, the last line of stdout is the answer: what the action gives, or {"error": why}. Actions::

    {"action": "twin", "folder", "out"}               OUT: a small random model of the same config, and its logits
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
from typing import Any, NoReturn

TWIN_TOKENS, FEW_TOKENS = 48, 12  # of a twin, past its window; of a model of any size
WINDOW, VOCABULARY, EXPERTS = 16, 1024, 8  # of a twin, at most
LOUDER = 4  # times the weights that transformers starts with, so that logits differ
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
USED = ("num_experts_per_tok", "moe_k", "top_k", "moe_topk")


def main() -> None:
    """One request. Whatever goes wrong is an answer."""
    request = json.load(sys.stdin)
    try:
        _no_code_of_others()
        answer = ACTIONS[request["action"]](request)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _no_code_of_others() -> None:
    """A model's own Python and pickles run nowhere."""
    import torch
    from transformers import dynamic_module_utils

    def refused(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("the model brings code of its own, which is never run")

    dynamic_module_utils.get_class_from_dynamic_module = refused
    dynamic_module_utils.get_imports = refused
    torch.load = refused


def _twin(request: Mapping[str, Any]) -> dict[str, Any]:
    """The folder's sizes, too."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, out = Path(request["folder"]), Path(request["out"])
    config = _config(folder)
    text = config.get_text_config(decoder=True)
    sizes = {key: getattr(text, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    sizes |= {"model_type": text.model_type, "max_position": int(getattr(text, "max_position_embeddings", 0) or 0)}
    sizes["experts"] = next((int(count) for key in EXPERT_COUNTS if (count := getattr(text, key, None))), 0)
    small = _shrunk(text)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(LOUDER)
            elif name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) / 8)
    model.save_pretrained(out)
    for path in folder.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copyfile(path, out / path.name)
    _save_logits(model, out, TWIN_TOKENS)
    return sizes


def _config(folder: Path) -> Any:  # noqa: ANN401 - transformers has no types
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _shrunk(config: Any) -> Any:  # noqa: ANN401
    """Of the same widths, but of few layers, which are of all its kinds, few tokens and experts, and a short window."""
    raw = config.to_dict()
    count, kinds = raw["num_hidden_layers"], raw.get("layer_types")
    kept = 2 if kinds is None else next(n for n in range(1, count + 1) if set(kinds[:n]) == set(kinds))
    kept = min(count, max(2, kept))
    small = {key: value[:kept] if isinstance(value, list) and len(value) == count else value for key, value in raw.items()}
    small |= {"num_hidden_layers": kept, "vocab_size": min(raw["vocab_size"], VOCABULARY)}
    small |= {key: min(EXPERTS, raw[key]) for key in EXPERT_COUNTS if raw.get(key)}
    small |= {key: min(EXPERTS, raw[key]) for key in USED if raw.get(key)}
    if isinstance(raw.get("sliding_window"), int):
        small["sliding_window"] = min(WINDOW, raw["sliding_window"])
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        small[key] = None if raw.get(key) is None else 0 if key == "pad_token_id" else 1
    small.pop("dtype", None)
    return type(config)(**small)


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
    import mobius
    import onnx_ir as ir

    if provider not in mobius.ep_registry:
        mobius.register_ep(mobius.EpCapabilities(name=provider, gqa_dtypes=frozenset({ir.DataType.FLOAT})))
    config = _config(folder)
    pictured = config.get_text_config(decoder=True) is not config
    package = mobius.build(str(folder), dtype="f32", execution_provider=provider, text_only=pictured)
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
    "mobius-gqa": lambda folder, out: _by_mobius(folder, out, "adadim"),
    "genai": _by_genai,
    "mobius": lambda folder, out: _by_mobius(folder, out, "default"),
}
ACTIONS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"twin": _twin, "logits": _logits, "build": _build}

if __name__ == "__main__":
    main()

"""What config.json says, and what of it is refused."""

from __future__ import annotations

import json
from random import Random

import pytest

from quantize.architecture.families import expected_shapes
from quantize.checkpoint import open_checkpoint
from quantize.errors import CheckpointError
from quantize.model_config import MODEL_TYPES, ModelConfig
from quantize.source.whole import skeleton
from tests.mutations import mutate_json
from tests.tiny import Sizes, make_tiny_model, tiny_config

SIZES = Sizes(64, 4, 2, 16, 96, 2, 320)


@pytest.mark.parametrize(
    ("model_type", "changes", "context"),
    [
        ("llama", {"sliding_window": 32}, 512),
        ("mistral", {}, 512),
        ("mistral", {"sliding_window": 32}, 32),
        ("mistral", {"sliding_window": 4096}, 512),
        ("qwen2", {"sliding_window": 32}, 512),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True}, 512),  # only from layer 28 on
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1}, 32),
        ("qwen3", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 0}, 32),
        ("qwen3", {"sliding_window": 32, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, 512),
        ("qwen3", {"sliding_window": 32, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, 32),
    ],
)
def test_the_context_ends_with_a_window_that_is_in_use(model_type, changes, context):
    raw = tiny_config(SIZES, model_type, True, "F32") | changes
    assert ModelConfig.from_hf(raw, "config.json").context == context


def edited(path, **changes):
    """config.json at ``path`` with ``changes``; ... takes a key out."""
    file = path / "config.json"
    file.write_text(json.dumps({k: v for k, v in (json.loads(file.read_text()) | changes).items() if v is not ...}))
    return path


OPTIONAL = ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "rope_theta", "sliding_window")
OURS = {
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_position",
    "rope_theta": None,
    "sliding_window": None,
}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("absent", [*OPTIONAL, "all"])
def test_what_is_left_out_is_what_transformers_takes(model_type, absent):
    from transformers import AutoConfig

    raw = tiny_config(SIZES, model_type, True, "F32") | {"use_sliding_window": True, "max_window_layers": 0}
    for key in OPTIONAL if absent == "all" else (absent,):
        del raw[key]
    ours = ModelConfig.from_hf(raw, "config.json")
    theirs = AutoConfig.for_model(**raw)
    for key in OPTIONAL[:4]:
        assert getattr(ours, OURS.get(key, key)) == getattr(theirs, key, 16), key  # qwen2's class has no head_dim
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.window == (None if model_type == "llama" else theirs.sliding_window)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_biases_are_where_transformers_has_them(tmp_path, model_type):
    raw = tiny_config(SIZES, model_type, True, "F32") | {"attention_bias": True, "mlp_bias": True}
    theirs = {name for name, _ in skeleton_of_theirs(raw).named_parameters() if name.endswith("bias")}
    config = ModelConfig.from_hf(raw, "config.json")
    assert {name for name in expected_shapes(config) if name.endswith("bias")} == theirs


def skeleton_of_theirs(raw):
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))


FINE = {
    "pad -1": {"pad_token_id": -1},
    "pad past the rows": {"pad_token_id": 320},
    "ends": {"eos_token_id": [2, 0, 999, -1]},
    "no ids": {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
    "whole numbers": {"rope_theta": 10000, "attention_dropout": 0},
    "nulls": {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None, "rope_parameters": None, "layer_types": None},
    "what other families read": {"time_step_limit": [0.0, float("inf")], "max_window_layers": 28, "num_experts": None},
    "settings of generation": {"temperature": 0.6, "top_k": "x", "max_length": 20, "num_labels": "3", "id2label": {"x": 1}},
    "settings of training": {
        "problem_type": "x",
        "dtype": "nonsense",
        "torch_dtype": "auto",
        "use_cache": "yes",
        "pretraining_tp": 2,
    },
    "code": {"auto_map": {"AutoModel": "x.Y"}, "architectures": 7},
    "neutral": {"logits_scaling": 1.0, "attn_logit_softcapping": None, "no_rope_layers": [], "text_config": None},
    "swish": {"hidden_act": "swish", "hidden_activation": "gelu"},
}


@pytest.mark.parametrize("changes", FINE)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_is_no_fault_works_to_the_end(tmp_path, model_type, changes):
    changes = FINE[changes] if model_type in ("llama", "mistral") else FINE[changes] | {"num_key_value_heads": 2}
    kv_heads = 4 if changes.get("num_key_value_heads", 2) is None else 2
    source = open_checkpoint(edited(make_tiny_model(tmp_path / "m", model_type, kv_heads=kv_heads, head_dim=16), **changes))
    skeleton(source.config, source.tied)
    ids = (source.config.raw.get(f"{kind}_token_id") for kind in ("bos", "eos", "pad"))
    assert all(
        0 <= token < 320 for found in ids if found is not None for token in (found if isinstance(found, list) else [found])
    )


HUGE = 10**400
REFUSED = {
    "rms_norm_eps": (float("nan"), float("inf"), -1, 0, 1.5, "1e-05", None, [1e-5], True),
    "hidden_size": ("64", 64.0, True, 0, -64, None, HUGE, 2**31, [64], ...),
    "num_hidden_layers": ("2", 1.9, 0, -1, False, HUGE),
    "num_attention_heads": ("4", 0, 3, 64.0),
    "num_key_value_heads": ("2", 0, 3, 8, True, {}),
    "head_dim": ("16", 15, 0, -16, 1.0),
    "vocab_size": ("320", 0, 321, -1, None),
    "intermediate_size": (0, "96", 97),
    "max_position_embeddings": (0, "512", -1, 1e999, None),
    "hidden_act": ("gelu", None, 1, ["silu"]),
    "tie_word_embeddings": ("true", 1, None),
    "attention_bias": ("false", 1),
    "sliding_window": ("wide", 1.5),
    "layer_types": ("full_attention", [1, 2]),
    "bos_token_id": ("1", [1], 1.0, True, 2**31, HUGE),
    "eos_token_id": ("2", 2**31, [2**64], ["2"], [[2]], 2.0, {"a": 2}),
    "pad_token_id": ([2], "2", 2.5),
    "model_type": (None, 3, ["llama"], "mamba", {}),
    "text_config": ({"hidden_size": 64},),
    "logits_scaling": (8.0, "8"),
    "residual_multiplier": (0.22,),
    "attention_multiplier": (0.5,),
    "final_logit_softcapping": (30.0,),
    "attn_logit_softcapping": (50.0,),
    "no_rope_layers": ([1, 0],),
    "rope_interleaved": (True,),
    "per_layer_config": ({"0": {"num_key_value_heads": 1}},),
    "is_causal": (False,),
    "use_bidirectional_attention": (True,),
    "quantization_config": ({"bits": 4},),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_what_is_refused_is_one_line_that_names_file_and_key(tmp_path, key, value):
    path = edited(make_tiny_model(tmp_path / "m"), **{key: value})
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    message = str(error.value)
    words = ("quantized already",) if key == "quantization_config" else (key, f"{key.removeprefix('num_')} ", "shape")
    assert str(path) in message and "\n" not in message and len(message) < 600
    assert any(word in message for word in words) or "heads" in message


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": -1}, "sliding_window is -1"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "layer_types": []}, r"layer_types is \[\]"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 32, "layer_types": ["linear_attention"] * 2},
            "linear_attention",
        ),
        ("llama", {"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size 64, 5 heads"),
    ],
)
def test_windows_and_heads_that_are_none(tmp_path, model_type, changes, message):
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        open_checkpoint(edited(make_tiny_model(tmp_path / "m", model_type), **changes))


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_any_change_is_a_clean_line_or_a_model(tmp_path, model_type, name):
    path = make_tiny_model(tmp_path / "m", model_type, shards=2, rope_scaling={"rope_type": "yarn", "factor": 2.0})
    data, rng, opened = (path / name).read_bytes(), Random(7), 0
    for _ in range(300):
        (path / name).write_bytes(mutate_json(data, rng))
        try:
            source = open_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 1600
            continue
        skeleton(source.config, source.tied)
        opened += 1
    assert 10 < opened < 290

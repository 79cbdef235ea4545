"""What config.json says, and what of it is refused."""

from __future__ import annotations

import json

import pytest

from quantize.checkpoint import open_checkpoint
from quantize.errors import CheckpointError
from quantize.model_config import ModelConfig
from quantize.source_model.whole import skeleton
from tests.tiny import Sizes, make_tiny_model, tiny_config

SIZES = Sizes(64, 4, 2, 16, 96, 2, 320)
LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


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


REFUSED = [
    ({"rope_scaling": [1]}, r"rope_scaling is \[1\]: Expected object"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "rope_scaling: factor is 'two': Expected float"),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: Object missing required field factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": float("inf")}}, "factor is inf"),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 2}},
        "beta_fast 1.* is below beta_slow 2",
    ),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "temperature": 1.0}}, "yarn with temperature is not supported"),
    ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor 1.0 is not above low_freq_factor 1.0"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "longrope.* is not supported; supported: default, linear"),
    ({"rope_scaling": {"rope_type": ["yarn"]}}, "is not supported"),
    ({"rope_theta": "10000"}, "rope_theta is '10000': Expected float"),
    ({"rope_theta": float("inf")}, "rope_theta is inf"),
    ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
    ({"rms_norm_eps": "1e-05"}, "rms_norm_eps is '1e-05': Expected float, got str"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers is '2': Expected int, got str"),
    ({"num_hidden_layers": 1.9}, "num_hidden_layers is 1.9: Expected int"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True: Expected int"),
    ({"hidden_size": 0}, "hidden_size is 0: Expected int >= 1"),
    ({"hidden_size": 10**400}, "hidden_size is 1000"),
    ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ({"vocab_size": None}, "vocab_size is None"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ({"sliding_window": "wide"}, "sliding_window is 'wide': Expected int"),
    ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ({"model_type": "x" * 5000}, "model_type 'xxx.*is not supported"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(changes)[:60] for changes, _ in REFUSED])
def test_what_is_refused_names_the_file_and_the_key(tmp_path, changes, message):
    path = make_tiny_model(tmp_path / "m") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}") as refusal:
        open_checkpoint(path.parent)
    assert len(str(refusal.value)) < 700


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token_id": -1},
        {"pad_token_id": 320},
        {"bos_token_id": None, "eos_token_id": [2, 0], "pad_token_id": None},
        {"quantile": float("inf"), "other": [float("nan"), "32"]},
        {"num_key_value_heads": None, "num_attention_heads": 2},
        {"head_dim": None},
    ],
    ids=str,
)
def test_what_transformers_would_stumble_over_runs_in_torch(tmp_path, changes):
    """The configuration of the float model is made of checked values, without ids that no row has."""
    raw = tiny_config(SIZES, "llama", True, "F32") | changes
    assert skeleton(ModelConfig.from_hf(raw, "config.json"), tied=True).config.hidden_size == SIZES.hidden

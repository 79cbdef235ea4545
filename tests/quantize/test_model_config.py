"""What config.json says, and what of it is refused."""

from __future__ import annotations

import json

import pytest

from quantize.checkpoint import open_checkpoint
from quantize.errors import CheckpointError
from quantize.model_config import ModelConfig
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\], not a JSON object"),
        ({"rope_scaling": LLAMA3}, "llama3 needs original_max_position_embeddings, which is None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "linear needs factor, which is 'two'"),
        ({"max_position_embeddings": 0}, r"max_position_embeddings are .*0\), and all must be positive"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"sliding_window": "wide"}, "sliding_window is 'wide', not a number"),
    ],
)
def test_what_is_refused_names_the_file_and_the_key(tmp_path, changes, message):
    path = make_tiny_model(tmp_path / "m") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        open_checkpoint(path.parent)

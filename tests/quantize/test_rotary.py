"""The rotary embedding of a config.json: transformers computes the same frequencies and factor, whichever of its keys say it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quantize.errors import CheckpointError
from quantize.model_config import MODEL_TYPES, ModelConfig
from quantize.source.whole import skeleton
from tests.tiny import Sizes, tiny_config

SIZES = Sizes(64, 4, 2, 64, 96, 2, 320)
EXACT = 2e-6  # relative, of float32 powers in two libraries
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
ORIGINAL = {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0} | ORIGINAL
SCALINGS = {
    "none": None,
    "empty": {},
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "default in the old word": {"type": "default"},
    "linear": LINEAR,
    "linear in the old word, with keys that it does not read": {"type": "linear", "factor": 4, "attention_factor": 2.0}
    | ORIGINAL,
    "both words": {"rope_type": "linear", "type": "yarn", "factor": 4.0},
    "llama3": LLAMA3 | ORIGINAL,
    "llama3 without an original": LLAMA3,
    "yarn": YARN,
    "yarn without an original": {"rope_type": "yarn", "factor": 4.0},
    "yarn factor null": YARN | {"factor": None},
    "yarn factor below 1": YARN | {"factor": 0.5},
    "yarn attention_factor": YARN | {"attention_factor": 1.0},
    "yarn attention_factor null": YARN | {"attention_factor": None},
    "yarn betas": YARN | {"beta_fast": 8, "beta_slow": 0.25},
    "yarn betas of 0": YARN | {"beta_fast": 0, "beta_slow": None},
    "yarn equal betas": YARN | {"beta_fast": 4, "beta_slow": 4},
    "yarn mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 1.5},
    "yarn mscale alone": YARN | {"mscale": 0.707},
    "yarn mscale of 0": YARN | {"mscale": 0.0, "mscale_all_dim": 1.5},
    "yarn mscale and attention_factor": YARN | {"mscale": 0.7, "mscale_all_dim": 1.5, "attention_factor": 1.25},
    "yarn not truncated": YARN | {"truncate": False},
    "yarn truncate null": YARN | {"truncate": None},
    "yarn finetuned": YARN | {"finetuned": True, "rope_theta": 1000},
}
OTHER = {"rope_type": "linear", "factor": 16.0, "rope_theta": 77.0}
PLACES = {
    "rope_scaling": lambda scaling: {"rope_scaling": scaling},
    "rope_parameters": lambda scaling: {"rope_parameters": scaling},
    "both": lambda scaling: {
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "linear", "factor": 16.0, "rope_theta": 77.0},
    },
    "outside": lambda scaling: {
        "rope_parameters": scaling,
        "rope_theta": 123456,
        "original_max_position_embeddings": 32,
        "partial_rotary_factor": 1.0,
    },
}


def config_of(changes, model_type="llama"):
    raw = {key: value for key, value in tiny_config(SIZES, model_type, True, "F32").items() if key != "rope_theta"}
    return raw | changes


def their_rotary(raw):
    raw = copy.deepcopy(raw)
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    return AutoModelForCausalLM.from_config(config).model.rotary_emb


def assert_theirs(rotary, raw):
    rope = ModelConfig.from_hf(raw, "config.json").rope
    np.testing.assert_allclose(rope.frequencies(64), rotary.inv_freq.numpy(), rtol=EXACT)
    assert rope.attention_factor == pytest.approx(rotary.attention_scaling, rel=1e-12)
    return rope


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_same_keys_count_as_in_transformers(scaling, place):
    raw = config_of(PLACES[place](SCALINGS[scaling]))
    assert_theirs(their_rotary(raw), raw)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3, YARN | {"attention_factor": 1.5}], ids=str)
def test_every_family(scaling, model_type):
    raw = config_of({"rope_scaling": scaling, "rope_theta": 250000.0}, model_type)
    del raw["max_position_embeddings"]  # each family has its own
    assert_theirs(their_rotary(raw), raw)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_source_model_is_theirs(scaling):
    """What is built from checked values has the embedding that transformers makes of the whole config.json."""
    raw = config_of(PLACES["outside"](SCALINGS[scaling]))
    theirs = their_rotary(raw)
    model = skeleton(ModelConfig.from_hf(raw, "config.json"), tied=True)
    ours = type(model.model.rotary_emb)(model.config)
    assert torch.equal(ours.inv_freq, theirs.inv_freq) and ours.attention_scaling == theirs.attention_scaling


def test_tables_are_what_transformers_multiplies_by():
    raw = config_of({"rope_scaling": YARN | {"attention_factor": 1.5}})
    rotary = their_rotary(raw)
    cos, sin = rotary(torch.zeros(1), torch.arange(300)[None])
    ours = ModelConfig.from_hf(raw, "config.json").rope.tables(64, 300)
    for held, expected in zip(ours, (cos, sin), strict=True):
        np.testing.assert_allclose(held, expected[0, :, :32].numpy(), atol=2e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]: Expected object"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn': Expected object"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic' .*supported: default, linear"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "rope scaling 'longrope'"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "rope scaling 'proportional'"),
        ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [8]}}, "rope scaling 'mrope'"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]}}, "with mrope_section is not supported"),
        ({"rope_scaling": {"rope_type": None}}, "rope scaling 'None'"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope scaling "),
        ({"rope_scaling": YARN | {"llama_4_scaling_beta": 0.1}}, "yarn with llama_4_scaling_beta is not supported"),
        ({"rope_parameters": {"full_attention": YARN, "sliding_attention": LINEAR}}, "full_attention, sliding_attention"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "rope_scaling: factor is 'two': Expected float"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0: Expected float > 0"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: .*factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "high_freq_factor 1.0 is not above low_freq_factor 1.0"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": None}}, "original_max_position_embeddings is None"),
        ({"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 2}}, "beta_fast 1.0 is below beta_slow 2.0"),
        ({"rope_scaling": YARN | {"beta_fast": "x"}}, "beta_fast is 'x'"),
        ({"rope_scaling": YARN | {"attention_factor": 0.0}}, "attention_factor is 0.0"),
        ({"rope_scaling": YARN | {"attention_factor": float("nan")}}, "attention_factor is nan"),
        ({"rope_scaling": YARN | {"mscale": -5.0}}, "mscale is -5.0"),
        ({"rope_scaling": YARN | {"rope_theta": 1.0}}, "rope_theta is 1.0"),
        ({"rope_scaling": {"type": "default", "rope_theta": None}}, "rope_theta is None"),
        ({"rope_theta": "10000"}, "rope_theta is '10000': Expected float"),
        ({"rope_theta": None}, "rope_theta is None"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ],
)
def test_what_is_refused_names_the_file_and_the_key(changes, message):
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}") as error:
        ModelConfig.from_hf(config_of(changes), "config.json")
    assert "remove" not in str(error.value)


def test_infinity_in_keys_that_a_kind_does_not_read_is_left_alone():
    raw = config_of({"rope_scaling": LINEAR | {"beta_fast": float("inf")}, "time_step_limit": [0.0, float("inf")]})
    assert ModelConfig.from_hf(raw, "config.json").rope.kind == "linear"

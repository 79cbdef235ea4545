"""How hard to try: what ``--effort`` stands for."""

from __future__ import annotations

from dataclasses import replace

from quantize.config import DataSpec, QuantizeConfig
from quantize.methods import Around
from quantize.model_config import ModelConfig, ModelSizes

EFFORTS = {
    "fast": QuantizeConfig("search-ada", data=DataSpec(tokens=8192, token_weight="unit")),
    "default": QuantizeConfig(),
    "best": QuantizeConfig(data=DataSpec(tokens=32768), around=Around(block_steps=30, tune_steps=32)),
}


def effort_for(word: str, model: ModelSizes | None = None) -> QuantizeConfig:
    """A key of EFFORTS; for a model that torch does not run, without what learns and without gradients."""
    config = EFFORTS[word]
    if model is None or isinstance(model, ModelConfig):
        return config
    around = replace(config.around, block_steps=0, tune_steps=0)
    return replace(config, data=replace(config.data, token_weight="unit"), around=around)

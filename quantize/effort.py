"""How hard to try: what ``--effort`` stands for."""

from __future__ import annotations

from dataclasses import replace

from quantize.checkpoint import Checkpoint
from quantize.config import BUILTIN, GENERATED, DataSpec, QuantizeConfig
from quantize.methods import WORDS, Around, read_word
from quantize.model_config import ModelConfig
from quantize.statistics.by_template import gives_gradients

EFFORTS = {
    "fast": QuantizeConfig("search-ada", data=DataSpec(tokens=8192, token_weight="unit")),
    "default": QuantizeConfig(),
    "best": QuantizeConfig(data=DataSpec(tokens=32768), around=Around(block_steps=30, tune_steps=32)),
}


def effort_for(word: str, source: Checkpoint | None = None) -> QuantizeConfig:
    """A key of EFFORTS, as far as it can be had of ``source``: without gradients and what learns by them where torch does not run
    it."""
    config = EFFORTS[word]
    if source is None or isinstance(source.config, ModelConfig):
        return config
    if config.data.token_weight == "unit" or gives_gradients(source):
        return config
    around = replace(config.around, block_steps=0, tune_steps=0)
    return replace(config, data=replace(config.data, token_weight="unit"), around=around)


def with_method(config: QuantizeConfig, word: str) -> QuantizeConfig:
    """With that method, as many steps as a system that learns takes by itself where there are none, and its own text if it has
    one where none is named."""
    if word not in WORDS:
        return replace(config, method=word)
    method, around, data = read_word(word).method, config.around, config.data
    if method.generates and data.text == BUILTIN:
        data = replace(data, text=GENERATED)
    return replace(config, method=word, data=data, around=replace(around, block_steps=around.block_steps or method.block_steps))

"""The folder in onnxruntime-genai: genai_config.json against the source, and the tokens that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from exporter.onnx.genai_reader import DOOR
from quantize.errors import FileFormatError, shown
from quantize.model_config import ModelConfig, ModelSizes
from quantize.onnx.native_path import native_path
from quantize.template.onnx_genai import GENAI_FILE
from quantize.types import I64
from runtime_checks.measure.results import Check, within
from runtime_checks.runtimes.onnx_runner import OnnxRunner, exported_context, load_graph
from runtime_checks.runtimes.runners import greedy_error

EXACT = 0.0  # sizes are equal or they are not
# How much better, as a share of the largest logit, another token than genai's may be: both run the same nodes, but activations
# in 8 bits round otherwise for one row than for many. Another model's tokens give .2 and more.
TIE = 0.01


def check_genai_config(folder: Path, config: ModelSizes) -> list[Check]:
    """Every size in genai_config.json is the source's, and no text may be longer than the model's tables.

    genai believes what it is told here, and reads memory by it. Raises FileFormatError if it cannot be read.
    """
    held = _read(folder)
    model, search, decoder = held.model, held.search, held.model.get("decoder")
    decoder = decoder if isinstance(decoder, dict) else {}
    sizes = {
        "vocab_size": (model, config.vocab_size),
        "num_hidden_layers": (decoder, config.num_layers),
        "hidden_size": (decoder, config.hidden_size),
        **{key: (decoder, value) for key, value in _heads(folder, config).items()},
    }
    checks = [
        within("genai_config = source's", key, float(type(section.get(key)) is not int or section[key] != value), EXACT)
        for key, (section, value) in sizes.items()
    ]
    context = exported_context(folder) or config.context
    for key, section in {"context_length": model, "max_length": search}.items():
        fits = type(section.get(key)) is int and 0 < section[key] <= context
        checks.append(within(f"genai_config fits the exported context of {context}", key, float(not fits), EXACT))
    return checks


def _heads(folder: Path, config: ModelSizes) -> dict[str, int]:
    """By the source's config; of a decoder that is known by no name, by the graph's own inputs."""
    if isinstance(config, ModelConfig):
        heads = {"num_key_value_heads": config.num_kv_heads, "head_size": config.head_dim}
        return {"num_attention_heads": config.num_heads, **heads}
    caches = [value for value in load_graph(folder).graph.input if value.name.startswith("past_key_values.")]
    dims = [value.type.tensor_type.shape.dim for value in caches[:1]]
    return {key: int(each[place].dim_value) for each in dims for key, place in (("num_key_value_heads", 1), ("head_size", 3))}


def check_genai(folder: Path, shipped: OnnxRunner, prompt: I64, count: int) -> Check:
    """``count`` tokens after I64[n] ``prompt`` as the folder is shipped; onnxruntime says whether they are the likeliest.

    Raises FileFormatError if genai refuses the folder.
    """
    chosen = _generate(folder, prompt, count)
    ends = _read(folder).model.get("eos_token_id", [])
    stopped = len(chosen) < count and (not chosen or chosen[-1] not in (ends if isinstance(ends, list) else [ends]))
    error = np.inf if stopped else greedy_error(shipped, prompt, chosen)
    return within("genai's tokens = onnxruntime's, as shipped", folder.name, error, TIE)


def _generate(folder: Path, prompt: I64, count: int) -> list[int]:
    import onnxruntime_genai as genai

    try:
        with native_path(folder) as where:
            model = genai.Model(where)
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + count)
        generator = genai.Generator(model, params)
        generator.append_tokens(prompt.astype(np.int32))
        chosen = list[int]()
        while not generator.is_done():
            generator.generate_next_token()
            chosen.append(int(generator.get_next_tokens()[0]))
        return chosen
    except Exception as error:  # genai's own exceptions share no base below Exception
        raise FileFormatError(f"{folder}: onnxruntime-genai cannot run it ({shown(error)}); export it again") from error


class Sections(msgspec.Struct):
    """What is there is judged key by key, by checks that may fail."""

    model: dict[str, Any]
    search: dict[str, Any]


def _read(folder: Path) -> Sections:
    return DOOR.load(folder / GENAI_FILE, Sections)

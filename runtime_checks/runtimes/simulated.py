"""A file's decoded weights, and inputs of its linears rounded as was asked for: what no runtime does, or not so.

Linears of decoder blocks alone: neither the head nor the embedding reads anything rounded.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from quantize.activations import ACTIVATIONS, Activation, Clipped, Rounding
from quantize.activations.rules import CLIPS, FILE, Rules
from quantize.architecture.families import expected_shapes
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.template import Template
from quantize.errors import ConfigError, asked, listed
from quantize.finetune import read_clips
from quantize.model_config import ModelSizes, is_linear
from runtime_checks.runtimes.decoded import DECODED, decoded_model
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.reading import Reading
from runtime_checks.runtimes.runners import Runner, TorchRunner


def simulated_runner(path: Path, source: Checkpoint, rules: Rules) -> Runner:
    """In torch. Raises FileFormatError, and ConfigError for rules that do not fit the file."""
    if isinstance(source, Template):
        told = f"{source.path} runs in its own runtime, which rounds as it does; name a source that torch runs"
        raise ConfigError(f"{asked('activations', rules.text)}: {told}")
    from quantize.source import round_inputs

    found = roundings(path, source.config, rules)
    model = decoded_model(path, source.config)
    round_inputs(model, found)
    return TorchRunner(model, DECODED)


def roundings(path: Path, config: ModelSizes, rules: Rules) -> dict[str, Rounding]:
    """By the module of a linear what F32[..., IC] becomes before it is multiplied. Raises FileFormatError, ConfigError."""
    weights = open_exported(path).weights(config)
    names = [name for name, shape in expected_shapes(config).items() if is_linear(name, shape) and name in weights.shapes]
    rules.check(names)
    out = {}
    for name in names:
        word = rules.word(name)
        if word is not None and word.startswith(CLIPS):
            out[name.removesuffix(".weight")] = _clipped(name, word, weights.reading(name))
        elif word is not None:
            out[name.removesuffix(".weight")] = _rounding(f"{path}: {name}", word, weights.reading(name), rules)
    return out


def _clipped(name: str, word: str, reading: Reading) -> Rounding:
    """As `adadim finetune` has learned it. Raises ConfigError."""
    folder = Path(word.removeprefix(CLIPS))
    held = read_clips(folder)
    clip = held.clips.get(name)
    if clip is None:
        told = f"it has none for {name}, but for {listed(sorted(held.clips), 1)}; give that of this model"
        raise ConfigError(f"{asked('activations', word)}: {told}")
    return partial(reading.round, rounding=Clipped(clip.low, clip.high, held.bits).round)


def _rounding(where: str, word: str, reading: Reading, rules: Rules) -> Rounding:
    if word == FILE and not reading.told:
        told = "what the file does to its input is not known here; give a word of " + ", ".join(ACTIVATIONS)
        raise ConfigError(f"{asked('activations', rules.text)}: {where}: {told}")
    if word == FILE:
        return reading.round
    if not ACTIVATIONS[word].static:
        return partial(reading.round, rounding=Activation(word).round)
    if reading.static is None or reading.static.name != word:
        told = f"the file has no scale for its input, which {word} needs; {word.partition('-')[0]}-token finds its own"
        raise ConfigError(f"{asked('activations', rules.text)}: {where}: {told}")
    return partial(reading.round, rounding=reading.static.round)

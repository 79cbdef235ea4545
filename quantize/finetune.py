"""A source trained until inputs of few bits do little to it (arXiv 2404.03605), as a Hugging Face folder of its own.

::

    DIR/config.json, tokenizer.json, ...   the source's
    DIR/model.safetensors                  in the source's dtypes; embedding, final norm and head are the source's, bit for bit
    DIR/activation_clips.json              between which values each linear's input was rounded
    DIR/finetune.json                      what was asked for, and what came of it
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import ml_dtypes
import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from quantize.checkpoint import Checkpoint
from quantize.checkpoint.huggingface import ASSETS, TOKENIZER
from quantize.checkpoint.shards import NAMED_WEIGHTS, WHOLE
from quantize.checkpoint.tokenizer_files import MORE_TEMPLATES, TEMPLATES
from quantize.config import BUILTIN
from quantize.errors import CalibrationError, CheckpointError, ConfigError, asked
from quantize.foreign import tokenizer_mend
from quantize.kinds import Kind, kind_of
from quantize.model_config import BLOCK, named
from quantize.outside import MIB, Door
from quantize.planning.memory import fits
from quantize.progress import track
from quantize.statistics.calibration import CalibrationText, load_text, tokenize
from quantize.steps.descent import JUDGES, judges_of
from quantize.store.outputs import Unfinished, check_folder
from quantize.types import F32, I64, Array

if TYPE_CHECKING:
    from quantize.source import Learner, Tails

CLIPS, REPORT = "activation_clips.json", "finetune.json"
FORMAT = "adadim activation clips 1"
OURS = re.compile(rf"{WHOLE}|{CLIPS}|{REPORT}|{MORE_TEMPLATES}(/[^/]+\.jinja)?|{'|'.join(map(re.escape, ASSETS))}")
BITS = range(2, 9)  # of an activation
MEMORY = 6.0  # times the float32 weights: these, two moments, a gradient, and what a sequence and its predictions take
PLAIN: np.dtype[Any] = np.dtype(np.float32)  # of a source of any other dtype than these
CAST: Mapping[str, np.dtype[Any]] = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
LARGEST = 3e38  # of a clip: finite in float32
DOOR = Door(ConfigError, "make it again: adadim finetune", 16 * MIB)

Bound = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]


class Clip(msgspec.Struct, forbid_unknown_fields=True):
    """Between which values an input lies."""

    low: Bound
    high: Bound

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")


class Clips(msgspec.Struct, forbid_unknown_fields=True):
    """``activation_clips.json``: of every linear, by its weight's name, what its input of ``bits`` was rounded between."""

    format: Literal["adadim activation clips 1"]
    bits: Annotated[int, msgspec.Meta(ge=BITS[0], le=BITS[-1])]
    clips: Annotated[dict[str, Clip], msgspec.Meta(min_length=1, max_length=100_000)]


def read_clips(folder: Path) -> Clips:
    """Of a folder that ``finetune`` wrote. Raises ConfigError for a file that is missing or says something else."""
    return DOOR.load(folder / CLIPS, Clips)


@dataclass(frozen=True)
class FinetuneConfig:
    """What a user can ask of ``finetune``.

    ``kurtosis``: nats that one unit of it costs in any linear's output. ``steps`` of one sequence of ``context`` tokens each.
    ``learning_rate``: of the first step, about the change of each weight; it falls to nothing at the last.
    """

    activation_bits: int = 4
    kurtosis: float = 1e-5
    steps: int = 300
    text: str = BUILTIN
    seed: int = 0
    learning_rate: float = 2e-5
    context: int = 256

    def __post_init__(self) -> None:
        if self.activation_bits not in BITS:
            raise ConfigError(f"{asked('activation_bits', self.activation_bits)}: choose one from {BITS[0]} to {BITS[-1]}")
        if not 0 <= self.kurtosis < LARGEST:
            raise ConfigError(f"{asked('kurtosis', self.kurtosis)}: must be a number from 0")
        if not 0 < self.learning_rate < LARGEST:
            raise ConfigError(f"{asked('learning_rate', self.learning_rate)}: must be a number above 0")
        for option, least in (("steps", 1), ("context", 2)):
            if getattr(self, option) < least:
                raise ConfigError(f"{asked(option, getattr(self, option))}: must be at least {least}")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"{asked('seed', self.seed)}: must be a whole number from 0, of 64 bits")


def finetune(source: Checkpoint, out: Path, config: FinetuneConfig, force: bool = False) -> dict[str, Any]:
    """Write the folder ``out``, whole or not at all; what is in its ``finetune.json``.

    Raises CheckpointError for a source that torch does not run by name, or without a tokenizer.json; CalibrationError for a text
    that is too short; ConfigError where memory does not do, and where no step was finite; OutputError.
    """
    check_folder(out, force, _foreign)
    named(source.config, source.path)
    assets = source.assets()
    if TOKENIZER not in assets:
        raise CheckpointError(f"{source.path}: no {TOKENIZER}, which its folder needs; {tokenizer_mend(source.path)}")
    if not fits(source.specs, MEMORY):
        raise ConfigError(
            f"{source.path}: takes {MEMORY:g} times its float32 weights in memory, and this machine has less; take a larger one"
        )
    text = load_text(config.text)
    with Unfinished(out, True, force, _foreign) as unfinished:
        report, learner = _learned(source, config, text)
        _write(unfinished.path, source, learner, assets)
        clips = {name: {"low": low, "high": high} for name, (low, high) in sorted(learner.clips.items())}
        _write_json(unfinished.path / CLIPS, {"format": FORMAT, "bits": config.activation_bits, "clips": clips})
        _write_json(unfinished.path / REPORT, report)
        unfinished.finish()
    return report


def _learned(source: Checkpoint, config: FinetuneConfig, text: CalibrationText) -> tuple[dict[str, Any], Learner]:
    """The report, and the source after its steps, its weights as they can be written."""
    from quantize.source import Learner

    tokens = _sequences(source, config, text)
    learner = Learner(source, tokens, config.activation_bits, config.kurtosis)
    judges, learned = range(JUDGES), range(JUDGES, len(tokens))
    before, tails = learner.loss(judges), learner.tails(judges)
    for step in track(range(config.steps), "training"):
        rate = config.learning_rate * (1 - step / config.steps)
        if not learner.step(learned[step % len(learned)], rate):
            break
    after = _written_loss(source, learner, judges)
    if not np.isfinite(after):
        learner.take_back()
        after = _written_loss(source, learner, judges)
    if not (learner.steps and np.isfinite(after)):
        raise ConfigError(
            f"{source.path}: its loss, or the slope of it, is not finite from the first step on; give a smaller "
            f"{asked('learning_rate')} than {config.learning_rate:g}"
        )
    learner.finish()
    report = {
        "source": source.sha256,
        **asdict(config),
        "text": {"name": text.name, "sha256": text.sha256},
        "steps_kept": learner.steps,
        "loss": {"before": before, "after": after, "after_inputs_unrounded": learner.loss(judges, rounded=False)},
        "linears": _by_kind(tails, learner.tails(judges)),
    }
    return report, learner


def _sequences(source: Checkpoint, config: FinetuneConfig, text: CalibrationText) -> I64:
    """I64[sequences, context]: JUDGES of them, spread over the text, then those that steps take, in an order drawn by the seed.

    Raises CalibrationError for a text that has too few, ConfigError for longer ones than the source reads.
    """
    length = config.context
    if length > source.config.context:
        raise ConfigError(f"{asked('context', length)}: {source.path} reads {source.config.context} tokens")
    ids = tokenize(text.text, source)
    count = len(ids) // length
    if count <= JUDGES:
        raise CalibrationError(
            f"{text.name}: {len(ids)} tokens, but {JUDGES + 1} sequences of {length} are needed, {JUDGES} to judge by; "
            f"give a longer text, or a smaller {asked('context')}"
        )
    judges = judges_of(count)
    drawn = np.random.default_rng(config.seed).permutation(np.setdiff1d(np.arange(count), judges))[: config.steps]
    chosen: I64 = ids[: count * length].reshape(count, length)[np.concatenate([judges, drawn])]
    return chosen


def _written_loss(source: Checkpoint, learner: Learner, judges: Sequence[int]) -> float:
    """Of the weights as they would be written, which the learner has from now on."""
    for name, values in learner.weights.items():
        with np.errstate(over="ignore"):
            values[...] = values.astype(_dtype(source, name)).astype(np.float32)
    return learner.loss(judges)


def _dtype(source: Checkpoint, name: str) -> np.dtype[Any]:
    return CAST.get(source.specs[name].dtype, PLAIN)


def _by_kind(before: Mapping[str, Tails], after: Mapping[str, Tails]) -> dict[str, Any]:
    """By what a linear is called in its block, over all blocks: means and the largest, of each kind of tail."""
    names = dict[str, list[str]]()
    for name in before:
        names.setdefault(BLOCK.sub("", name, count=1).removesuffix(".weight"), []).append(name)
    fields = {"inputs": "input_kurtosis", "outputs": "output_kurtosis", "weights": "weight_kurtosis", "peak": "input_peak"}

    def told(tails: Mapping[str, Tails], own: Iterable[str], field: str) -> dict[str, float]:
        values = [getattr(tails[name], field) for name in own]
        return {"mean": float(np.mean(values)), "largest": float(max(values))}

    return {
        kind: {key: {"before": told(before, own, field), "after": told(after, own, field)} for field, key in fields.items()}
        for kind, own in names.items()
    }


def _write(folder: Path, source: Checkpoint, learner: Learner, assets: Mapping[str, bytes]) -> None:
    """Weights and small files."""
    learned = learner.weights
    try:
        save_file({name: _values(source, name, learned) for name in source.specs}, folder / WHOLE, {"format": "pt"})
    except SafetensorError as error:  # the library's word for an OSError
        raise OSError(str(error)) from error
    config = json.loads(assets["config.json"]) | {"tie_word_embeddings": source.tied}
    config.pop(NAMED_WEIGHTS, None)
    small = {name: assets[name] for name in ASSETS if name in assets}
    small["config.json"] = json.dumps(config, indent=2).encode() + b"\n"
    for name, text in json.loads(assets.get(TEMPLATES, b"{}")).items():
        small[f"{MORE_TEMPLATES}/{name}.jinja"] = text.encode()
    for name, data in small.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def _values(source: Checkpoint, name: str, learned: Mapping[str, F32]) -> Array:
    """As they are written: in the source's dtype, and its own where nothing is learned."""
    if name in learned:
        return np.ascontiguousarray(learned[name].astype(_dtype(source, name), copy=False))
    plain = source.raw(name)
    values = np.ascontiguousarray(plain.values)
    return values.view(CAST["BF16"]) if plain.dtype == "BF16" else values


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _foreign(folder: Path) -> str | None:
    """Why a folder was not written here, or holds what was not."""
    if kind_of(folder) is not Kind.MODEL or not (folder / REPORT).is_file():
        return "was not written by `finetune`"
    names = sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*"))
    return next((f"{name} in it is no part of what `finetune` writes" for name in names if not OURS.fullmatch(name)), None)

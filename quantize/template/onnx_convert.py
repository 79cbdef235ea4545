"""A Hugging Face folder as a float ONNX folder that is a source: the graph of the first of several tools that computes what torch
does. That is tried before any work, on a small random model of the same config, past its window and token by token."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import helper

from quantize.checkpoint import check_folder, open_checkpoint
from quantize.checkpoint.huggingface import ASSETS as SMALL
from quantize.checkpoint.huggingface import TOKENIZER, is_quantized, read_assets
from quantize.checkpoint.onnx_template import OnnxTemplate
from quantize.checkpoint.safetensors_file import QUANTIZED_BYTES, StoredTensor
from quantize.checkpoint.shards import FILE, stored_tensors
from quantize.checkpoint.tokenizer_files import MORE_TEMPLATES
from quantize.child import Child, ChildEnded
from quantize.errors import CheckpointError, FileFormatError, NoGraphError, OutputError, asked, shown
from quantize.kinds import is_template
from quantize.onnx.reader import MODEL_FILE, read_graph
from quantize.onnx.template import ASSETS, DATA_FILE, FACTS, Facts, Genai, write_template
from quantize.onnx.watched import run_steps
from quantize.store.outputs import Unfinished
from quantize.store.outputs import check_folder as check_output
from quantize.template.convert import folder_digest
from quantize.template.converted import Converted
from quantize.template.onnx_genai import genai_facts, head_size
from quantize.template.onnx_normal import normal
from quantize.template.process import Answer, ask
from quantize.template.room import check_graph_room
from quantize.template.verdicts import Sizes, Verdicts
from quantize.types import F32, TensorSpec

ADAPTER = Path(__file__).with_name("onnx_adapter.py")
OF_EXPERTS, NO_EXPERTS = "mobius-moe", "it has no experts"
PRODUCERS = {  # word for the adapter -> what to call it; those whose cache genai shares come first
    OF_EXPERTS: "mobius-onnx with GroupQueryAttention and MoE",
    "mobius-gqa": "mobius-onnx with GroupQueryAttention",
    "genai": "onnxruntime-genai's builder",
    "mobius": "mobius-onnx",
}
TO_GGUF = "adadim convert DIR --out MODEL.gguf, then adadim run MODEL.gguf"
WORK = "work"  # a folder that is gone when all is written
PROMPT = 40  # tokens of a twin's text that go together; the others one by one
ELSE = f"write it for llama.cpp: {asked('target', 'llama.cpp')}"
# Largest difference of a logit by the largest logit. Float32 sums in another order make 2e-6 of a twin, and 3e-4 of a real
# model with large activations; a weight in another's place makes .1 and more.
APART, MISPLACED = 1e-4, 1e-2


class _Once(str):
    """A reason that says nothing of a graph, as memory that ran out: another time it may pass."""


@dataclass(frozen=True)
class _Model:
    """``folder`` as it was ``named``; ``work``: where what is made on the way lies; ``tried``: what is known of its twin."""

    named: Path
    folder: Path
    work: Path
    tried: Verdicts

    @property
    def sizes(self) -> Sizes:
        """Known as soon as there is a twin, or was one."""
        return self.tried.sizes

    def layers_of(self, source: Path) -> int:
        """Of the model itself, or of its twin."""
        return self.sizes.num_hidden_layers if source == self.folder else self.sizes.twin_layers


def convert_onnx(folder: Path, out: Path, force: bool = False) -> Converted:
    """Write ``folder`` as the float ONNX folder ``out``, whole or not at all; it may be a GGUF that transformers reads.
    ``force``: also try again what is known of its config.

    Raises CheckpointError for a model that torch does not run, or of which no tool's graph computes what torch does;
    OutputError.
    """
    made_from = _digest(folder)
    check_output(out, force, _foreign)
    check_graph_room(folder, out, _specs(folder), ELSE)
    with Unfinished(out, True, force, _foreign) as unfinished:
        work = unfinished.path / WORK
        work.mkdir()
        model = _opened(folder, work, force)
        by = _written(model, unfinished.path, made_from)
        _copy_small(model.folder, unfinished.path / ASSETS)
        shutil.rmtree(work)
        floats = _floats(unfinished.path)  # which opens it
        unfinished.finish()
    return Converted(out, floats, PRODUCERS[by])


def made_of(template: Path, folder: Path) -> bool:
    """Whether it is what ``convert_onnx`` would make, by tools of the same versions, and whole. Raises CheckpointError for what
    cannot be read."""
    if not is_template(template):
        return False
    source = OnnxTemplate(template)
    tools = {_made_by(by) for by in PRODUCERS}
    return source.facts.made_from == _digest(folder) and source.facts.made_by in tools and source.is_whole


def _made_by(by: str) -> str:
    """With its version, as a template says it."""
    package = "onnxruntime-genai" if by == "genai" else "mobius-onnx"
    return f"{PRODUCERS[by]} ({package} {version(package)})"


def _digest(source: Path) -> str:
    """Of all that is read of it. Raises CheckpointError for what is neither a GGUF nor a folder of safetensors."""
    return open_checkpoint(source).sha256 if source.is_file() else folder_digest(source, _stored(source))


def _specs(source: Path) -> list[TensorSpec]:
    if source.is_file():
        return list(open_checkpoint(source).specs.values())
    return [tensor.spec for tensor in _stored(source).values()]


def _stored(folder: Path) -> dict[str, StoredTensor]:
    check_folder(folder)
    return stored_tensors(folder, FILE.load(folder / "config.json", dict[str, Any]), QUANTIZED_BYTES)


def _opened(named: Path, work: Path, forget: bool) -> _Model:
    """Raises CheckpointError where transformers does not read it."""
    packed = named.is_file() or is_quantized(named)
    folder = _unpacked(named, work / "unpacked") if packed else named.resolve()
    return _Model(named, folder, work, Verdicts(folder, forget))


def _twin_of(named: Path, folder: Path, out: Path, whole: bool) -> Sizes:
    sizes = ask(ADAPTER, {"action": "twin", "folder": str(folder), "out": str(out), "whole": whole}, Sizes)
    _check_alive(named, sizes)
    if sizes.error is not None:
        raise NoGraphError(f"{named}: transformers does not run it ({shown(sizes.error)}); {ELSE}")
    return sizes


def make_twin(source: Path, work: Path) -> tuple[str, Path]:
    """A small random model of a config.json, or of a folder with one and maybe a tokenizer: its model_type, and a folder in
    ``work`` with tokens.npy and torch's logits.npy. Raises CheckpointError where transformers does not run it."""
    folder = source
    if source.is_file():
        folder = work / "config"
        folder.mkdir()
        shutil.copyfile(source, folder / "config.json")
    return _twin_of(source, folder.resolve(), work / "twin", whole=True).model_type, work / "twin"


def _unpacked(source: Path, out: Path) -> Path:
    """A GGUF, or a folder that is quantized, as one of floats. Raises CheckpointError where transformers does not read it, or a
    GGUF's tokenizer is unknown to it."""
    assets = open_checkpoint(source).assets() if source.is_file() else read_assets(source)
    if TOKENIZER not in assets and source.is_file():
        raise CheckpointError(f"{source}: its tokenizer is none that a graph's runtime reads; name the model's own folder")
    answer = ask(ADAPTER, {"action": "unpack", "source": str(source.resolve()), "out": str(out)}, Answer)
    _check_alive(source, answer)
    if answer.error is not None:
        way = ELSE if source.is_file() else f"what llama.cpp's converter reads of it is a source: {TO_GGUF}"
        raise NoGraphError(f"{source}: transformers does not dequantize it ({shown(answer.error)}); {way}")
    for name, data in assets.items():
        if name in SMALL and name != "config.json":
            (out / name).write_bytes(data)
    return out


def _floats(template: Path) -> str:
    """The dtypes of its matrices, most weights first."""
    found = Counter[str]()
    for spec in OnnxTemplate(template).specs.values():
        found[spec.dtype] += spec.size if len(spec.shape) > 1 else 0
    return ", ".join(dtype for dtype, count in found.most_common() if count)


def _written(model: _Model, out: Path, made_from: str) -> str:
    """The first producer whose graph of the twin computes what the twin does, and whose graph of the model, in ``out``, what the
    model does. Raises NoGraphError if there is none."""
    reasons = list[str]()
    for by, name in PRODUCERS.items():
        known = model.tried.said.get(by)
        problem = _on_twin(model, by) if known is None else known
        problem = problem or _build(model, by, model.folder, out, made_from) or _misses(model, out) or ""
        if not problem:
            return by
        reasons += [f"{name}: {problem}"] if problem != NO_EXPERTS else []
    raise NoGraphError(f"{model.named}: no ONNX graph computes what torch does ({'; '.join(reasons)}); {ELSE}")


def _on_twin(model: _Model, by: str) -> str:
    """Why its graph of the twin does not compute what the twin does, "" where it does; remembered."""
    twin, place = model.work / "twin", model.work / f"twin-{by}"
    if not twin.exists():
        model.tried.sizes = _twin_of(model.named, model.folder, twin, whole=False)
    place.mkdir()
    of_none = by == OF_EXPERTS and not model.sizes.experts
    problem = NO_EXPERTS if of_none else _build(model, by, twin, place) or _distance(place, twin, PROMPT, APART) or ""
    if not isinstance(problem, _Once):
        model.tried.note(by, problem)
    return problem


def _build(model: _Model, by: str, source: Path, out: Path, made_from: str = "") -> str | None:
    """``out``, a template of ``source`` without its small files; or why there is none."""
    graph = model.work / "graph"
    answer = ask(ADAPTER, {"action": "build", "by": by, "folder": str(source), "out": str(graph)}, Answer)
    try:
        _check_alive(model.named, answer)
        if answer.error is not None:
            said = shown(answer.error.replace(str(source), source.name))
            return _Once(said) if "memory" in said else said
        read = read_graph(graph)
        facts = genai_facts(graph, read.model, msgspec.to_builtins(model.sizes))
        found = normal(read, {"kv_cache_dim": head_size(facts)}, model.layers_of(source))
        helper.set_model_props(found.skeleton, {FACTS: json.dumps(_facts(model.sizes, by, made_from, facts), sort_keys=True)})
        write_template(out, found.skeleton, found.weights)
    except (FileFormatError, ValueError, LookupError, TypeError) as error:
        return shown(str(error))
    finally:
        shutil.rmtree(graph, ignore_errors=True)
    return None


def _check_alive(named: Path, answer: Answer) -> None:
    """Raises OutputError where the disk is full, CheckpointError where the process ended: neither says anything of a graph."""
    if answer.error is not None and "No space left" in answer.error:
        raise OutputError(f"{named}: cannot be converted ({shown(answer.error)}); free some space")
    if answer.ended:
        raise CheckpointError(f"{named}: the process that read it ended ({shown(answer.error)}); is there enough memory for it?")


def _distance(template: Path, torch: Path, prompt: int, most: float) -> str | None:
    """What is wrong with the logits of a template beside those that torch has left in a folder; None for less than ``most``."""
    tokens, taught = np.load(torch / "tokens.npy"), np.load(torch / "logits.npy")
    try:
        with Child() as child:
            found: F32 = child.call(run_steps, template, tokens, prompt)
    except ChildEnded as error:
        return _Once(shown(str(error)))
    except FileFormatError as error:
        return shown(str(error).removesuffix("; export it again").rpartition(f"{template}: ")[2])
    apart = float(np.abs(found - taught).max() / np.abs(taught).max()) if found.shape == taught.shape else np.inf
    return None if apart <= most else f"logits are {apart:.2g} of the largest apart"


def _misses(model: _Model, template: Path) -> str | None:
    """As ``_distance``, of the model itself and few tokens: whether its weights are where they belong."""
    answer = ask(ADAPTER, {"action": "logits", "folder": str(model.folder), "out": str(model.work)}, Answer)
    _check_alive(model.named, answer)
    return shown(answer.error) if answer.error is not None else _distance(template, model.work, 8, MISPLACED)


def _facts(sizes: Sizes, by: str, made_from: str, genai: Genai) -> dict[str, Any]:
    facts = Facts(
        model_type=sizes.model_type,
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_hidden_layers,
        max_position=sizes.max_position,
        made_from=made_from,
        made_by=_made_by(by),
        genai=genai,
        experts=sizes.experts,
    )
    out: dict[str, Any] = msgspec.to_builtins(facts)
    return out


def _copy_small(folder: Path, out: Path) -> None:
    out.mkdir()
    for name in SMALL:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if (folder / MORE_TEMPLATES).is_dir():
        (out / MORE_TEMPLATES).mkdir()
        for path in (folder / MORE_TEMPLATES).glob("*.jinja"):
            shutil.copyfile(path, out / MORE_TEMPLATES / path.name)


def _foreign(folder: Path) -> str | None:
    """Why a folder was not written here, or holds what was not."""
    try:
        OnnxTemplate(folder)
    except CheckpointError:
        return "was not written by adadim as a source"
    known = {MODEL_FILE, DATA_FILE, ASSETS, *(f"{ASSETS}/{name}" for name in (*SMALL, MORE_TEMPLATES))}
    more = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    strange = (name for name in more if name not in known and not name.startswith(f"{ASSETS}/{MORE_TEMPLATES}/"))
    return next((f"{name} in it is no part of a source" for name in strange), None)

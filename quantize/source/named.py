"""A source as torch runs it, and where its tensors are in there: by name for the known families, by content for any other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from quantize.checkpoint import Checkpoint
from quantize.checkpoint.template import Template
from quantize.errors import CheckpointError, asked, shown
from quantize.model_config import EMBEDDING, HEAD, block_prefix
from quantize.source.causal import Causal, Weight
from quantize.source.discover import TOKENS, anatomy_of
from quantize.source.match import Matcher, Rows
from quantize.source.paged import Paged, dtypes_of_files
from quantize.source.whole import build_model, change, take_gradients
from quantize.types import F32, I64

SHOWN = 3  # names in a message
PART = 1 << 22  # weights that are compared together
SAMPLE = 64  # tokens on which its runtime and torch have to agree
WITHOUT = f"go without gradients: {asked('token_weight', 'unit')}, {asked('tune_steps', 0)}, and no size"
MOST_APART = 0.1  # nats a token; a Q4_K_M in llama.cpp's kernels: .007


@dataclass(frozen=True)
class Named:
    """``causal`` is the model in float32: whole in memory, or ``paged``.

    ``rows``: of every linear, in the source's order. ``sites``: linears that see the same input. ``whole``: tensors that are a
    parameter as they are. ``experts``: of every stack, each expert's.
    """

    causal: Causal
    rows: Mapping[str, Rows[Weight]]
    sites: Sequence[Sequence[str]]
    whole: Mapping[str, nn.Parameter]
    experts: Mapping[str, Sequence[Rows[Weight]]] = field(default_factory=dict)
    paged: Paged | None = None

    def held(self, index: int) -> AbstractContextManager[None]:
        """In the block weights of the decoder block ``index`` may be put."""
        return nullcontext() if self.paged is None else self.paged.held(index)

    def holds(self, name: str) -> bool:
        """Whether it was found."""
        return name in self.whole or name in self.rows

    def put(self, name: str, weight: F32, learns: bool) -> None:
        """Let F32[...] stand in for ``name``; its parameters ask for a gradient if it ``learns``. Else nothing is done."""
        if name in self.whole:
            change(self.whole[name], weight, learns)
        elif name in self.rows:
            rows = self.rows[name]
            for number, key in enumerate(rows.keys):
                own = rows.which == number
                self.causal.matrix(key).numpy()[rows.index[own]] = weight[own]
                if learns:  # never off: another tensor may lie in the same parameter
                    self.causal.parameters[key.parameter].requires_grad_()

    def take_gradients(self, names: Collection[str]) -> dict[str, F32]:
        """Of those of ``names`` that have one, in their rows' order; the parameters have none afterwards."""
        found = take_gradients((name, self.whole[name]) for name in names if name in self.whole)
        for name in [name for name in names if name in self.rows and name not in found]:
            grads = {key: self.causal.parameters[key.parameter].grad for key in self.rows[name].keys}
            matrices = {key: key.within(grad).numpy() for key, grad in grads.items() if grad is not None}
            if len(matrices) == len(grads):
                found[name] = self.rows[name].gather(matrices)
        for parameter in self.causal.parameters.values():
            parameter.grad = None
        return found


def named_model(source: Checkpoint, tokens: I64, paged: bool = True, split: bool = False) -> Named:
    """``paged``: in the memory of one decoder block, if the source is a template with a folder as its twin; other weights are put
    into a block while it is held. ``split``: with a head of its own, whether or not the source has one.

    Raises CheckpointError for a template that transformers does not run, or that is not what it runs: its weights are other
    ones, or it predicts something else than its own runtime does of ``tokens`` I64[sequences, length]."""
    if not isinstance(source, Template):
        return _by_name(source, split)
    return _by_content(source, tokens[0, :SAMPLE], paged, split)


def _by_name(source: Checkpoint, split: bool) -> Named:
    model: Any = build_model(source.config, source.read, source.tied)
    positions = model.model.rotary_emb(torch.zeros(1, 1), torch.arange(TOKENS)[None])
    sites = [
        [f"{block_prefix(index)}{linear}.weight" for linear in linears]
        for index, block in enumerate(model.model.layers)
        for linears in anatomy_of(block, model.config.hidden_size, positions).sites
    ]
    causal = Causal(_untied(model) if split else model)
    rows = {name: _itself(name, causal.parameters[name]) for names in sites for name in names}
    return Named(causal, rows, sites, causal.parameters)


def _untied(model: Any) -> Any:  # noqa: ANN401 - transformers has no types
    """The same with a head that is no longer the embedding."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    return model


def _itself(name: str, parameter: nn.Parameter) -> Rows[Weight]:
    count, columns = parameter.shape
    return Rows((Weight(name, 0, (count, columns), False),), np.zeros(count, np.intp), np.arange(count))


def _by_content(source: Template, sample: I64, paged: bool, split: bool) -> Named:
    where = source.twin or source.path
    pages = paged and where.is_dir()  # of a GGUF transformers makes floats of its own
    try:
        model = _load(where, pages)
        causal = Causal(_untied(model) if split or HEAD in source.specs else model)
        blocks = Paged(causal) if pages else None
        seen = dict[Weight, None]()
        with torch.no_grad(), causal.watched(lambda weight, *_: None if weight is None else seen.setdefault(weight)):
            predicted = causal.logits(causal.hidden(torch.from_numpy(sample)[None])[0])
    except Exception as error:  # transformers raises whatever it meets
        raise CheckpointError(f"{where}: does not run in torch ({shown(error)}); {WITHOUT}") from error
    taught = source.logits(sample)
    if taught.shape != predicted.shape:
        raise CheckpointError(
            f"{where}: predicts {predicted.shape[1]} tokens in torch, and {source.path} {taught.shape[1]} in {source.runtime}; "
            f"{WITHOUT}"
        )
    apart = _divergence(taught, predicted)
    if not apart <= MOST_APART:
        raise CheckpointError(
            f"{where}: torch does not predict what {source.runtime} does of {source.path}: {apart:.3g} nats a token apart, where "
            f"kernels alone make less than {MOST_APART:g}; {WITHOUT}"
        )
    tables = {EMBEDDING: causal.embedding, HEAD: causal.head}
    seen |= dict.fromkeys(other for one in seen for other in _stack_of(causal, one))
    own = [one for one in seen if not any(causal.parameters[one.parameter] is table for table in tables.values())]
    matcher = Matcher((weight, causal.matrix(weight).numpy()) for weight in own)
    whole = {name: one for name, one in tables.items() if name in source.specs and _alike(source, name, one)}
    rows, experts = _matched(source, matcher)
    return Named(causal, rows, _sites(source), whole, experts, blocks)


def _stack_of(causal: Causal, weight: Weight) -> list[Weight]:
    """All matrices of the stack that it is one of, of experts that saw none of the tokens too; else none."""
    parameter, size = causal.parameters[weight.parameter], weight.shape[0] * weight.shape[1]
    return [weight._replace(offset=offset) for offset in range(0, parameter.numel(), size)] if parameter.ndim == 3 else []


def _divergence(by_runtime: F32, by_torch: torch.Tensor) -> float:
    """Mean KL divergence of logits [n, vocab], in nats a token."""
    taught, own = (torch.log_softmax(logits.double(), -1) for logits in (torch.from_numpy(by_runtime), by_torch))
    return float((taught.exp() * (taught - own)).sum(-1).mean())


def _load(path: Path, as_it_lies: bool) -> Any:  # noqa: ANN401 - transformers has no types
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    place: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if path.is_file():
        place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "experts_implementation": "eager"}
    if path.is_dir():
        options["use_safetensors"] = True  # nothing is unpickled
    with dtypes_of_files() if as_it_lies else nullcontext():
        return AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, **options).requires_grad_(False)


def reads_gguf(arch: str) -> bool:
    """Whether transformers makes a torch model of a GGUF of that architecture."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return arch in GGUF_SUPPORTED_ARCHITECTURES


def _sites(source: Template) -> list[list[str]]:
    sites: dict[int, list[str]] = {}
    for product in source.products:
        if _is_alone(source, product.weight):
            sites.setdefault(product.site, []).append(product.weight)
    return list(sites.values())


def _is_alone(source: Template, name: str) -> bool:
    """Whether it is quantized, and no stack: of experts no gradients are taken."""
    return source.is_quantized(name) and len(source.specs[name].shape) == 2


def _matched(source: Template, matcher: Matcher[Weight]) -> tuple[dict[str, Rows[Weight]], dict[str, list[Rows[Weight]]]]:
    """Linears, and stacks where torch has to say what their experts see."""
    found, stacks, missed = dict[str, Rows[Weight]](), dict[str, list[Rows[Weight]]](), list[str]()
    for name, spec in source.specs.items():
        stack = len(spec.shape) > 2
        if not source.is_quantized(name) or (stack and not source.hides_experts):
            continue
        each = (source.read_rows(name, i, i + 1)[0] for i in range(spec.shape[0])) if stack else (source.read(name),)
        own = [matcher.find(weight) for weight in each]
        known = [rows for rows, _ in own if rows is not None]
        if len(known) < len(own):
            missed.append(f"{name} ({min(part for _, part in own):.0%} of its rows)")
        elif stack:
            stacks[name] = known
        else:
            found[name] = known[0]
    if missed:
        more = f" and {len(missed) - SHOWN} more" if len(missed) > SHOWN else ""
        raise CheckpointError(f"{source.path}: torch's model has no weight like {', '.join(missed[:SHOWN])}{more}; {WITHOUT}")
    return found, stacks


def _alike(source: Template, name: str, parameter: nn.Parameter) -> bool:
    shape = source.specs[name].shape
    if shape != tuple(parameter.shape):
        return False
    step = max(1, PART // shape[1])
    starts = range(0, shape[0], step)
    return all(np.array_equal(source.read_rows(name, i, min(i + step, shape[0])), _rows(parameter, i, step)) for i in starts)


def _rows(parameter: nn.Parameter, start: int, count: int) -> F32:
    values: F32 = parameter.detach()[start : start + count].numpy()
    return values

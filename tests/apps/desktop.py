"""What the desktop runtimes say to the same prompt: a client has to give their greedy tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from quantize.llama_cpp.model import LlamaModel
from quantize.types import F32
from runtime_checks.checks.chat_template import render, special_tokens_of, template_of
from runtime_checks.runtimes.onnx_runner import OnnxRunner

NEARLY_EQUAL = 0.05  # logits: below this another instruction set's sums may choose the other token
CONTEXT = 512


def prompt_ids(model: Path, question: str) -> list[int]:
    """A question in the chat template of the model's folder, by its own tokenizer."""
    assets = {path.name: path.read_bytes() for path in model.iterdir() if path.suffix in (".json", ".jinja")}
    template = template_of(assets)
    assert template is not None
    text = render(template, ({"role": "user", "content": question},), special_tokens_of(assets)).text
    assert text is not None
    return Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def check_greedy(file: Path, prompt: list[int], answer: list[int], *, float_activations: bool = False) -> int:
    """The desktop runtime has to choose every token of ``answer``, up to one that is nearly the best; how many are the same.

    ``float_activations``: compute ONNX as onnxruntime's WebAssembly does, which has no 8-bit kernels.
    """
    assert answer
    rows = following_logits(file, prompt, answer[:-1], 0 if float_activations else None)
    for index, token in enumerate(answer):
        best = int(rows[index].argmax())
        if token != best:
            gap = float(rows[index, best] - rows[index, token])
            assert gap < NEARLY_EQUAL, f"token {index} is {token}, here {best}, whose logit is larger by {gap:.3f}"
            return index
    return len(answer)


def following_logits(file: Path, prompt: list[int], answer: list[int], accuracy_level: int | None) -> F32:
    """F32[len(answer) + 1, vocab]: after the prompt, and after each token of the answer.

    A model is fed the prompt at once and the rest one by one, as when it decodes: both runtimes round activations to 8 bits,
    and what that does to the logits depends on how many tokens they are given at a time.
    """
    if not file.is_dir():
        return llama_logits(file, prompt, answer)
    runner = OnnxRunner(file, accuracy_level)
    out, cache = runner.step(np.array(prompt, np.int64), len(prompt), runner.empty())
    rows = [out[-1]]
    for total, token in enumerate(answer, start=len(prompt) + 1):
        out, cache = runner.step(np.array([token], np.int64), total, cache)
        rows.append(out[-1])
    return np.stack(rows)


def llama_logits(file: Path, prompt: list[int], answer: list[int]) -> F32:
    with LlamaModel(file, n_ctx=CONTEXT) as model:
        rows = [model.logits(np.array(prompt, np.int32))[-1]]
        for place, token in enumerate(answer, start=len(prompt)):
            rows.append(model._decode(np.array([token], np.int32), place)[-1].copy())
        return np.stack(rows)

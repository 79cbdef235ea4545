#!/usr/bin/env python3
"""Ask a written file something in its own runtime, through its own chat template: a GGUF in llama.cpp, a folder in genai.

The answer is greedy, so it is the same each time.

usage: generate.py FILE.gguf|DIR [QUESTION]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import quantize.telemetry  # noqa: F401 - before onnxruntime-genai, which would report to its maker
from exporter.writers import writer_at

QUESTION = "Write one sentence about the sea."
TOKENS = 48


def with_llama_cpp(path: Path, question: str) -> str:
    """llama.cpp's answer, through the C API that the xllamacpp wheel exports."""
    from quantize.llama_cpp.model import LlamaModel
    from runtime_checks.checks.chat_template import render

    with LlamaModel(path) as model:
        prompt = question
        template = model.chat_template()
        if template is not None:
            specials = {"bos_token": model.bos, "eos_token": model.eos}
            prompt = render(template.decode(), ({"role": "user", "content": question},), specials).text or question
        tokens = model.generate_greedy(model.tokenize(prompt), TOKENS)
        return model.detokenize([token for token in tokens if not model.is_end(token)])


def with_genai(path: Path, question: str) -> str:
    """onnxruntime-genai's answer; it finds everything in the folder's genai_config.json."""
    import onnxruntime_genai as genai

    model = genai.Model(str(path))
    tokenizer, params = genai.Tokenizer(model), genai.GeneratorParams(model)
    prompt = tokenizer.apply_chat_template(json.dumps([{"role": "user", "content": question}]), add_generation_prompt=True)
    ids = tokenizer.encode(prompt)
    params.set_search_options(do_sample=False, max_length=len(ids) + TOKENS)
    generator = genai.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return str(tokenizer.decode(generator.get_sequence(0)[len(ids) :]))


def main(path: Path, question: str = QUESTION) -> None:
    """Print the answer as one line."""
    answer = {"gguf": with_llama_cpp, "onnx": with_genai}[writer_at(path)](path, question)
    print(" ".join(answer.split()))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:])

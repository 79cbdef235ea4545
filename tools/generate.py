#!/usr/bin/env python3
"""Continue a prompt greedily with a written file in its own runtime: a GGUF in llama.cpp, a folder in onnxruntime-genai.

usage: generate.py FILE.gguf|DIR [PROMPT]
"""

from __future__ import annotations

import sys
from pathlib import Path

PROMPT = "The capital of France is"
TOKENS = 24


def with_llama_cpp(path: Path, prompt: str, count: int) -> str:
    """The continuation by llama.cpp, through the C API that the xllamacpp wheel exports."""
    from runtime_checks.llama_cpp import LlamaModel

    with LlamaModel(path) as model:
        return model.detokenize(model.generate_greedy(model.tokenize(prompt), count))


def with_genai(path: Path, prompt: str, count: int) -> str:
    """The continuation by onnxruntime-genai, which finds everything in the folder's genai_config.json."""
    import onnxruntime_genai as genai

    model = genai.Model(str(path))
    tokenizer, params = genai.Tokenizer(model), genai.GeneratorParams(model)
    ids = tokenizer.encode(prompt)
    params.set_search_options(do_sample=False, max_length=len(ids) + count)
    generator = genai.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return str(tokenizer.decode(generator.get_sequence(0)[len(ids) :]))


def main(path: Path, prompt: str = PROMPT) -> None:
    """Print prompt and continuation as one line."""
    text = (with_genai if path.is_dir() else with_llama_cpp)(path, prompt, TOKENS)
    print(prompt + text.replace("\n", " "))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:])

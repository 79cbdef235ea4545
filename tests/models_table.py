"""Writes docs/evidence/models.md: what comes of a random model of each architecture. ``python -m tests.models_table``"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from quantize.template.converter import find_converter
from runtime_checks.checks.architecture_check import COLUMNS, Architecture, check_architecture
from tests.any_model import MODELS, make_model

OUT = Path(__file__).parents[1] / "docs" / "evidence" / "models.md"
HEAD = """# Models

A small random model of each architecture through the whole way, into both files: floats by the target's own tools, beside torch;
then 4 bits, and every check of `adadim verify`, the runtimes' tokens and strings among them. Only llama, mistral, qwen2 and qwen3
are known by name, and these are taken as any other here. `adadim check-architecture CONFIG` makes the row of any other model.

- *apart*: the largest difference of a logit between torch and the runtime, both on the float weights, by the largest logit; in
  ONNX past the window, and token by token.
- *weighed by*: gradients where torch runs it and all its matrices are found there; else the size of each token.
- *checks*: of `verify`, held and made. *genai*: whether onnxruntime-genai generates what onnxruntime holds likeliest.

Errors of 1e-4 to 1e-3 are llama.cpp's table of half floats for gelu. Written by `python -m tests.models_table`.

"""
REFUSED = "\n## Refused, and why\n\n"


def made(folder: Path, model_type: str) -> Architecture:
    """Of one architecture."""
    return check_architecture(
        make_model(folder / "model", model_type, "float32"), _empty(folder / "work"), find_converter(), "gpt-2"
    )


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> None:
    """All of them."""
    rows, refused = list[str](), list[str]()
    for model_type in MODELS:
        with TemporaryDirectory() as folder:
            found = made(Path(folder), model_type)
            rows.append(f"| {' | '.join(found.row())} |\n")
            reasons = {"GGUF": found.gguf.refused, "ONNX": found.onnx.refused}
            refused += [f"- {model_type}, {word}: {_plain(reason, folder)}\n" for word, reason in reasons.items() if reason]
            missed = [check for went in (found.gguf, found.onnx) for check in went.missed]
            refused += [f"- {model_type}: {check.name}: {check.tensor}\n" for check in missed]
            print(rows[-1], *refused[-1:], end="", flush=True)
    table = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
    OUT.write_text(HEAD + table + "".join(rows) + REFUSED + "".join(refused), encoding="utf-8")


def _plain(reason: str, folder: str) -> str:
    """Without what differs from run to run."""
    return reason.replace(f"{folder}/work/", "")


if __name__ == "__main__":
    main()

"""Digests of what every method writes for every target: run before and after a change that must move no byte, and compare.

    python -m tests.digests > before.txt

One line for each case: the tensors of the store, what plan.json says of them, the file. Machines differ in the last bits of
matrix products, so the two runs belong on one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exporter.targets import TARGETS
from exporter.writers import writer_of
from quantize import DataSpec, open_checkpoint, quantize_checkpoint
from quantize.methods import WORDS, read_word
from quantize.statistics.imatrix import make_imatrix
from tests.cases import config_of
from tests.tiny import make_tiny_model

TEXT = 2048  # tokens
RECIPE = """[[rule]]
match = "*.down_proj"
method = "rtn-ic"
bits = 8
[[rule]]
match = "*.mlp.*"
method = "search-ada"
"""


def cases(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A word and options."""
    imatrix, recipe = folder / "imatrix.gguf", folder / "recipe.toml"
    recipe.write_text(RECIPE)
    for method in WORDS:
        yield method, {"method": method} | ({"calibration_tokens": 8192} if read_word(method).method.learns else {})
    yield "unit", {"token_weight": "unit"}
    yield "none", {"token_weight": "none", "seed": 3}
    yield "scope", {"selection": "scope", "max_slowdown": 1.1}
    yield "transforms", {"transforms": ("norm-scales", "ffn-scales", "value-scales", "ffn-order", "value-order", "norm-gains")}
    yield "learned", {"block_steps": 12, "tune_steps": 6, "calibration_tokens": 16384}
    yield "all", {"transforms": ("ffn-order", "norm-gains"), "selection": "scope", "block_steps": 11, "calibration_tokens": 16384}
    yield "imatrix", {"method": "search-ada", "imatrix": imatrix}
    yield "recipe", {"recipe": recipe, "allow_fallback": True}
    yield "tables", {"embedding": "source", "head": "source"}
    yield "wide", {"group_size": 0, "allow_fallback": True}


def digest(paths: list[Path], root: Path) -> str:
    """Of names and bytes."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


def line(source: Path, folder: Path, target: str, config: dict[str, Any]) -> str:
    """The three digests, or what was refused."""
    out, named = folder / "store", TARGETS[target]
    given = {"calibration_tokens": TEXT, **config}
    try:
        store = quantize_checkpoint(open_checkpoint(source), out, config_of(**given), named, force=True)
        plan = json.loads((out / "plan.json").read_text())
        del plan["config"], plan["sha256"]
        file = writer_of(target).write(store, folder / f"file-{target}", force=True)
        files = [file] if file.is_file() else [path for path in file.rglob("*") if path.is_file()]
        plan_digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]
        return f"{digest(list((out / 'tensors').iterdir()), out)} {plan_digest} {digest(files, folder)}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).replace(str(folder), '')}"


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "llama": make_tiny_model(folder / "llama", hidden=64, ffn=128),
            "qwen2": make_tiny_model(folder / "qwen2", "qwen2", tied=False, hidden=64, ffn=96),
            "qwen3": make_tiny_model(folder / "qwen3", "qwen3", hidden=64, ffn=160),
        }
        for model, source in models.items():
            make_imatrix(open_checkpoint(source), folder / "imatrix.gguf", DataSpec(tokens=TEXT), force=True)
            for word, config in cases(folder):
                for target in TARGETS:
                    print(model, word, target, line(source, folder, target, config), flush=True)
                    print(model, word, target, file=sys.stderr)


if __name__ == "__main__":
    main()

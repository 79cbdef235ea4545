"""Writes docs/evidence/models.md: what comes of a random model of each architecture. ``python -m tests.models_table``"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from exporter.gguf.file import write_gguf
from exporter.targets import TARGETS
from quantize.checkpoint.gguf_template import GgufTemplate
from quantize.checkpoint.gguf_tensors import open_language_model
from quantize.effort import effort_for
from quantize.llama_cpp.children import run_logits
from quantize.run.pipeline import quantize_checkpoint
from quantize.source.named import named_model
from quantize.statistics.by_template import gives_gradients
from quantize.template.convert import convert
from quantize.template.converter import find_converter
from runtime_checks.checks.verify import verify
from tests.any_model import MODELS, make_model

OUT = Path(__file__).parents[1] / "docs" / "evidence" / "models.md"
TOKENS = np.random.default_rng(0).integers(3, 400, (1, 96))
HEAD = """# Models

Random models of some thousand weights, one for each architecture, through the whole way: folder, GGUF of its floats by
llama.cpp's converter, 4 bits, `adadim verify`. Only the first four are known by name, and these are taken as any other here.

- *apart*: the largest difference of a logit between torch and llama.cpp, both on the float weights, by the largest logit.
- *found*: matrices of the GGUF whose rows were found in torch's model, of those that are quantized.
- *weighed by*: what the default effort takes: gradients where torch gives them, else the size of each token. The 4 bits of this
  table are by `--effort fast`, which takes the size.
- *checks*: of `verify`, held and made.

Errors of .001 are llama.cpp's table of half floats for gelu. Written by `python -m tests.models_table`.

| model_type | apart | found | experts | weighed by | checks |
|---|---|---|---|---|---|
"""


def row(folder: Path, model_type: str) -> str:
    """Of one architecture."""
    model, gguf = make_model(folder / "model", model_type, "float32"), folder / "model.gguf"
    convert(model, gguf, find_converter(), pre="gpt-2")
    source = GgufTemplate(gguf, *open_language_model(gguf), twin=model)
    named = named_model(source, TOKENS)
    with torch.no_grad():
        taught = named.causal.logits(named.causal.hidden(torch.from_numpy(TOKENS))[0]).numpy()
    apart = np.abs(run_logits(gguf, TOKENS[0]) - taught).max() / np.abs(taught).max()
    matrices = [spec for spec in source.specs.values() if len(spec.shape) > 1 and not spec.kept and ".layers." in spec.name]
    stacks = sum(len(spec.shape) == 3 for spec in matrices)
    config = effort_for("fast", source)
    weighed = "gradients" if gives_gradients(source) else "size"
    store = quantize_checkpoint(source, folder / "store", config, TARGETS["llama.cpp"])
    checks = verify(write_gguf(store, folder / "out.gguf"), source, store)
    held = sum(check.ok for check in checks)
    found = f"{len(named.rows)} of {len(matrices) - stacks}"
    return f"| {model_type} | {apart:.0e} | {found} | {stacks or '–'} | {weighed} | {held} of {len(checks)} |\n"


def main() -> None:
    """All of them."""
    rows = []
    for model_type in MODELS:
        with TemporaryDirectory() as folder:
            rows.append(row(Path(folder), model_type))
            print(rows[-1], end="", flush=True)
    OUT.write_text(HEAD + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What `adadim report` is given, small: a store that chose its axes, a file, and made-up results in the form of the commands'."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.onnx.file import write_onnx
from exporter.targets import TARGETS
from quantize import open_checkpoint, quantize_checkpoint
from runtime_checks.report.data import Paths
from runtime_checks.report.write import Closeup, write_report
from tests.cases import config_of
from tests.tiny import TEXT, make_tiny_model

MARKUP = '<img src=x onerror=alert("x")>'  # what a name or a text may hold


@dataclass(frozen=True)
class Given:
    folder: Path
    paths: Paths
    closeup: Closeup


def measured(size: int, kld: float, **more: Any) -> dict[str, Any]:
    """As `adadim eval --json` writes it."""
    quality = {"ppl": 14.0, "source_ppl": 13.0, "kld": kld, "kld_p99": 6 * kld, "top1": 0.875, "tokens": 1536}
    return quality | {"bytes": size, "tokens_per_s": 120.0, "runtime": "llama.cpp (1)"} | more


def row(name: str, size: int, kld: float, first: int | None = 3) -> dict[str, Any]:
    """As `adadim compare --json` writes it."""
    said = {"first_difference": first, "sample": f" the sea <script>alert(1)</script> & {MARKUP}"}
    return {"name": name, "bits_per_weight": 4.5, "grids": {"q4_0": 14}} | measured(size, kld) | said


def comparison(*rows: dict[str, Any]) -> dict[str, Any]:
    """As `adadim compare --json` writes it."""
    return {
        "source": "tiny",
        "text": "held-out.txt",
        "chunks": 6,
        "prompt": f"Tell {MARKUP}",
        "sample": " of the sea",
        "files": [*rows],
    }


def check(name: str, ok: bool) -> dict[str, Any]:
    """As `adadim verify --json` writes it."""
    return {"name": name, "tensor": f"blk.0 {MARKUP}", "error": 0.5, "tolerance": 0.25, "ok": ok}


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def ladder(folder: Path, *names: str) -> Path:
    """The page of three verified files, of which the second is to be shipped."""
    rows = [
        row(name, size, kld)
        for name, size, kld in zip(names, (80_000_000, 92_000_000, 105_000_000), (0.09, 0.04, 0.02), strict=True)
    ]
    held = written(folder / "held.json", {"ok": True, "checks": [check("codes", True)] * 40})
    compared, out = written(folder / "compare.json", comparison(*rows)), folder / "report.html"
    write_report(Paths(comparisons=[compared], verifications=[(name, held) for name in names]), None, out)
    return out


def give(folder: Path) -> Given:
    """All kinds of input."""
    text = folder / "calibration.txt"
    text.write_text(TEXT * 12, encoding="utf-8")
    source = open_checkpoint(make_tiny_model(folder / "model"))
    config = config_of(
        method="rtn-ada",
        bits=3,
        group_size=32,
        calibration=str(text),
        calibration_tokens=1024,
        selection="hessian",
        token_weight="unit",
    )
    store = quantize_checkpoint(source, folder / "store", config, TARGETS["onnxruntime+adadim"])
    write_onnx(store, folder / "phone")
    rows = [
        row(str(folder / "phone"), 90_000_000, 0.08),
        row("small.gguf", 80_000_000, 0.2, None),
        row("Q4_0.gguf", 91_000_000, 0.12),
        {"name": f"broken {MARKUP}.gguf", "error": "not a GGUF, or a damaged one; export it again"},
    ]
    paths = Paths(
        models=[store.path, folder / "phone"],
        comparisons=[written(folder / "compare.json", comparison(*rows))],
        evaluations=[(f"apart {MARKUP}.gguf", written(folder / "eval.json", measured(100_000_000, 0.05)))],
        verifications=[
            ("phone", written(folder / "held.json", {"ok": True, "checks": [check("codes", True)] * 40})),
            (
                "small.gguf",
                written(folder / "missed.json", {"ok": False, "checks": [check("codes", True), check("logits", False)]}),
            ),
        ],
        references=["Q4_0.gguf"],
    )
    return Given(folder, paths, Closeup(source.path, str(text)))

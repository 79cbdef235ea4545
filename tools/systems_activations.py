"""Rows of compare_systems.py with rounded activations: what they are, and their table.

Simulated rows are decoded weights in torch whose linears round what they read; real ones run in onnxruntime as the target has it.
The int grid has no 6 bits: beside activations of 6 bits weights have 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]

STATIC = "onnxruntime-w8a8"
TURNS = "onnxruntime+adadim"
REAL = "as the target has it"
TOKEN_4, TOKEN_6 = "a4-token", "a6-token"
DOWN_8 = f"{TOKEN_4},*.down_proj=a8-token"
HEAD = "| row | bits | activations | KL, nats/token | weights alone | same favourite | linears, bits | CPU, s | memory, MB |"
FOLDS = ("rtn-oc", "smoothquant", "outlier-suppression", "outliertune")
MB = 1e6


class Activated(NamedTuple):
    """A row: ``name`` follows ``--method``, and ``activations`` the same word of ``adadim eval``, or REAL."""

    name: str
    bits: float
    activations: str
    target: str = TURNS

    @property
    def key(self) -> str:
        """Of the row."""
        return f"{self.name} {self.bits:g} {self.target if self.activations == REAL else self.activations}"


ROWS = (
    *(Activated(name, 8, REAL, STATIC) for name in FOLDS),
    *(Activated(name, 8, TOKEN_6) for name in ("rtn-oc", "smoothquant", "outlier-suppression", "duquant")),
    *(
        Activated(name, 4, TOKEN_4)
        for name in (
            "rtn-oc",
            "gptq-oc",
            "smoothquant --rounder gptq",
            "outlier-suppression --rounder gptq",
            "higgs --rounder gptq",
            "duquant",
            "duquant --rounder gptq",
        )
    ),
    Activated("quik", 4, TOKEN_4),
    *(Activated(name, 4, DOWN_8) for name in ("quik", "gptq-oc", "higgs --rounder gptq", "duquant --rounder gptq")),
)


def activated_table(rows: Mapping[str, Row]) -> list[str]:
    """Lines of Markdown, of the rows that there are."""
    made = [line(one, rows[one.key]) for one in ROWS if one.key in rows]
    said = (
        f"Rows of `{STATIC}` are what onnxruntime gives; of the others activations are simulated (`adadim eval --activations`). "
        "The int grid has no 6 bits: beside activations of 6 bits weights have 8."
    )
    return [
        "## Rounded activations",
        "",
        said,
        "",
        *([HEAD, "|" + "---|" * (HEAD.count("|") - 1), *made] if made else ["Not measured."]),
    ]


def line(one: Activated, row: Row) -> str:
    """Of the table."""
    begin = f"| {one.name} | {one.bits:g} | {one.target if one.activations == REAL else one.activations} |"
    if "error" in row:
        return f"{begin} {row['error'].replace('|', '/')} | | | | | |"
    return (
        f"{begin} {row['kld']:.4f} | {row['alone']:.4f} | {row['top1']:.3f} | {row['bits_per_weight']:.2f} | "
        f"{row['seconds']:.0f} | {row['memory'] / MB:.0f} |"
    )

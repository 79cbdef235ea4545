"""Whether a conversion fits on the disk and into memory, said before anything is written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quantize.checkpoint.floats import FLOATS
from quantize.errors import CheckpointError, OutputError
from quantize.store.output_place import free_space
from quantize.types import TensorSpec
from quantize.workers import memory_within

PACKED = {"U8": 2, "I32": 4}  # weights in a code, or more: two in MXFP4's, and 4 or 8 in a word of GPTQ's
WIDE, NARROW = 4, 2  # bytes of float32, and of other floats
# Bytes of memory for each weight that is not float32, which is mapped, beyond what the libraries take: in llama.cpp's converter
# of the largest tensor (7.7 of 51 million weights), and of all on the way to a graph by any of its makers (6.6 to 6.8 of 72
# million in BF16; 2.8 in float32).
TENSOR, GRAPH = 8, 6.5


def check_gguf_room(source: Path, out: Path, specs: Iterable[TensorSpec], outtype: str) -> None:
    """Of one GGUF. Raises OutputError, CheckpointError."""
    held = list(specs)
    _check_disk(source, out, sum(map(_weights, held)) * (WIDE if outtype == "F32" else NARROW))
    largest = max((_weights(spec) for spec in held if spec.dtype != "F32"), default=0)
    _check_memory(source, TENSOR * largest, "convert it on a machine that has more")


def check_graph_room(source: Path, out: Path, specs: Iterable[TensorSpec], otherwise: str) -> None:
    """Of an ONNX folder, with what lies in it while it is made: the tool's graph in float32, and floats of what is packed.

    ``otherwise``: what to do where memory is short. Raises OutputError, CheckpointError.
    """
    held = list(specs)
    disk = sum(_weights(spec) * (WIDE + _width(spec) + (0 if spec.dtype in FLOATS else NARROW)) for spec in held)
    _check_disk(source, out, disk)
    needed = sum(_weights(spec) * (GRAPH - WIDE if spec.dtype == "F32" else GRAPH) for spec in held)
    _check_memory(source, int(needed), f"convert it on a machine that has more, or {otherwise}")


def _weights(spec: TensorSpec) -> int:
    return spec.size * PACKED.get(spec.dtype, 1)


def _width(spec: TensorSpec) -> int:
    return WIDE if spec.dtype == "F32" else NARROW


def _check_disk(source: Path, out: Path, needed: int) -> None:
    free = free_space(out)
    if needed > free:
        raise OutputError(
            f"{out}: to convert {source} takes about {needed / 1e6:,.0f} MB there, and {free / 1e6:,.0f} MB are free; free some, "
            "or name another place"
        )


def _check_memory(source: Path, needed: int, mend: str) -> None:
    there = memory_within()
    if needed > there:
        told = f"about {needed / 1e6:,.0f} MB of memory, and this machine has {there / 1e6:,.0f}"
        raise CheckpointError(f"{source}: to convert it takes {told}; {mend}")

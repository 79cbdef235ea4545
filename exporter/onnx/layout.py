"""Which data file has which initializer, and where: one beside model.onnx, or several of at most so many bytes.

::

    model.onnx.data, model.onnx.data.1, model.onnx.data.2 ...

The graph names the file of each initializer, so a runtime opens what it is told; none is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.file_size import at_least
from exporter.onnx.tensors import Planned
from quantize.errors import ExportError, asked
from quantize.onnx.data import Place
from quantize.onnx.template import aligned, data_file

MAX_FILES = 400  # a runtime maps them all, and many systems let a process open 1,024 files


@dataclass(frozen=True)
class Layout:
    """``places`` of initializers by name; ``sizes`` of the files in bytes, by theirs, in their order."""

    places: Mapping[str, Place]
    sizes: Mapping[str, int]


def lay_out(planned: Sequence[Planned], most: int | None, where: str) -> Layout:
    """One after another, a new file where the next would make one larger than ``most``.

    Raises ExportError for an initializer that no such file holds, and where there would be too many.
    """
    largest = max(planned, key=lambda tensor: tensor.nbytes)
    if most is not None and largest.nbytes > most:
        raise too_large(f"{largest.name} takes {largest.nbytes:,} bytes", largest.nbytes, most, where)
    places, sizes = dict[str, Place](), {data_file(0): 0}
    for tensor in planned:
        name, end = next(reversed(sizes.items()))
        start = aligned(end, tensor.nbytes)
        if most is not None and start + tensor.nbytes > most:
            name, start = data_file(len(sizes)), 0
        places[tensor.name] = Place(name, start, tensor.nbytes)
        sizes[name] = start + tensor.nbytes
    if len(sizes) > MAX_FILES:
        raise ExportError(f"{where}: {len(sizes):,} files, more than {MAX_FILES}; ask for a larger {asked('split_size')}")
    return Layout(places, sizes)


def too_large(what: str, least: int, most: int, where: str) -> ExportError:
    """To be raised for ``what`` takes ``least`` bytes of a file of at most ``most``."""
    told = f"{what}, more than a file of {most:,}, and is not cut"
    return ExportError(f"{where}: {told}; ask for {asked('split_size')} of at least {at_least(least)}")

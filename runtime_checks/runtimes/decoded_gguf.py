"""A GGUF whose tensors are what the reference decodes, all in float32: what llama.cpp makes of that, no kernel of a block had a
part in."""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType

from exporter.inspect import read_gguf_files
from quantize.gguf.container import TensorInfo, alignment_of, encode_header, padded
from quantize.types import F32
from runtime_checks.reference.gguf import GgufTensor, decode_gguf
from runtime_checks.runtimes.runners import LlamaRunner, Runner
from runtime_checks.runtimes.weights import open_gguf, row_chunks


def write_decoded(path: Path, out: Path) -> None:
    """The file at ``path`` in float32. Raises FileFormatError, OSError."""
    metadata, tensors = read_gguf_files(path).metadata, open_gguf(path).tensors
    alignment, offset, infos = alignment_of(metadata), 0, list[TensorInfo]()
    for name, tensor in tensors.items():
        info = TensorInfo(name, GGMLQuantizationType.F32, tensor.shape, offset)
        infos.append(info)
        offset += padded(info.nbytes, alignment)
    with out.open("wb") as file:
        file.write(encode_header(metadata, infos))
        for info, tensor in zip(infos, tensors.values(), strict=True):
            for rows in row_chunks(len(tensor.data), tensor.shape[-1]):
                file.write(_decoded(tensor, rows).tobytes())
            file.write(bytes(padded(info.nbytes, alignment) - info.nbytes))


def _decoded(tensor: GgufTensor, rows: slice) -> F32:
    return decode_gguf(tensor.rows(rows.start, rows.stop))


def exactly(path: Path, context: int) -> Runner:
    """A GGUF in llama.cpp, as exactly as it runs."""
    return LlamaRunner(path, context, exact=True)

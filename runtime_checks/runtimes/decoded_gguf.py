"""A GGUF whose tensors are what the reference decodes, all in float32: what llama.cpp makes of that, no kernel of a block had a
part in."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from gguf import GGMLQuantizationType

from exporter.inspect import read_gguf_files
from quantize.gguf.container import TensorInfo, alignment_of, encode_header, padded
from quantize.types import F32, I64
from runtime_checks.reference.gguf import GgufTensor, decode_gguf
from runtime_checks.runtimes.isolated import IsolatedRunner
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


class DecodedRunner:
    """Such a file in llama.cpp, as exactly as it runs; it is gone with ``close``. Raises FileFormatError."""

    name = "llama.cpp (decoded)"

    def __init__(self, path: Path, context: int) -> None:
        self._folder = TemporaryDirectory()
        decoded = Path(self._folder.name) / "decoded.gguf"
        write_decoded(path, decoded)
        self._runner = IsolatedRunner(decoded, context, exactly)

    def logits(self, tokens: I64, skip: int = 0) -> F32:
        """See Runner."""
        return self._runner.logits(tokens, skip)

    def greedy(self, tokens: I64, count: int) -> list[int]:
        """See Runner."""
        return self._runner.greedy(tokens, count)

    def speed(self, count: int) -> float:
        """See Runner."""
        return self._runner.speed(count)

    def close(self) -> None:
        """See Runner."""
        self._runner.close()
        self._folder.cleanup()

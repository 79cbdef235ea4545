"""A GGUF of any architecture as a source and its own template: what is not quantized goes into the new file as it is.

No decoder is known here by name. llama.cpp runs the file, which tells what it multiplies: these matrices are quantized, if they
lie in a block. All others stay floats, and why is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from quantize.checkpoint.gguf_sizes import sizes_from_gguf
from quantize.checkpoint.gguf_tensors import GgufTensors
from quantize.checkpoint.gguf_values import GgufValues
from quantize.checkpoint.template import OUTSIDE, ROUTER, TOGETHER, UNSEEN, Template
from quantize.errors import CheckpointError
from quantize.gguf.container import TensorInfo
from quantize.gguf.files import GgufFiles
from quantize.gguf.names import to_gguf_name, to_source_name
from quantize.llama_cpp.children import find_products, measure_moments, run_logits
from quantize.model_config import EMBEDDING, HEAD, block_index, is_linear
from quantize.moments import Moments, Product, Text
from quantize.types import F32, I64, TensorSpec

WHOLE = "F32"
KEPT = "float32 in a file of other types"


class GgufTemplate(GgufTensors, Template):
    """See ``Checkpoint``. Raises CheckpointError at once for a file without the sizes of a language model, and with ``specs`` for
    one that llama.cpp does not run."""

    runtime, writer = "llama.cpp", "gguf"

    def __init__(self, path: Path, files: GgufFiles, values: GgufValues, twin: Path | None = None) -> None:
        """``twin``: the same model as a folder that torch runs."""
        self.twin = twin
        super().__init__(path, files, values, _by_name(files.tensors, str(path)))
        values.check_tokenizer()
        embedding = self._infos.get(EMBEDDING)
        self.config = sizes_from_gguf(values, 0 if embedding is None else embedding.shape[0], str(path))
        if embedding is None or embedding.shape[1:] != (self.config.hidden_size,):
            raise CheckpointError(
                f"{path}: {to_gguf_name(EMBEDDING)} is missing or not {self.config.hidden_size} wide; download it again"
            )
        self.tied = HEAD not in self._infos

    @property
    def is_split(self) -> bool:
        """Whether it lies in several files."""
        return len(self._files.paths) > 1

    @cached_property
    def products(self) -> list[Product]:
        """What llama.cpp multiplies, by this source's names, in its order."""
        found = find_products(self.path, self._files.tensors)
        return [product._replace(weight=to_source_name(product.weight)) for product in found]

    @property
    def read_by_torch(self) -> bool:
        """See Template."""
        return not self.is_split

    @property
    def has_experts(self) -> bool:
        """See Template."""
        return any(product.experts for product in self.products)

    @property
    def hides_experts(self) -> bool:
        """No: llama.cpp multiplies by those that a token is sent to."""
        return False

    def logits(self, tokens: I64) -> F32:
        """See Template."""
        return run_logits(self.path, tokens)

    def measure(self, text: Text, products: Sequence[Product], folder: Path) -> dict[int, Moments]:
        """See Template."""
        in_file = [product._replace(weight=to_gguf_name(product.weight)) for product in products]
        return measure_moments(self.path, text, in_file, folder)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor in the file's order; what stays floats has its reason."""
        experts, common = self._metadata.get(f"{self.config.model_type}.expert_count", 0), self._common_type()
        products = {product.weight: product for product in self.products}

        def kept(name: str, info: TensorInfo) -> str:
            if len(info.shape) == 1 or name in (EMBEDDING, HEAD):
                return ""
            if block_index(name) is None:
                return OUTSIDE
            product = products.get(name)
            if product is None:
                return UNSEEN
            if not is_linear(name, info.shape) or (len(info.shape) == 3) != (product.experts > 0):
                return TOGETHER
            if experts and info.shape[0] == experts and len(info.shape) == 2:
                return ROUTER
            return KEPT if info.type.name == WHOLE != common else ""

        return {name: TensorSpec(name, info.type.name, info.shape, kept(name, info)) for name, info in self._infos.items()}

    def _common_type(self) -> str:
        """That of most weights of the blocks."""
        weights = dict[str, int]()
        for name, info in self._infos.items():
            if is_linear(name, info.shape):
                weights[info.type.name] = weights.get(info.type.name, 0) + info.nbytes
        return max(weights, key=lambda kind: weights[kind], default=WHOLE)


def _by_name(tensors: Mapping[str, TensorInfo], where: str) -> dict[str, TensorInfo]:
    """Raises CheckpointError for two that would have one name."""
    out = dict[str, TensorInfo]()
    for stored, info in tensors.items():
        name = to_source_name(stored)
        if name in out or to_gguf_name(name) != stored:
            raise CheckpointError(f"{where}: tensor {stored} cannot be told from {to_gguf_name(name)}; use another file")
        out[name] = info
    return out

"""A float ONNX folder of any architecture as a source and its own template: see ``quantize.onnx.template``.

No decoder is known here by name. The graph says what is multiplied: these matrices are quantized, if they lie in a block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, numpy_helper

from quantize.checkpoint.floats import FLOATS, check_finite, to_f32
from quantize.checkpoint.huggingface import read_assets
from quantize.checkpoint.shards import files_digest
from quantize.checkpoint.template import BIASES, OUTSIDE, ROUTER, SKELETON_ASSET, TOGETHER, UNSEEN, Template
from quantize.child import Child, ChildEnded
from quantize.errors import CheckpointError, FileFormatError, shown
from quantize.model_config import EMBEDDING, HEAD, block_index, with_ids_of
from quantize.moments import Moments, Product, Text, measure_in
from quantize.onnx.moe import experts_of
from quantize.onnx.reader import MODEL_FILE, OnnxGraph, read_graph
from quantize.onnx.template import ASSETS, DATA_FILE, DTYPES, Facts, facts_of, is_weight, is_whole, site, skeleton_of
from quantize.onnx.watched import WatchedGraph, run_logits
from quantize.outside import Door
from quantize.types import F32, I64, Array, PlainTensor, TensorSpec

CHOOSING, TOGETHER_OPS = "TopK", ("MoE", "QMoE")  # these read scores second
ENDING = (
    "MatMul",
    "Attention",
    "GroupQueryAttention",
    "MultiHeadAttention",
    "Add",
    *TOGETHER_OPS,
)  # behind which another thing begins
AGAIN = "; export it again"  # what a reader of files of ours advises, and is no use here
MEND = "; make it again: adadim convert DIR --format onnx"
FILE = Door(CheckpointError, "make it again: adadim convert DIR --format onnx")


class OnnxTemplate(Template):
    """See ``Checkpoint``. ``facts``: what it says of itself. Raises CheckpointError at once for a folder that ``adadim convert``
    did not write."""

    runtime, writer = "onnxruntime", "onnx"
    read_by_torch = False

    def __init__(self, path: Path, twin: Path | None = None) -> None:
        self.path, self.twin = path, twin
        with _speaking_of(path):
            self._graph: OnnxGraph = read_graph(path)
        facts = facts_of(self._graph.model, path)
        if facts is None:
            raise CheckpointError(f"{path}: its graph was not written as a source{MEND}")
        self.facts: Facts = facts
        self._stored = {name: tensor for name, tensor in self._graph.initializers.items() if is_weight(tensor)}
        self._check()
        rows = self._stored[EMBEDDING].dims[0]
        raw = with_ids_of(FILE.load(path / ASSETS / "config.json", dict[str, Any]), rows)
        self.config = facts.sizes(rows, raw)
        self.tied = HEAD not in self._stored

    def _check(self) -> None:
        """Raises CheckpointError for what is no template of a language model, whatever else it is."""
        hidden, layers = self.facts.hidden_size, self.facts.num_layers
        tables = {name: list(self._stored[name].dims) for name in (EMBEDDING, HEAD) if name in self._stored}
        if EMBEDDING not in tables:
            raise CheckpointError(f"{self.path}: {EMBEDDING} is missing{MEND}")
        for name, dims in tables.items():
            if len(dims) != 2 or dims != [tables[EMBEDDING][0], hidden]:
                raise CheckpointError(f"{self.path}: {name} is {dims}, where rows of {hidden} channels should be{MEND}")
        empty = next((name for name, tensor in self._stored.items() if not tensor.dims or 0 in tensor.dims), None)
        outside = next((place.location for place in self._graph.places.values() if place.location != DATA_FILE), None)
        held = {index for name in self._stored if (index := block_index(name)) is not None}
        if empty is not None:
            raise CheckpointError(f"{self.path}: {empty} holds nothing{MEND}")
        if outside is not None:
            raise CheckpointError(f"{self.path}: weights lie in {shown(outside)}, not in {DATA_FILE}{MEND}")
        if held != set(range(layers)):
            raise CheckpointError(f"{self.path}: has weights of {len(held)} decoder blocks, where {layers} are said to be{MEND}")

    @cached_property
    def products(self) -> Sequence[Product]:
        """See Template."""
        turned = {node.output[0]: node.name for node in self._graph.model.graph.node if node.op_type == "Transpose"}
        sites, found = dict[str, int](), list[Product]()
        for node in self._graph.model.graph.node:
            if node.op_type == "MatMul" and node.input[1] in turned:
                name = f"{turned[node.input[1]].rpartition('/')[0]}.weight"
                if name in self._stored and len(self._stored[name].dims) == 2 and node.name == f"{site(name)}/MatMul":
                    found.append(Product(name, sites.setdefault(node.input[0], len(sites))))
        return found

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """See Template."""
        seen, together = {product.weight for product in self.products}, self._read_by(TOGETHER_OPS)
        partners = self._partners
        routers = {product.weight for product in self.products if self._routes(product.weight)}

        def kept(name: str, shape: tuple[int, ...]) -> str:
            if len(shape) == 1 or name in (EMBEDDING, HEAD):
                return ""
            if block_index(name) is None:
                return OUTSIDE
            if name not in seen:
                return "" if name in partners else UNSEEN if name not in together else BIASES if len(shape) < 3 else TOGETHER
            return ROUTER if name in routers else ""

        shapes = {name: tuple(tensor.dims) for name, tensor in self._stored.items()}
        kinds = {name: DTYPES[tensor.data_type] for name, tensor in self._stored.items()}
        return {
            name: TensorSpec(name, kinds[name], shape, kept(name, shape), partners.get(name, ""))
            for name, shape in shapes.items()
        }

    @cached_property
    def _partners(self) -> dict[str, str]:
        """Stacks that one node multiplies by, which takes codes of both or of neither."""
        found = [stacks for node in self.skeleton.graph.node if (stacks := self._stacks(node)) is not None]
        return {one: other for up, down in found for one, other in ((up, down), (down, up))}

    def _stacks(self, node: NodeProto) -> tuple[str, str] | None:
        experts = experts_of(node)
        if experts is None or not all(self._is_stack(name) for name in experts.stacks):
            return None
        return experts.stacks

    def _is_stack(self, name: str) -> bool:
        """Of one node's own, in a block."""
        stored = self._stored.get(name)
        return stored is not None and len(stored.dims) == 3 and len(self._readers(name)) == 1 and block_index(name) is not None

    def _read_by(self, kinds: Collection[str]) -> set[str]:
        return {name for node in self._graph.model.graph.node if node.op_type in kinds for name in node.input}

    def _routes(self, name: str) -> bool:
        """Whether what comes of it is chosen from: no further product, and the largest of them are taken."""
        waiting, seen = [node.output[0] for node in self._readers(f"{site(name)}.transposed")], set[str]()
        while waiting:
            value = waiting.pop()
            for node in self._readers(value):
                if node.op_type == CHOOSING or (node.op_type in TOGETHER_OPS and node.input[1] == value):
                    return True
                if not self._ends(node) and node.output and node.output[0] not in seen:
                    seen.update(node.output)
                    waiting += node.output
        return False

    def _ends(self, node: NodeProto) -> bool:
        """Whether another thing begins behind it; not where a bias is added."""
        return node.op_type in ENDING and not (node.op_type == "Add" and any(name in self._stored for name in node.input))

    def _readers(self, value: str) -> list[NodeProto]:
        return self._by_input.get(value, [])

    @cached_property
    def _by_input(self) -> dict[str, list[NodeProto]]:
        out: dict[str, list[NodeProto]] = {}
        for node in self._graph.model.graph.node:
            for name in dict.fromkeys(node.input):
                out.setdefault(name, []).append(node)
        return out

    @property
    def has_experts(self) -> bool:
        """See Template."""
        return self.facts.experts > 0

    @property
    def hides_experts(self) -> bool:
        """See Template."""
        return self.has_experts

    def logits(self, tokens: I64) -> F32:
        """See Template."""
        with self._running() as child:
            return child.call(run_logits, self.path, tokens)

    def measure(self, text: Text, products: Sequence[Product], folder: Path) -> dict[int, Moments]:
        """See Template."""
        with self._running() as child:
            return measure_in(child, partial(WatchedGraph, self.path), products, text, folder)

    @contextmanager
    def _running(self) -> Iterator[Child]:
        try:
            with _speaking_of(self.path), Child() as child:
                yield child
        except ChildEnded as error:
            raise CheckpointError(f"{self.path}: onnxruntime {error}") from error

    @cached_property
    def sha256(self) -> str:
        """Digest of all that is read of the folder."""
        assets = (path for path in (self.path / ASSETS).rglob("*") if path.is_file())
        return files_digest({self.path / MODEL_FILE, self.path / DATA_FILE, *assets})

    @property
    def is_whole(self) -> bool:
        """Whether its data are those that it was written with."""
        return is_whole(self.path, self._graph.model)

    def read(self, name: str) -> F32:
        """See Checkpoint."""
        return self.read_rows(name, 0, self._stored[name].dims[0])

    def read_rows(self, name: str, start: int, stop: int) -> F32:
        """See Checkpoint."""
        dtype = DTYPES[self._stored[name].data_type]
        rows = self._values(name)[start:stop]
        check_finite(rows, dtype, name, str(self.path))
        return to_f32(rows, dtype)

    def raw(self, name: str) -> PlainTensor:
        """See Checkpoint."""
        dtype, values = DTYPES[self._stored[name].data_type], self._values(name)
        check_finite(values, dtype, name, str(self.path))
        return PlainTensor(name, values, dtype)

    def assets(self) -> dict[str, bytes]:
        """The Hugging Face folder's, and the graph without weights."""
        data = self.skeleton.SerializeToString(deterministic=True)
        return {**read_assets(self.path / ASSETS), SKELETON_ASSET: data}

    @cached_property
    def skeleton(self) -> ModelProto:
        """Its graph without weights; constants are in it."""
        model = skeleton_of(self._graph.model)
        for index, tensor in enumerate(model.graph.initializer):
            if tensor.name in self._graph.places:
                model.graph.initializer[index].CopyFrom(numpy_helper.from_array(self._graph.mapped(tensor.name), tensor.name))
        return model

    def _values(self, name: str) -> Array:
        dtype = FLOATS[DTYPES[self._stored[name].data_type]]
        return self._graph.mapped(name).view(dtype)


@contextmanager
def _speaking_of(path: Path) -> Iterator[None]:
    """What is wrong with a file is wrong with a source here. Raises CheckpointError."""
    try:
        yield
    except FileFormatError as error:
        raise CheckpointError(f"{str(error).removesuffix(AGAIN)}{MEND if str(path) in str(error) else ''}") from error

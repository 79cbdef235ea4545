"""One weight's nodes cut out of an exported graph, so that onnxruntime itself says what it decodes to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from exporter.onnx.library import LIBRARY
from quantize.errors import FileFormatError, listed, shown
from quantize.onnx.reader import read_graph
from quantize.onnx.session import open_session
from quantize.types import F32, Array
from runtime_checks.runtimes.onnx_runner import is_halved, set_accuracy_level

CHUNK_BYTES = 1 << 26  # of a linear's output per call
CHUNK_ROWS = 1 << 12  # of an embedding per call
Run = Callable[[dict[str, Array]], Array]  # what goes in by name, a batch of one -> what comes out for it


class OnnxParts:
    """The graph of an ONNX folder at accuracy level 0, ready to be cut: nodes of a weight are named ``<its name>/...``."""

    def __init__(self, folder: Path) -> None:
        read = read_graph(folder)
        self._folder, self._model, self._places, self._initializers = folder, read.model, read.places, read.initializers
        set_accuracy_level(self._model, 0)
        graph = self._model.graph
        self._sites: dict[str, list[int]] = defaultdict(list)
        self._readers: dict[str, list[int]] = defaultdict(list)
        self._constant_nodes: dict[str, int] = {}  # value made from initializers alone -> its node
        for index, node in enumerate(graph.node):
            self._sites[node.name.partition("/")[0]].append(index)
            for name in node.input:
                self._readers[name].append(index)
            if all(name in self._initializers or name in self._constant_nodes for name in node.input if name):
                self._constant_nodes.update(dict.fromkeys(node.output, index))
        self.halved = is_halved(self._model)
        self._kind = TensorProto.FLOAT16 if self.halved else TensorProto.FLOAT
        self._dtype = np.dtype(np.float16 if self.halved else np.float32)
        self._results = {value.name for value in graph.output}

    def has(self, name: str) -> bool:
        """Whether any node was made for the weight ``name``."""
        return _site(name) in self._sites

    def nodes_of(self, operator: str) -> set[str]:
        """Names of all nodes of that operator."""
        return {node.name for node in self._model.graph.node if node.op_type == operator}

    def sites_ending(self, ending: str) -> set[str]:
        """What stands before the roles in nodes' names, where it ends so."""
        return {site for site in self._sites if site.endswith(ending)}

    def unused(self) -> list[str]:
        """Initializers that no output of the model is made from."""
        needed = set(self._results)
        for node in reversed(self._model.graph.node):  # in topological order
            if not needed.isdisjoint(node.output):
                needed.update(node.input)
        return sorted(self._initializers.keys() - needed)

    def trailing_bytes(self) -> dict[str, int]:
        """How many bytes follow the last initializer, by name of the external file."""
        ends: dict[str, int] = {}
        for place in self._places.values():
            ends[place.location] = max(place.offset + place.length, ends.get(place.location, 0))
        return {name: (self._folder / name).stat().st_size - end for name, end in ends.items()}

    def linear(self, name: str, shape: tuple[int, ...], parts: Sequence[str] = ()) -> Iterator[tuple[int, Array]]:
        """What the weight's nodes make of an identity matrix: the weight of ``shape`` (OC, IC), transposed, some rows at a time.

        ``parts``: names whose nodes are cut out together, if not the weight's alone; then those that read some input channels
        take them from what comes in, and what is alone is given those that it reads. Yields (first input channel,
        [count, OC], F32, or F16 of a graph that computes in it). Raises FileFormatError if onnxruntime refuses the nodes.
        """
        session, given, wanted = self._cut([_site(part) for part in parts or [name]], self._kind, bool(parts))
        oc, ic = shape
        step = max(1, CHUNK_BYTES // (4 * oc))
        for start in range(0, ic, step):
            identity = np.eye(min(step, ic - start), ic, start, self._dtype)
            yield start, self._run(session, wanted, {given: identity[None]})

    def between(self, first: onnx.NodeProto, last: onnx.NodeProto, fused: bool = True) -> Callable[[F32], Array]:
        """What ``last`` makes of F32[n, IC] that goes into ``first``, with all nodes of both their sites. Not ``fused``: node by
        node, as the file has them. Raises FileFormatError."""
        sites = dict.fromkeys(node.name.rpartition("/")[0] for node in (first, last))
        mine = sorted(self._with_constants([index for site in sites for index in self._sites[site]]))
        nodes = [self._model.graph.node[index] for index in mine]
        held = {name for node in nodes for name in node.input} & self._initializers.keys()
        tensors = [self._initializers[name] for name in sorted(held)]
        session = self._session(nodes, {first.input[0]: self._kind}, last.output[0], tensors, fused)
        return lambda x: self._run(session, last.output[0], {first.input[0]: x[None]})

    def node(self, name: str) -> onnx.NodeProto:
        """By its whole name. Raises FileFormatError where there is none, or several."""
        found = [index for index in self._sites[name.partition("/")[0]] if self._model.graph.node[index].name == name]
        if len(found) != 1:
            raise FileFormatError(f"{self._folder}: {len(found)} nodes are called {shown(name)}; export it again")
        node: onnx.NodeProto = self._model.graph.node[found[0]]
        return node

    def embedding(self, name: str, vocabulary: int) -> Iterator[tuple[int, Array]]:
        """What the weight's nodes look up: (first token, [count, columns] as ``linear`` has them). Raises FileFormatError."""
        session, given, wanted = self._cut([_site(name)], TensorProto.INT64)
        for start in range(0, vocabulary, CHUNK_ROWS):
            ids = np.arange(start, min(start + CHUNK_ROWS, vocabulary), dtype=np.int64)
            yield start, self._run(session, wanted, {given: ids[None]})

    def reader(self, initializer: str) -> onnx.NodeProto:
        """The one node that reads it. Raises FileFormatError."""
        found = self._readers[initializer]
        if len(found) != 1:
            raise FileFormatError(f"{self._folder}: {shown(initializer)} is read by {len(found)} nodes; export it again")
        node: onnx.NodeProto = self._model.graph.node[found[0]]
        return node

    def alone(self, node: onnx.NodeProto, given: Sequence[str], more: Sequence[onnx.TensorProto]) -> Run:
        """Runs ``node``, whose first output is wanted, on float32 ``given``, the file's own constants and ``more``."""
        made = [self._constant_nodes[name] for name in node.input if name in self._constant_nodes]
        nodes = [*(self._model.graph.node[index] for index in sorted(self._with_constants(made))), node]
        held = {name for one in nodes for name in one.input} & self._initializers.keys()
        tensors = [*(self._initializers[name] for name in sorted(held)), *more]
        session = self._session(nodes, dict.fromkeys(given, TensorProto.FLOAT), node.output[0], tensors)
        return lambda feeds: self._run(session, node.output[0], feeds)

    def _run(self, session: ort.InferenceSession, wanted: str, feeds: dict[str, Array]) -> Array:
        """What comes out for the first of one. Raises FileFormatError if onnxruntime refuses, or gives something else."""
        try:
            (out,) = session.run([wanted], feeds)
        except Exception as error:  # onnxruntime's own exceptions share no base below Exception
            raise FileFormatError(f"{self._folder}: onnxruntime cannot run it ({shown(error)}); export it again") from error
        if not isinstance(out, np.ndarray) or out.ndim != 3 or len(out) != 1 or out.dtype != self._dtype:
            raise FileFormatError(f"{self._folder}: {shown(wanted)} is no row of {self._dtype} for each input; export it again")
        first: Array = out[0]
        return first

    def _cut(self, sites: Sequence[str], kind: int, gathers: bool = True) -> tuple[ort.InferenceSession, str, str]:
        """A session on the sites' nodes and whatever constants they need; the value they read and the one that others read.

        ``gathers``: with those that take the input channels of a part.
        """
        graph = self._model.graph
        chosen = [index for site in sites for index in self._sites[site] if gathers or not _takes(graph.node[index], site)]
        mine = sorted(self._with_constants(chosen))
        made = {name for index in mine for name in graph.node[index].output}
        read = {name for index in mine for name in graph.node[index].input if name} - made
        given = sorted(read - self._initializers.keys())
        outside = (name for name in made if name in self._results or not set(self._readers[name]) <= set(mine))
        wanted = sorted(name for name in outside if name not in self._constant_nodes)
        if len(given) != 1 or len(wanted) != 1:
            raise FileFormatError(
                f"{self._folder}: nodes {shown(sites[0])}/... read {listed(given)} and make {listed(wanted)}, "
                "expected one value each"
            )
        tensors = [self._initializers[name] for name in sorted(read & self._initializers.keys())]
        nodes = [graph.node[index] for index in mine]
        return self._session(nodes, {given[0]: kind}, wanted[0], tensors), given[0], wanted[0]

    def _session(
        self,
        nodes: Sequence[onnx.NodeProto],
        given: Mapping[str, int],
        wanted: str,
        tensors: Sequence[onnx.TensorProto],
        fused: bool = True,
    ) -> ort.InferenceSession:
        """``given``: types of the values that go in."""
        model = self._model
        part = helper.make_graph(
            nodes,
            "part",
            [helper.make_tensor_value_info(name, kind, None) for name, kind in given.items()],
            [helper.make_tensor_value_info(wanted, self._kind, None)],
            tensors,
        )
        small = helper.make_model(part, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version)
        return open_session(small, self._folder, LIBRARY, unrounded=True, fused=fused)

    def _with_constants(self, nodes: list[int]) -> set[int]:
        """These nodes, and those that make their inputs from initializers alone."""
        found, waiting = set[int](), list(nodes)
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                inputs = self._model.graph.node[index].input
                waiting += [self._constant_nodes[name] for name in inputs if name in self._constant_nodes]
        return found


def _takes(node: onnx.NodeProto, site: str) -> bool:
    """Whether it takes the input channels that a part reads."""
    return bool(node.op_type == "Gather" and node.input[-1] == f"{site}.weight.reads")


def _site(name: str) -> str:
    return name.removesuffix(".weight")

"""An exported ONNX folder in onnxruntime: prompt pass, greedy decoding, and the same graph at another accuracy level."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from exporter.onnx.genai_reader import read_head_size
from exporter.onnx.library import LIBRARY
from quantize.errors import FileFormatError, asked
from quantize.kinds import Wanted, mistaken
from quantize.onnx.reader import read_graph
from quantize.onnx.session import Decoder, States, open_session
from quantize.types import F32, I64

LEVEL = "accuracy_level"
SPEED_ROUNDS = 3


class OnnxRunner:
    """DIR/model.onnx on the CPU provider; ``accuracy_level`` overrides that of every node (0: activations stay float32).

    ``static``: whether inputs are rounded for which the file has scales; at a level of its own then node by node, as floats.
    Raises FileFormatError if the folder has no model or onnxruntime refuses it.
    """

    def __init__(self, folder: Path, accuracy_level: int | None = None, static: bool = True) -> None:
        self.name, self._folder = f"onnxruntime {ort.__version__}", folder
        model = load_graph(folder)  # which refuses what leads out of the folder, before the runtime reads it
        self._halved = is_halved(model)
        if accuracy_level is not None:
            set_accuracy_level(model, accuracy_level)
        if not static:
            leave_inputs(model)
        opened = model_path(folder) if accuracy_level is None else model
        alone = accuracy_level is not None and static and rounds_inputs(model)
        session = open_session(opened, folder, LIBRARY, unrounded=accuracy_level == 0, fused=not alone)
        self._decoder = Decoder(session, folder, lambda: head_size(folder))

    def logits(self, tokens: I64, skip: int = 0) -> F32:
        """F32[n - skip, vocab] for a prompt of I64[n] tokens, from an empty cache."""
        out, _ = self.step(tokens, len(tokens), self.empty())
        return out[skip:]

    def greedy(self, tokens: I64, count: int) -> list[int]:
        """The ``count`` most likely tokens that follow I64[n] ``tokens``, one at a time over the cache."""
        chosen: list[int] = []
        step, states = tokens, self.empty()
        for total in range(len(tokens), len(tokens) + count):
            out, states = self.step(step, total, states)
            chosen.append(int(out[-1].argmax()))
            step = np.array(chosen[-1:], np.int64)
        return chosen

    def speed(self, count: int) -> float:
        """Tokens per second of decoding ``count`` tokens, one at a time over the cache."""
        return greedy_speed(self.greedy, count)

    def close(self) -> None:
        """Give the session's memory back."""
        del self._decoder

    def empty(self) -> States:
        """What the model keeps before any token."""
        return self._decoder.empty()

    def step(self, tokens: I64, total: int, states: States) -> tuple[F32, States]:
        """See ``Decoder.step``. Raises FileFormatError also for activations that float16 does not hold."""
        out, grown = self._decoder.step(tokens, total, states)
        if self._halved and not np.isfinite(out).all():
            told = f"its activations overflow float16, after {total:,} tokens its logits are no numbers"
            raise FileFormatError(f"{self._folder}: {told}; export it without {asked('onnx_dtype')}")
        return out, grown


def greedy_speed(greedy: Callable[[I64, int], list[int]], count: int) -> float:
    """Tokens per second after a prompt of one token, so that every step decodes one: median of SPEED_ROUNDS after a warm-up."""
    prompt = np.zeros(1, np.int64)
    greedy(prompt, 1)
    times = []
    for _ in range(SPEED_ROUNDS):
        start = time.perf_counter()
        greedy(prompt, count)
        times.append(time.perf_counter() - start)
    return count / float(np.median(times))


def model_path(folder: Path) -> Path:
    """DIR/model.onnx. Raises FileFormatError if it is not there."""
    path = folder / "model.onnx"
    if not path.is_file():
        raise FileFormatError(mistaken(folder, Wanted.FILE))
    return path


def exported_context(folder: Path) -> int | None:
    """Positions for which the graph has rotary tables, or None if it has none. Raises FileFormatError."""
    tensors = load_graph(folder).graph.initializer
    tables = [tensor.dims[0] for tensor in tensors if tensor.name.endswith("cos_cache") and tensor.dims]
    return min(tables, default=None)


def head_size(folder: Path) -> int:
    """As genai_config.json says: graphs of genai's builder name it and do not count it. Raises FileFormatError."""
    return read_head_size(folder)


def load_graph(folder: Path) -> onnx.ModelProto:
    """The graph of DIR/model.onnx without its external data. Raises FileFormatError if it is damaged."""
    return read_graph(folder).model


def is_halved(model: onnx.ModelProto) -> bool:
    """Whether a graph computes in float16: its logits say so."""
    return any(value.name == "logits" and value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in model.graph.output)


def set_accuracy_level(model: onnx.ModelProto, level: int) -> None:
    """Set ``accuracy_level`` on every node that carries it; weights and shapes stay as they are."""
    nodes: Iterable[onnx.NodeProto] = [*model.graph.node, *(node for body in model.functions for node in body.node)]
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.name == LEVEL and not attribute.ref_attr_name:
            attribute.i = level


def rounds_inputs(model: onnx.ModelProto) -> bool:
    """Whether a graph has scales of its own for what its linears read."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def leave_inputs(model: onnx.ModelProto) -> None:
    """Let everything read what goes into a QuantizeLinear in place of what comes out of the DequantizeLinear behind it."""
    nodes = model.graph.node
    coded = {node.output[0]: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    plain = {
        node.output[0]: coded[node.input[0]] for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in coded
    }
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = plain.get(name, name)
    kept = [node for node in nodes if not {*node.output} & (coded.keys() | plain.keys())]
    del nodes[:]
    nodes.extend(kept)

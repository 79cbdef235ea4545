"""A float ONNX folder in onnxruntime whose products are watched: what its matrices are multiplied by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from onnx import TensorProto, helper

from quantize.moments import Seen
from quantize.onnx.reader import read_graph
from quantize.onnx.session import Decoder, open_session
from quantize.types import F32, I64


class WatchedGraph:
    """What goes into the product of each of ``wanted``, NAME.weight, comes out of the graph beside its logits. Raises
    FileFormatError."""

    def __init__(self, path: Path, length: int, wanted: list[str]) -> None:
        """``length``: of a sequence, which this runtime does not ask for."""
        model = read_graph(path).model
        inputs = {node.name: node.input[0] for node in model.graph.node if node.op_type == "MatMul"}
        self._inputs = {name: inputs[f"{name.removesuffix('.weight')}/MatMul"] for name in wanted}
        told = {value.name for value in model.graph.output}
        more = dict.fromkeys(value for value in self._inputs.values() if value not in told)
        model.graph.output.extend(helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in more)
        self._decoder = Decoder(open_session(model, path), path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._decoder

    def watch(self, tokens: I64, wanted: list[str], see: Callable[[Seen], None]) -> None:
        """See ``Watched``."""
        values = self._decoder.outputs(tokens, len(tokens), self._decoder.empty())
        for name in wanted:
            x: F32 = values[self._inputs[name]].numpy()
            see(Seen(name, np.reshape(x, (-1, 1, x.shape[-1]))))


def run_logits(path: Path, tokens: I64) -> F32:
    """What it predicts after each of I64[n] tokens, F32[n, vocab]. Raises FileFormatError."""
    return run_steps(path, tokens, len(tokens))


def run_steps(path: Path, tokens: I64, prompt: int) -> F32:
    """The same, the first ``prompt`` tokens together and the others one by one."""
    decoder = Decoder(open_session(read_graph(path).model, path), path)
    found, states = decoder.step(tokens[:prompt], len(tokens[:prompt]), decoder.empty())
    rows = [found]
    for total in range(prompt + 1, len(tokens) + 1):
        found, states = decoder.step(tokens[total - 1 : total], total, states)
        rows.append(found)
    return np.concatenate(rows)

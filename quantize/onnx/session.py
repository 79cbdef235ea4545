"""A decoder's graph in onnxruntime: tokens in, logits out, and what it keeps between two calls."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from quantize.errors import FileFormatError, listed, shown
from quantize.onnx.native_path import native_path
from quantize.types import F32, I64, Array

ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
GIVEN = "input_ids", "attention_mask", "position_ids"
UNROUNDED = "ORT_QMOE_CPU_QNBIT_GEMM", "fp32"  # else QMoE rounds activations to 8 bits at every accuracy level where codes have 8
PAST = re.compile(r"past[a-z_]*(?=\.)")
States = Mapping[str, ort.OrtValue]


class Decoder:
    """``folder``: in messages. ``head_size``: of a graph that has a name instead of a number there.

    Raises FileFormatError for a graph that does not give back what it keeps.
    """

    def __init__(self, session: ort.InferenceSession, folder: Path, head_size: Callable[[], int] | None = None) -> None:
        self._session, self._folder, self._head_size = session, folder, head_size
        self._inputs = {item.name: item for item in session.get_inputs()}
        self._outputs = [item.name for item in session.get_outputs()]
        self._states = {name: PAST.sub("present", name) for name in self._inputs if PAST.match(name)}
        missing = {"logits", *self._states.values()} - set(self._outputs)
        if missing:
            raise FileFormatError(f"{folder}: its graph has no output {listed(sorted(missing))}; export it again")

    def empty(self) -> States:
        """What it keeps before any token."""
        return {name: ort.OrtValue.ortvalue_from_numpy(self._empty(name)) for name in self._states}

    def _empty(self, name: str) -> Array:
        shape, kind = self._inputs[name].shape, self._inputs[name].type
        grows = len(shape) == 4 and not isinstance(shape[2], int)  # [batch, heads, tokens, head size]
        fixed = shape[1:2] if grows else shape[1:]
        if len(shape) < 2 or kind not in ELEMENTS or not all(isinstance(length, int) for length in fixed):
            raise FileFormatError(f"{self._folder}: {shown(name)} is {kind}{shown(shape)}, no cache; export it again")
        if not grows:
            return np.zeros((1, *fixed), ELEMENTS[kind])
        size = shape[3]
        if not isinstance(size, int):
            size = 0 if self._head_size is None else self._head_size()
        return np.zeros((1, shape[1], 0, size), ELEMENTS[kind])

    def step(self, tokens: I64, total: int, states: States) -> tuple[F32, States]:
        """Run I64[n] ``tokens``, the last of ``total``: logits F32[n, vocab], and what it keeps now. Raises FileFormatError."""
        values = self.outputs(tokens, total, states)
        logits = values["logits"].numpy()
        if logits.shape[:2] != (1, len(tokens)) or logits.ndim != 3:
            raise FileFormatError(f"{self._folder}: its logits are {logits.shape} for {len(tokens)} tokens; export it again")
        grown = {name: values[present] for name, present in self._states.items()}
        return logits[0].astype(np.float32, copy=False), grown

    def outputs(self, tokens: I64, total: int, states: States) -> dict[str, ort.OrtValue]:
        """All that comes out of it, by name. Raises FileFormatError."""
        arrays = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - len(tokens), total, dtype=np.int64)[None],
        }
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(arrays[name]) for name in GIVEN if name in self._inputs}
        try:
            results = self._session.run_with_ort_values(self._outputs, {**feeds, **states})
        except Exception as error:  # onnxruntime's own exceptions share no base below Exception
            raise FileFormatError(f"{self._folder}: onnxruntime cannot run it ({_line(error)}); export it again") from error
        return dict(zip(self._outputs, results, strict=True))


def open_session(
    model: Path | onnx.ModelProto, folder: Path, library: str = "", unrounded: bool = False, fused: bool = True
) -> ort.InferenceSession:
    """A CPU session on a file, or on a graph whose external data lies in ``folder``, with ``library`` if it lies there too.

    ``unrounded``: no kernel rounds activations that its accuracy level does not let it round. Not ``fused``: every node runs as
    it stands, so that integers are multiplied as the floats that they stand for. Raises FileFormatError.
    """
    options = ort.SessionOptions()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what is wrong comes as an exception
    # A DequantizeLinear that feeds a MatMul is fused at level 4 unless told otherwise; what the file says must decide.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    try:
        with native_path(folder) as where:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", where)
            source = str(Path(where) / model.name) if isinstance(model, Path) else model.SerializeToString()
            if library and (Path(where) / library).exists():
                options.register_custom_ops_library(str((Path(where) / library).absolute()))
            with _unrounded() if unrounded else nullcontext():
                return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base below Exception
        raise FileFormatError(f"{folder}: onnxruntime refuses it ({_line(error)}); export it again") from error


@contextmanager
def _unrounded() -> Iterator[None]:
    """A kernel asks for it when it is made, and knows no attribute for it."""
    key, value = UNROUNDED
    before = os.environ.get(key)
    os.environ[key] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _line(error: Exception) -> str:
    return shown((str(error).strip() or type(error).__name__).splitlines()[0])

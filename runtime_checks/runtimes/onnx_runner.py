"""An exported ONNX folder in onnxruntime: prompt pass, greedy decoding, and the same graph at another accuracy level."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from exporter.onnx.genai_reader import read_head_size
from exporter.onnx.library import LIBRARY
from quantize.errors import FileFormatError, listed, shown
from quantize.kinds import Wanted, mistaken
from quantize.onnx.native_path import native_path
from quantize.onnx.reader import read_graph
from quantize.types import F32, I64

ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
LEVEL = "accuracy_level"
SPEED_ROUNDS = 3


class OnnxRunner:
    """DIR/model.onnx on the CPU provider; ``accuracy_level`` overrides that of every node (0: activations stay float32).

    Raises FileFormatError if the folder has no model or onnxruntime refuses it.
    """

    def __init__(self, folder: Path, accuracy_level: int | None = None) -> None:
        self.name, self._folder = f"onnxruntime {ort.__version__}", folder
        model = load_graph(folder)  # which refuses what leads out of the folder, before the runtime reads it
        if accuracy_level is not None:
            set_accuracy_level(model, accuracy_level)
        self._session = open_session(model_path(folder) if accuracy_level is None else model, folder)
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        self._outputs = [item.name for item in self._session.get_outputs()]
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]
        missing = {"logits", *map(_present, self._past)} - set(self._outputs)
        if missing:
            raise FileFormatError(f"{folder}: its graph has no output {listed(sorted(missing))}; export it again")

    def logits(self, tokens: I64, skip: int = 0) -> F32:
        """F32[n - skip, vocab] for a prompt of I64[n] tokens, from an empty cache."""
        out, _ = self._step(tokens, len(tokens), self._empty_cache())
        return out[skip:]

    def greedy(self, tokens: I64, count: int) -> list[int]:
        """The ``count`` most likely tokens that follow I64[n] ``tokens``, one at a time over the cache."""
        chosen: list[int] = []
        step, cache = tokens, self._empty_cache()
        for total in range(len(tokens), len(tokens) + count):
            out, cache = self._step(step, total, cache)
            chosen.append(int(out[-1].argmax()))
            step = np.array(chosen[-1:], np.int64)
        return chosen

    def speed(self, count: int) -> float:
        """Tokens per second of decoding ``count`` tokens, one at a time over the cache."""
        return greedy_speed(self.greedy, count)

    def close(self) -> None:
        """Give the session's memory back."""
        del self._session

    def _empty_cache(self) -> dict[str, ort.OrtValue]:
        out = {}
        for name in self._past:
            shape, kind = self._inputs[name].shape, self._inputs[name].type
            if len(shape) != 4 or not isinstance(shape[1], int) or kind not in ELEMENTS:
                raise FileFormatError(f"{self._folder}: {shown(name)} is {kind}{shown(shape)}, no cache; export it again")
            heads, size = shape[1], shape[3] if isinstance(shape[3], int) else head_size(self._folder)
            out[name] = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, size), ELEMENTS[kind]))
        return out

    def _step(self, tokens: I64, total: int, cache: dict[str, ort.OrtValue]) -> tuple[F32, dict[str, ort.OrtValue]]:
        """Run ``tokens``, the last of ``total``; logits of those positions and the grown cache."""
        arrays = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - len(tokens), total, dtype=np.int64)[None],
        }
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in arrays.items() if name in self._inputs}
        try:
            results = self._session.run_with_ort_values(self._outputs, feeds | cache)
        except Exception as error:  # onnxruntime's own exceptions share no base below Exception
            raise FileFormatError(f"{self._folder}: onnxruntime cannot run it ({_line(error)}); export it again") from error
        values = dict(zip(self._outputs, results, strict=True))
        grown = {name: values[_present(name)] for name in self._past}
        logits = values["logits"].numpy()
        if logits.shape[:2] != (1, len(tokens)) or logits.ndim != 3:
            raise FileFormatError(f"{self._folder}: its logits are {logits.shape} for {len(tokens)} tokens; export it again")
        return logits[0].astype(np.float32, copy=False), grown


def _present(past: str) -> str:
    return past.replace("past_key_values", "present")


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


def set_accuracy_level(model: onnx.ModelProto, level: int) -> None:
    """Set ``accuracy_level`` on every node that carries it; weights and shapes stay as they are."""
    nodes: Iterable[onnx.NodeProto] = [*model.graph.node, *(node for body in model.functions for node in body.node)]
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.name == LEVEL and not attribute.ref_attr_name:
            attribute.i = level


def open_session(model: Path | onnx.ModelProto, folder: Path) -> ort.InferenceSession:
    """A CPU session on a file, or on a graph whose external data lies in ``folder``, with the library that lies there.

    Raises FileFormatError.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an exception
    # A DequantizeLinear that feeds a MatMul is fused at level 4 unless told otherwise; what the file says must decide.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    try:
        with native_path(folder) as where:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", where)
            source = str(Path(where) / model.name) if isinstance(model, Path) else model.SerializeToString()
            library = Path(where) / LIBRARY
            if library.exists():
                options.register_custom_ops_library(str(library.absolute()))
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base below Exception
        raise FileFormatError(f"{folder}: onnxruntime refuses it ({_line(error)}); export it again") from error


def _line(error: Exception) -> str:
    return shown((str(error).strip() or type(error).__name__).splitlines()[0])

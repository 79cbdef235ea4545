"""A GGUF in llama.cpp whose products are watched: which weights are multiplied, and by what.

``cb_eval`` is asked of every node of the graph before it is computed, and told of those that it wanted after. Inputs are read
where they lie: ``src`` of GGML_OP_MUL_MAT is (weight, x), of GGML_OP_MUL_MAT_ID (stack of weights, x, ids)::

    weight  ne [IC, OC]          x  ne [IC, tokens]
    stack   ne [IC, OC, experts] x  ne [IC, 1 or used, tokens]   ids  ne [used, tokens], i32
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection
from ctypes import c_bool, c_char, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.llama_cpp import library
from quantize.llama_cpp.library import ContextParams, ModelParams
from quantize.llama_cpp.model import BATCH_ROWS, LlamaModel
from quantize.moments import Product, Seen
from quantize.types import F32, I64

PRODUCT, BY_EXPERT = "MUL_MAT", "MUL_MAT_ID"


class Node(ctypes.Structure):
    """struct ggml_tensor."""

    _fields_ = (
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
        ("extra", c_void_p),
        ("padding", c_char * 8),
    )


Callback = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)


Tell = Callable[[Node], bool]  # whether anything after it is to be computed


class WatchedModel(LlamaModel):
    """A GGUF that llama.cpp runs as exactly as it can."""

    def __init__(self, path: Path, n_ctx: int, weights: Collection[str]) -> None:
        """``weights``: the names of the file's tensors. Raises FileFormatError if llama.cpp refuses the file."""
        self._weights = frozenset(weights)
        self._wanted = self._weights
        self._tell: Tell | None = None
        self._error: BaseException | None = None
        self._callback = Callback(self._asked)  # kept here, because llama.cpp keeps only its address
        super().__init__(path, n_ctx, exact=True)

    def __enter__(self) -> WatchedModel:
        return self

    def products(self, tokens: I64) -> list[Product]:
        """All of I64[n] tokens, in the order of their computation."""
        found, sites = dict[str, Product](), dict[int, int]()

        def tell(node: Node) -> bool:
            weight = _node(node.src[0])
            site = sites.setdefault(node.src[1], len(sites))
            experts = int(weight.ne[2]) if self._op(node) == BY_EXPERT else 0
            found.setdefault(name := weight.name.decode(), Product(name, site, experts))
            return True

        self._run(tokens, self._weights, tell)
        return list(found.values())

    def watch(self, tokens: I64, wanted: list[str], see: Callable[[Seen], None]) -> None:
        """Pass I64[n] from an empty cache; ``see`` is told of the products of ``wanted`` weights, after the last of which of a
        batch nothing more is computed."""
        last = wanted[-1]

        def tell(node: Node) -> bool:
            name = _node(node.src[0]).name.decode()
            see(Seen(name, *_inputs(node, self._op(node) == BY_EXPERT)))
            return bool(name != last)

        self._run(tokens, frozenset(wanted), tell)

    def _run(self, tokens: I64, wanted: frozenset[str], tell: Tell) -> None:
        self._wanted, self._tell, self._error = wanted, tell, None
        self._forget()
        for start in range(0, len(tokens), BATCH_ROWS):
            self._decode(tokens[start : start + BATCH_ROWS].astype(np.int32), start)  # an output each, or the last block has one
        self._tell = None
        if self._error is not None:
            raise self._error

    def _asked(self, address: int, before: bool, _: object) -> bool:
        """See ``cb_eval``. What is raised here would be lost in C."""
        if self._tell is None or self._error is not None:
            return not before
        try:
            node = _node(address)
            return self._wants(node) if before else self._tell(node)
        except BaseException as error:
            self._error = error
            return False

    def _wants(self, node: Node) -> bool:
        if self._op(node) not in (PRODUCT, BY_EXPERT):
            return False
        name: bytes = _node(node.src[0]).name
        return name.decode("utf-8", "replace") in self._wanted

    def _op(self, node: Node) -> str:
        return str(self._lib.ggml_op_name(node.op).decode())

    def _model_params(self) -> ModelParams:
        params = super()._model_params()
        params.use_extra_bufts = False  # weights as they lie in the file
        return params

    def _context_params(self, n_ctx: int, threads: int) -> ContextParams:
        params = super()._context_params(n_ctx, threads)
        params.cb_eval = ctypes.cast(self._callback, c_void_p)
        return params


def _node(address: int) -> Node:
    return Node.from_address(address)


def _inputs(node: Node, by_expert: bool) -> tuple[F32, NDArray[np.int32] | None]:
    x = _array(_node(node.src[1]), library.F32, np.float32)
    if not by_expert:
        return x.reshape(-1, 1, x.shape[-1]), None
    ids = _array(_node(node.src[2]), library.I32, np.int32)
    return x.reshape(-1, *x.shape[-2:]), ids.reshape(-1, ids.shape[-1])


def _array(node: Node, kind: int, dtype: Any) -> NDArray[Any]:  # noqa: ANN401
    """A tensor's numbers where they lie, outermost axis first."""
    if node.type != kind:
        raise ValueError(f"{node.name.decode('utf-8', 'replace')} is of ggml type {node.type}, expected {kind}")
    shape, strides = tuple(node.ne)[::-1], tuple(node.nb)[::-1]
    size = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    data = np.frombuffer((ctypes.c_char * size).from_address(node.data), np.uint8)
    return np.ndarray(shape, dtype, data, strides=strides)

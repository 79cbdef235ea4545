"""llama.cpp as a shared library: the C API that xllamacpp's extension module exports, bound with ctypes.

Structs are passed by value, so their layouts (llama.h of this very build) must be right to the byte. The wheel's
version and the defaults of every field are asserted at load: another build is refused, never miscomputed.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantize.errors import ConfigError

WHEEL_VERSION = "2026.10.11549"
LLAMA_VERSION = b"0.6.0-dev"
LEVEL_ERROR = 4  # enum ggml_log_level
F32, F16, I32 = 0, 1, 26  # enum ggml_type
NO_FLASH = 0  # enum llama_flash_attn_type


class ModelParams(ctypes.Structure):
    """struct llama_model_params."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


class ContextParams(ctypes.Structure):
    """struct llama_context_params."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("unnamed", c_void_p),  # eight zero bytes of this build, never set by us
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class Batch(ctypes.Structure):
    """struct llama_batch."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


class InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


# Every field that is not 0, false or NULL by default.
MODEL_DEFAULTS: dict[str, float] = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": True}
CONTEXT_DEFAULTS: dict[str, float] = (
    {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1, "type_k": F16, "type_v": F16}
    | dict.fromkeys(("n_threads", "n_threads_batch"), 4)
    | dict.fromkeys(("rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type"), -1)
    | dict.fromkeys(("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "defrag_thold"), -1.0)
    | dict.fromkeys(("offload_kqv", "no_perf", "op_offload", "swa_full"), True)
)
# Name -> (result, arguments); every pointer that we only hand back is a c_void_p.
PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_version": (c_char_p, ()),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_model_chat_template": (c_char_p, (c_void_p, c_char_p)),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
    "llama_free": (None, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_batch_init": (Batch, (c_int32, c_int32, c_int32)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits": (POINTER(c_float), (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_vocab_bos": (c_int32, (c_void_p,)),
    "llama_vocab_eos": (c_int32, (c_void_p,)),
    "llama_vocab_get_text": (c_char_p, (c_void_p, c_int32)),
    "llama_vocab_is_eog": (c_bool, (c_void_p, c_int32)),
    "llama_tokenize": (c_int32, (c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool)),
    "llama_detokenize": (c_int32, (c_void_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool)),
    "ggml_init": (c_void_p, (InitParams,)),
    "ggml_free": (None, (c_void_p,)),
    "ggml_tensor_overhead": (c_size_t, ()),
    "ggml_graph_overhead": (c_size_t, ()),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_nbytes": (c_size_t, (c_void_p,)),
    "ggml_get_data": (c_void_p, (c_void_p,)),
    "ggml_op_name": (c_char_p, (c_int,)),
    "ggml_out_prod": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_new_graph": (c_void_p, (c_void_p,)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_graph_compute_with_ctx": (c_int, (c_void_p, c_void_p, c_int)),
    "ggml_quantize_chunk": (c_size_t, (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
}

_LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_errors: list[str] = []


def _listen(level: int, text: bytes, _data: object) -> None:
    """Keep what llama.cpp calls an error, drop the rest."""
    if level == LEVEL_ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())


_LISTENER = _LogCallback(_listen)  # kept here, because llama.cpp keeps only its address


def last_words() -> str:
    """What llama.cpp complained about since the last call, as one line."""
    words = "; ".join(_errors)
    _errors.clear()
    return words


@cache
def library() -> ctypes.CDLL:
    """The loaded library, silent. Raises ConfigError if xllamacpp is missing or another version."""
    _require_wheel()
    spec = find_spec("xllamacpp")
    assert spec is not None and spec.origin is not None
    found = sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))
    assert len(found) == 1, f"xllamacpp {WHEEL_VERSION} has one extension module, found {found}"
    lib = ctypes.CDLL(str(found[0]))
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set.restype, lib.llama_log_set.argtypes = None, (_LogCallback, c_void_p)
    lib.llama_log_set(_LISTENER, None)
    assert lib.llama_version() == LLAMA_VERSION, f"llama.cpp {lib.llama_version()!r}, bound to {LLAMA_VERSION!r}"
    _require_defaults(lib.llama_model_default_params(), MODEL_DEFAULTS)
    _require_defaults(lib.llama_context_default_params(), CONTEXT_DEFAULTS)
    lib.llama_backend_init()
    return lib


def _require_wheel() -> None:
    try:
        installed = version("xllamacpp")
    except PackageNotFoundError:
        installed = "none"
    if installed != WHEEL_VERSION:
        wanted = f"pip install xllamacpp=={WHEEL_VERSION}"
        raise ConfigError(f"running GGUF files needs xllamacpp {WHEEL_VERSION}, installed is {installed}; run `{wanted}`")


def _require_defaults(params: ctypes.Structure, defaults: dict[str, float]) -> None:
    """A field with another default than llama.h's means that the layout above is not this build's."""
    for name, *_ in params._fields_:
        value, expected = getattr(params, name), defaults.get(name, 0)
        assert (value or 0) == expected, f"{type(params).__name__}.{name} is {value}, expected {expected}: another llama.cpp"

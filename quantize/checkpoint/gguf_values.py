"""A GGUF's metadata as Python values: decoded one by one when asked for, of the types and ranges that llama.cpp takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from quantize.errors import CheckpointError, shown
from quantize.gguf.container import Value, ValueType

TOKENIZER = "tokenizer.ggml."
U32, F32, BOOL, STRING = ValueType.U32, ValueType.F32, ValueType.BOOL, ValueType.STRING
# llama.cpp takes no other type for these keys (llama_model_loader::get_key). {} is the architecture.
TYPES: dict[str, ValueType] = {
    **dict.fromkeys(("general.architecture", "general.name", "general.type"), STRING),
    **dict.fromkeys(("tokenizer.chat_template", "{}.rope.scaling.type"), STRING),
    **dict.fromkeys(("general.file_type", "{}.vocab_size", "{}.context_length", "{}.embedding_length", "{}.block_count"), U32),
    **dict.fromkeys(("{}.expert_count", "{}.expert_used_count", "{}.attention.key_length", "{}.attention.value_length"), U32),
    **dict.fromkeys(("{}.rope.dimension_count", "{}.rope.scaling.original_context_length"), U32),
    **dict.fromkeys(("{}.attention.layer_norm_rms_epsilon", "{}.attention.layer_norm_epsilon", "{}.rope.freq_base"), F32),
    **dict.fromkeys(("{}.rope.scaling.factor", "{}.rope.scale_linear", "{}.rope.scaling.attn_factor"), F32),
    **dict.fromkeys((f"{TOKENIZER}model", f"{TOKENIZER}pre"), STRING),
    **dict.fromkeys((f"{TOKENIZER}add_{word}" for word in ("bos_token", "eos_token", "sep_token", "space_prefix")), BOOL),
}
ARRAYS = {"tokens": STRING, "merges": STRING, "scores": F32, "token_type": ValueType.I32}  # by tokenizer key: of what
PER_LAYER = ("{}.attention.head_count", "{}.attention.head_count_kv", "{}.feed_forward_length")  # a number, or one a layer
POSITIVE = ("{}.attention.layer_norm_rms_epsilon", "{}.attention.layer_norm_epsilon", "{}.rope.freq_base")
SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask")  # tokens that have an id in the metadata
TOKENIZER_MODELS = ("llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "no_vocab", "none")  # that llama.cpp has (llama-vocab.cpp)
NO_TOKEN = 2**32 - 1  # what some converters wrote for "no padding token"; llama.cpp passes over it


class GgufValues(Mapping[str, Any]):
    """Key -> value, as ``Value.decode`` gives it; a key's value is decoded when it is first asked for.

    Raises CheckpointError that names file and key: at once for types and ranges that llama.cpp or the decoders here refuse,
    later for text that is not UTF-8.
    """

    def __init__(self, metadata: Mapping[str, Value], where: str) -> None:
        self._raw, self._where, self._known = metadata, where, dict[str, Any]()
        self._check_type("general.architecture", STRING)
        arch = str(self.get("general.architecture", ""))
        for key, kind in TYPES.items():
            self._check_type(key.format(arch), kind)
        for key, kind in ARRAYS.items():
            self._check_array(f"{TOKENIZER}{key}", kind)
        for key in POSITIVE:
            self._check_positive(key.format(arch))
        for key in PER_LAYER:
            if key.format(arch) in self:
                self._check_per_layer(key.format(arch), self.get(f"{arch}.block_count"))
        self._check_tokens()

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401
        if key not in self._known:
            try:
                self._known[key] = self._raw[key].decode()
            except UnicodeDecodeError as error:
                raise self.wrong(f"metadata key {key} is not UTF-8 ({error.reason} at its byte {error.start})") from error
        return self._known[key]

    def __contains__(self, key: object) -> bool:
        return key in self._raw  # without decoding it

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def size(self, key: str, default: int | None = None) -> int:
        """A size of 1 or more; where a number for each layer is given, the one that all share. Raises CheckpointError."""
        if key not in self and default is not None:
            return default
        if key not in self:
            raise self.wrong(f"metadata key '{key}' is missing")
        held = np.atleast_1d(self[key])
        number = int(held[0])
        if (held != number).any():
            raise self.wrong(f"metadata key {key} differs from layer to layer, which no decoder here has")
        if number < 1:
            raise self.wrong(f"metadata key {key} is {number}; it must be positive")
        return number

    def per_layer(self, key: str) -> list[int]:
        """One number or one for each layer, of which at least one is positive; empty without the key. Raises CheckpointError."""
        held = [int(number) for number in np.atleast_1d(self[key])] if key in self else []
        if held and (min(held) < 0 or max(held) < 1):
            raise self.wrong(f"metadata key {key} is {min(held)}; it must be positive")
        return held

    def wrong(self, reason: str) -> CheckpointError:
        """The error that says so of this file."""
        return CheckpointError(f"{self._where}: {reason}; download it again")

    def check_tokenizer(self) -> None:
        """llama.cpp ends the process at two equal tokens, and refuses BPE without merges and a model that it does not have.

        Raises CheckpointError.
        """
        model = self.get(f"{TOKENIZER}model", "none")
        if model not in TOKENIZER_MODELS:
            raise self.wrong(f"metadata key {TOKENIZER}model is {shown(model)!r}; llama.cpp has {', '.join(TOKENIZER_MODELS)}")
        tokens = [token for token in self.get(f"{TOKENIZER}tokens", []) if token]  # it gives empty ones names of their own
        if len(set(tokens)) != len(tokens):
            twice = next(token for token, times in Counter(tokens).items() if times > 1)
            raise self.wrong(f"metadata key {TOKENIZER}tokens has two tokens {twice!r}")
        if model == "gpt2" and f"{TOKENIZER}merges" not in self:
            raise self.wrong(f"metadata key '{TOKENIZER}merges' is missing")

    def _check_type(self, key: str, kind: ValueType) -> None:
        value = self._raw.get(key)
        if value is not None and value.type is not kind:
            raise self.wrong(f"metadata key {key} is of type {value.described}, not {kind.name.lower()}")

    def _check_array(self, key: str, items: ValueType) -> None:
        value = self._raw.get(key)
        if value is not None and value.items is not items:
            raise self.wrong(f"metadata key {key} is of type {value.described}, not array of {items.name.lower()}")

    def _check_positive(self, key: str) -> None:
        if key in self and not 0 < self[key] < np.inf:
            raise self.wrong(f"metadata key {key} is {self[key]}; it must be a positive number")

    def _check_per_layer(self, key: str, layers: int | None) -> None:
        value = self._raw[key]
        if value.type is not U32 and value.items not in (U32, ValueType.I32):
            raise self.wrong(f"metadata key {key} is of type {value.described}, not u32 or an array of it")
        if value.items is None:
            return
        held = self[key]
        if len(held) != layers or len(held) == 0:
            raise self.wrong(f"metadata key {key} has {len(held)} entries for {layers} layers")

    def _check_tokens(self) -> None:
        """Arrays are as long as there are tokens, and special tokens are among them."""
        tokens = _length(self._raw.get(f"{TOKENIZER}tokens"))
        for key in ("scores", "token_type"):
            if (held := _length(self._raw.get(f"{TOKENIZER}{key}"))) not in (None, tokens):
                raise self.wrong(f"metadata key {TOKENIZER}{key} has {held} entries for {tokens} tokens")
        for word in SPECIAL:
            key = f"{TOKENIZER}{word}_token_id"
            self._check_type(key, U32)
            if key not in self or (word == "padding" and self[key] == NO_TOKEN):
                continue
            if tokens is not None and self[key] >= tokens:
                raise self.wrong(f"metadata key {key} is {self[key]}, and there are {tokens} tokens")


def _length(value: Value | None) -> int | None:
    return None if value is None else int.from_bytes(value.payload[4:12], "little")

"""What the project needs to know of a decoder, read from a Hugging Face ``config.json``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from quantize.errors import CheckpointError, shown
from quantize.outside import LARGEST, Door, Size
from quantize.rotary import Base, Rope, read_rope

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
BLOCK = re.compile(r"model\.layers\.(\d{1,6})\.")
PART = re.compile(r"(.+)\.part[1-9]\d{0,2}\.weight")

CONFIG = Door(CheckpointError, "compare it with the original model's config.json")
Epsilon = Annotated[float, msgspec.Meta(gt=1e-30, lt=1)]
Id = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]  # below 0: none
Given = msgspec.UnsetType


class _Json(msgspec.Struct, kw_only=True):
    """The keys that are read, but for those of the rotary embedding; what is left out is transformers' default of the family."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | Given | None = msgspec.UNSET
    head_dim: Size | Given | None = msgspec.UNSET
    vocab_size: Size
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-6
    max_position_embeddings: Size | Given = msgspec.UNSET
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = 4096
    use_sliding_window: bool | None = False
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    rope_theta: Base | Given = msgspec.UNSET
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    original_max_position_embeddings: Size | None = None
    bos_token_id: Id | None = None
    eos_token_id: Id | list[Id] | None = None
    pad_token_id: Id | None = None


@dataclass(frozen=True)
class _Family:
    """What transformers' config class takes where config.json has no such key (None: from the other sizes)."""

    max_position: int
    kv_heads: int | None = None
    head_dim: int | None = None
    biases: tuple[str, ...] = ()  # the keys for biases that it reads


_FAMILIES = {
    "llama": _Family(2048, biases=("attention_bias", "mlp_bias")),
    "mistral": _Family(131072, kv_heads=8),
    "qwen2": _Family(32768, kv_heads=32),
    "qwen3": _Family(32768, kv_heads=32, head_dim=128, biases=("attention_bias",)),
}
MODEL_TYPES = tuple(_FAMILIES)


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What is to be known of any language model.

    ``model_type``: config.json's word, or a GGUF's ``general.architecture``. ``window``: the longest distance that attention
    looks back in some layer, where a runtime has to know it. ``num_kv_heads`` of ``head_dim`` channels each have the values of
    every layer; 0 where that is not known, or differs. ``raw`` is the whole config.json, without ids that no row of the
    embedding has (-1 stands for none); of a GGUF without one the ids alone.
    """

    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    max_position: int
    window: int | None = None
    num_kv_heads: int = 0
    head_dim: int = 0
    raw: Mapping[str, Any]

    @property
    def context(self) -> int:
        """The longest text that runs as in the source where a runtime knows no window: inside it there is none."""
        return min(self.max_position, self.window or self.max_position)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelSizes):
    """Of a decoder that is known by name: all that its tensors and its graph follow from."""

    intermediate_size: int
    num_heads: int
    rms_norm_eps: float
    rope: Rope
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], where: str) -> ModelConfig:
        """Parse config.json; ``where`` names the file in errors. Raises CheckpointError."""
        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
            named = shown(model_type if not isinstance(model_type, str) else repr(model_type))
            raise CheckpointError(f"{where}: model_type {named} is not supported; supported: {', '.join(MODEL_TYPES)}")
        family, json = _FAMILIES[model_type], CONFIG.convert(raw, where, _Json)
        heads = json.num_attention_heads
        max_position = _first(json.max_position_embeddings, family.max_position) or family.max_position
        return cls(
            model_type=model_type,
            hidden_size=json.hidden_size,
            intermediate_size=json.intermediate_size,
            num_layers=json.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=_first(json.num_key_value_heads, family.kv_heads) or heads,
            head_dim=_first(json.head_dim, family.head_dim) or json.hidden_size // heads,
            vocab_size=json.vocab_size,
            rms_norm_eps=json.rms_norm_eps,
            rope=read_rope(raw, max_position, CONFIG, where),
            max_position=max_position,
            window=_window(json, model_type, where),
            attention_bias=json.attention_bias and "attention_bias" in family.biases,
            mlp_bias=json.mlp_bias and "mlp_bias" in family.biases,
            tie_word_embeddings=json.tie_word_embeddings,
            raw=with_ids_of(raw, json.vocab_size),
        )

    @property
    def sizes(self) -> dict[str, int | float]:
        """What the shapes and norms follow from, in the words of config.json, defaults filled in."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.rms_norm_eps,
        }


def named(config: ModelSizes, where: object = "this model") -> ModelConfig:
    """Of a decoder that is known by name. Raises CheckpointError for another; ``where``: the source, for messages."""
    if not isinstance(config, ModelConfig):
        raise CheckpointError(
            f"{where}: torch runs the families {', '.join(MODEL_TYPES)} here, not {shown(config.model_type)}; llama.cpp runs it"
        )
    return config


def _first(given: int | Given | None, default: int | None) -> int | None:
    return default if isinstance(given, Given) else given


def _window(json: _Json, model_type: str, where: str) -> int | None:
    size = json.sliding_window
    if model_type == "llama" or size is None or (model_type != "mistral" and not json.use_sliding_window):
        return None
    if size < 1:
        raise CONFIG.refused(where, f"sliding_window is {size}, which leaves nothing to attend to")
    if model_type == "mistral":
        return size
    kinds, layers = json.layer_types, json.num_hidden_layers
    if kinds is None:
        return size if layers > json.max_window_layers else None
    if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise CONFIG.refused(where, f"layer_types is {shown(kinds)}, which is no kind of attention for each of {layers} layers")
    return size if "sliding_attention" in kinds else None


def with_ids_of(raw: Mapping[str, Any], rows: int) -> Mapping[str, Any]:
    """``raw`` without ids that are no rows."""
    out = dict(raw)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = out.get(key)
        known = [token for token in (ids if isinstance(ids, list) else [ids]) if token is not None and 0 <= token < rows]
        if ids is not None and not known:
            del out[key]
        elif isinstance(ids, list):
            out[key] = known
    return out


def block_index(name: str) -> int | None:
    """Which decoder block a tensor belongs to; None for embedding, final norm and head."""
    found = BLOCK.match(name)
    return None if found is None else int(found[1])


def block_prefix(index: int) -> str:
    """Of the names of a decoder block's tensors."""
    return f"model.layers.{index}."


def part_name(weight: str, number: int) -> str:
    """Of what is stored beside a weight, from 1 on."""
    return f"{weight.removesuffix('.weight')}.part{number}.weight"


def weight_name(part: str) -> str:
    """The weight that a part is of; of what is no part its own name."""
    found = PART.fullmatch(part)
    return part if found is None else f"{found[1]}.weight"


def is_linear(name: str, shape: Collection[int]) -> bool:
    """Whether it is a matrix of a decoder block, or a stack of them, one for each expert, and no part of one."""
    return len(shape) in (2, 3) and block_index(name) is not None and weight_name(name) == name

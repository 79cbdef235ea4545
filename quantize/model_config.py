"""What the project needs to know of a decoder, read from a Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantize.errors import CheckpointError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
INPUT_SITES = {  # linears that see the same input, under the one whose input is captured
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
DEFAULT_WINDOW = 4096
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def is_linear(name: str) -> bool:
    """Whether ``name``, with or without ``.weight``, is a decoder layer's linear."""
    return name.removesuffix(".weight").endswith(LINEARS)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a Llama-like decoder; ``raw`` is the whole config.json."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position: int
    raw: Mapping[str, Any]

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], where: str) -> ModelConfig:
        """Parse config.json; ``where`` names the file in errors. Raises CheckpointError."""
        model_type = raw.get("model_type")
        if model_type not in MODEL_TYPES:
            raise CheckpointError(f"{where}: model_type {model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}")
        for key in ("rope_scaling", "rope_parameters"):
            if not isinstance(raw.get(key) or {}, Mapping):
                raise CheckpointError(f"{where}: {key} is {raw[key]!r}, not a JSON object; compare it with the original model's")
        try:
            heads = int(raw["num_attention_heads"])
            rope = raw.get("rope_parameters") or {}
            return cls(
                model_type=model_type,
                hidden_size=int(raw["hidden_size"]),
                intermediate_size=int(raw["intermediate_size"]),
                num_layers=int(raw["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or int(raw["hidden_size"]) // heads),
                vocab_size=int(raw["vocab_size"]),
                rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=float(raw.get("rope_theta") or rope.get("rope_theta") or 10000.0),
                max_position=int(raw.get("max_position_embeddings", 2048)),
                raw=raw,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: {error!r} is missing or not a number; is this a decoder's config.json?") from error

    @property
    def rope_scaling(self) -> Mapping[str, Any] | None:
        """The scaling that is asked for, or None; transformers 5 writes it in rope_parameters."""
        return None if self.rope_kind == "default" else _rope(self.raw)

    @property
    def rope_kind(self) -> str:
        """ "default", or the kind of ``rope_scaling``."""
        scaling = _rope(self.raw)
        return str(scaling.get("rope_type", scaling.get("type", "default")))

    @property
    def window(self) -> int | None:
        """The longest distance that attention looks back in some layer, or None; defaults are those of transformers."""
        size = self.raw.get("sliding_window", DEFAULT_WINDOW)
        if self.model_type == "mistral":
            return None if size is None else int(size)
        if self.model_type == "llama" or not self.raw.get("use_sliding_window", False) or size is None:
            return None
        kinds = self.raw.get("layer_types") or []
        slides = "sliding_attention" in kinds if kinds else self.num_layers > int(self.raw.get("max_window_layers", 28))
        return int(size) if slides else None

    @property
    def context(self) -> int:
        """The longest text that runs as in the source where a runtime knows no window: inside it there is none."""
        return min(self.max_position, self.window or self.max_position)

    def rotary_heads(self, name: str) -> int | None:
        """Number of heads whose rows llama.cpp's llama interleaves in this tensor (q and k, weight or bias), else None."""
        if self.model_type not in ("llama", "mistral"):
            return None
        return {"q_proj": self.num_heads, "k_proj": self.num_kv_heads}.get(name.split(".")[-2])


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return raw.get("rope_scaling") or raw.get("rope_parameters") or {}


def layer_index(name: str) -> int | None:
    """Which decoder layer a tensor belongs to; None for embedding, final norm and head."""
    return int(name.split(".", 3)[2]) if name.startswith("model.layers.") else None

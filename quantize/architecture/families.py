"""The families of decoders that are known by name: the one place that says what their tensors are called.

It checks headers, names tensors of files, and folds. Whoever runs the source or plans it finds what there is: linears are the
matrices of a decoder block (``is_linear``), and its own modules tell which share an input (``quantize.source.discover``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantize.model_config import EMBEDDING, HEAD, ModelConfig, ModelSizes, block_prefix

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
BLOCK_PARTS = (  # whatever of a block has weights, in some family
    "input_layernorm",
    *LINEARS[:4],
    "self_attn.q_norm",
    "self_attn.k_norm",
    "post_attention_layernorm",
    *LINEARS[4:],
)
FINAL_NORM = "model.norm.weight"
_INTERLEAVED = ("llama", "mistral")  # whose rotary pairs llama.cpp puts side by side


@dataclass(frozen=True)
class FoldSites:
    """Where a decoder block's inner channels may change their basis and leave its function as it is; names of weights.

    ``norms``: a norm's gain and the linears that read what it scales. ``up`` and ``gate`` make the hidden channels, in ``up``
    the block is linear; ``down`` reads them. ``value`` makes channels that ``output`` reads, once for each query head.
    """

    norms: Mapping[str, tuple[str, ...]]
    gate: str
    up: str
    down: str
    value: str
    output: str
    kv_heads: int
    head_dim: int

    @property
    def moved(self) -> frozenset[str]:
        """Whatever a change of basis may change."""
        read = (linear for linears in self.norms.values() for linear in linears)
        made = (bias_of(weight) for weight in (self.gate, self.up, self.value))
        return frozenset((*self.norms, *read, *made, self.down, self.output))


def fold_sites(config: ModelSizes, prefix: str) -> FoldSites | None:
    """Of the block ``model.layers.3.``; None where the decoder is not known by name."""
    if not isinstance(config, ModelConfig):
        return None
    q, k, v, o, gate, up, down = (f"{prefix}{linear}.weight" for linear in LINEARS)
    norms = {f"{prefix}input_layernorm.weight": (q, k, v), f"{prefix}post_attention_layernorm.weight": (gate, up)}
    return FoldSites(norms, gate, up, down, v, o, config.num_kv_heads, config.head_dim)


def bias_of(weight: str) -> str:
    """The name of what is added to its outputs, where there is any."""
    return weight.removesuffix("weight") + "bias"


def expected_shapes(config: ModelSizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the decoder in model order, an own head last; none where it is not known by name."""
    if not isinstance(config, ModelConfig):
        return {}
    hidden = config.hidden_size
    out: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        out |= {block_prefix(index) + name: shape for name, shape in _block_shapes(config).items()}
    return out | {FINAL_NORM: (hidden,), HEAD: (config.vocab_size, hidden)}


def _block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, ffn, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_rows, kv_rows = config.num_heads * head_dim, config.num_kv_heads * head_dim
    shapes = (
        (q_rows, hidden),
        (kv_rows, hidden),
        (kv_rows, hidden),
        (hidden, q_rows),
        (ffn, hidden),
        (ffn, hidden),
        (hidden, ffn),
    )
    out: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
    for name, shape in zip(LINEARS, shapes, strict=True):
        out[f"{name}.weight"] = shape
        if _has_bias(config, name):
            out[f"{name}.bias"] = shape[:1]
    if config.model_type == "qwen3":
        out |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    return out | {"post_attention_layernorm.weight": (hidden,)}


def _has_bias(config: ModelConfig, linear: str) -> bool:
    if config.model_type == "qwen2":
        return linear in LINEARS[:3]
    return config.attention_bias if linear.startswith("self_attn") else config.mlp_bias


def rotary_heads(config: ModelSizes, name: str) -> int | None:
    """Number of heads whose rows llama.cpp's llama interleaves in this tensor (q and k, weight or bias), else None."""
    if not isinstance(config, ModelConfig) or config.model_type not in _INTERLEAVED:
        return None
    return {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])

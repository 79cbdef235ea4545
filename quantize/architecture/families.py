"""The families of decoders that are known by name: the one place that says what their tensors are called.

It checks headers, names tensors of files, and folds. Whoever runs the source or plans it finds what there is: linears are the
matrices of a decoder block (``is_linear``), and its own modules tell which share an input (``quantize.source.discover``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

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


class Rows(NamedTuple):
    """So many rows of a weight, those of one part where several lie in it one after the other."""

    weight: str
    start: int
    stop: int

    @property
    def of(self) -> slice:
        """The index of these rows."""
        return slice(self.start, self.stop)


class Gated(NamedTuple):
    """An MLP: ``up`` and ``gate`` make the hidden channels, in ``up`` the block is linear; ``down`` reads them."""

    gate: Rows
    up: Rows
    down: str


class Values(NamedTuple):
    """``value`` makes channels that ``output`` reads, once for each query head."""

    value: Rows
    output: str
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class FoldSites:
    """Where a decoder block's inner channels may change their basis and leave its function as it is; names of weights.

    ``norms``: a norm's gain and the linears that read what it scales; the gain is what is stored and ``gain_offset`` more.
    """

    norms: Mapping[str, tuple[str, ...]]
    mlp: Gated
    values: Values | None
    gain_offset: float = 0.0

    @property
    def made(self) -> tuple[Rows, ...]:
        """What makes channels that may change."""
        return self.mlp.gate, self.mlp.up, *(() if self.values is None else (self.values.value,))

    @property
    def moved(self) -> frozenset[str]:
        """Whatever a change of basis may change."""
        read = (linear for linears in self.norms.values() for linear in linears)
        made = (name for rows in self.made for name in (rows.weight, bias_of(rows.weight)))
        output = () if self.values is None else (self.values.output,)
        return frozenset((*self.norms, *read, *made, self.mlp.down, *output))


@dataclass(frozen=True)
class _Layout:
    """The same by names within a block, those of a source. What lies in one weight has one name: gate and up are its halves,
    values its last rows."""

    norms: Mapping[str, tuple[str, ...]]
    gate: str = LINEARS[4]
    up: str = LINEARS[5]
    down: str = LINEARS[6]
    value: str = LINEARS[2]
    output: str = LINEARS[3]
    gain_offset: float = 0.0

    @property
    def names(self) -> set[str]:
        """All of them."""
        read = (linear for linears in self.norms.values() for linear in linears)
        return {*self.norms, *read, self.gate, self.up, self.down, self.value, self.output}

    def sites(self, config: ModelSizes, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> FoldSites:
        """Of the block ``model.layers.3.``."""

        def full(name: str) -> str:
            return f"{prefix}{name}.weight"

        norms = {full(norm): tuple(map(full, linears)) for norm, linears in self.norms.items()}
        rows = shapes[full(self.up)][0]
        hidden = rows // 2 if self.gate == self.up else rows
        gate, up = Rows(full(self.gate), 0, hidden), Rows(full(self.up), rows - hidden, rows)
        return FoldSites(norms, Gated(gate, up, full(self.down)), self._values(config, full, shapes), self.gain_offset)

    def _values(self, config: ModelSizes, full: Callable[[str], str], shapes: Mapping[str, tuple[int, ...]]) -> Values | None:
        rows, own = shapes[full(self.value)][0], config.num_kv_heads * config.head_dim
        if not own or shapes[full(self.output)][1] % own:
            return None
        return Values(Rows(full(self.value), rows - own, rows), full(self.output), config.num_kv_heads, config.head_dim)


_BEFORE_ATTENTION = {"input_layernorm": LINEARS[:3]}
_PRE_NORM = _Layout(_BEFORE_ATTENTION | {"post_attention_layernorm": LINEARS[4:6]})
_POST_NORM = _Layout({})
_GATE_UP = "mlp.gate_up_proj"
# By config.json's model_type or a GGUF's architecture: of several, the first whose names a block has.
_LAYOUTS: Mapping[str, tuple[_Layout, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma3"), (_PRE_NORM,)),
    "gemma3_text": (_Layout(_BEFORE_ATTENTION | {"pre_feedforward_layernorm": LINEARS[4:6]}, gain_offset=1.0),),
    "olmo2": (_POST_NORM,),
    "phi3": (
        _Layout(_BEFORE_ATTENTION | {"post_attention_layernorm": (_GATE_UP,)}, gate=_GATE_UP, up=_GATE_UP),
        _Layout({"input_layernorm": ("attn_qkv",), "post_attention_layernorm": (LINEARS[5],)}, gate=LINEARS[5], value="attn_qkv"),
    ),
}


def knows_folds(config: ModelSizes) -> bool:
    """Whether it is known where such a decoder's blocks may change their basis."""
    return config.model_type in _LAYOUTS


def fold_sites(config: ModelSizes, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> FoldSites | None:
    """Of the block ``model.layers.3.``, by the ``shapes`` of what it has; None where that is not known."""
    for layout in _LAYOUTS.get(config.model_type, ()):
        if all(f"{prefix}{name}.weight" in shapes for name in layout.names):
            return layout.sites(config, prefix, shapes)
    return None


def ends_mlp(name: str) -> bool:
    """Whether a weight reads the hidden channels of an MLP, as its name has it."""
    return name.endswith(f".{LINEARS[6]}.weight")


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

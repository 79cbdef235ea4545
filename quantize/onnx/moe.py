"""A layer of experts as one node, ``com.microsoft::MoE``: each token is computed by the experts that it is sent to alone.

Inputs: x, scores [tokens, experts], a stack [experts, OC, IC], biases [experts, OC], and the two of the way down; of gate and up
together rows lie in turn. onnxruntime's ``QMoE`` is the same over codes, if nothing else is asked of it.
"""

from __future__ import annotations

from typing import NamedTuple

from onnx import NodeProto

MOE, DOMAIN = "MoE", "com.microsoft"
KNOWN = {
    "k", "activation_type", "activation_alpha", "activation_beta", "swiglu_limit", "swiglu_fusion", "normalize_routing_weights",
    "use_sparse_mixer",
}  # fmt: skip
SWIGLU, INTERLEAVED = b"swiglu", 1


class Experts(NamedTuple):
    """Values that a MoE reads; a bias that it has not is ""."""

    x: str
    scores: str
    up: str
    up_bias: str
    down: str
    down_bias: str

    @property
    def stacks(self) -> tuple[str, str]:
        """Names of its two weights."""
        return self.up, self.down


def experts_of(node: NodeProto) -> Experts | None:
    """None for another node, and for one that no QMoE of codes computes on a CPU."""
    if node.op_type != MOE or node.domain != DOMAIN or any(node.input[6:]) or len(node.input) < 5:
        return None
    held = {item.name: item for item in node.attribute}
    mixed = "use_sparse_mixer" in held and held["use_sparse_mixer"].i != 0
    fused = held["swiglu_fusion"].i if "swiglu_fusion" in held else 0
    gated = "activation_type" in held and held["activation_type"].s == SWIGLU
    if set(held) - KNOWN or mixed or fused != (INTERLEAVED if gated else 0):
        return None
    return Experts(*(*node.input, "")[:6])


def normalizes(node: NodeProto) -> bool:
    """Whether what a token's experts count for is 1 together."""
    return any(item.name == "normalize_routing_weights" and item.i for item in node.attribute)

"""The rotary embedding that a config.json asks for: which of its keys count, and the frequencies that they give.

As transformers has it (``modeling_rope_utils.py``): a ``rope_scaling`` with something in it hides ``rope_parameters``; a key
inside hides the same key outside, but for ``original_max_position_embeddings``; keys that a kind does not read change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from quantize.errors import shown
from quantize.outside import Door, Positive, Size
from quantize.types import F32

Base = Annotated[float, msgspec.Meta(gt=1, lt=3.5e38)]
Scale = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
DEFAULT_THETA = 10000.0
BETAS = (32.0, 1.0)  # yarn's: fast, slow


class _Default(msgspec.Struct):
    rope_theta: Base | msgspec.UnsetType = msgspec.UNSET
    partial_rotary_factor: float | None = None


class _Linear(_Default, kw_only=True):
    factor: Positive


class _Llama3(_Linear, kw_only=True):
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Size | msgspec.UnsetType = msgspec.UNSET


class _Yarn(_Default, kw_only=True):
    factor: Positive | None
    original_max_position_embeddings: Size | msgspec.UnsetType = msgspec.UNSET
    attention_factor: Positive | None = None
    beta_fast: Scale | None = None
    beta_slow: Scale | None = None
    mscale: Scale | None = None
    mscale_all_dim: Scale | None = None
    truncate: bool | None = True


_KINDS: Mapping[str, type[_Default]] = {"default": _Default, "linear": _Linear, "llama3": _Llama3, "yarn": _Yarn}
ROPE_KEYS = {"rope_type", "type", "finetuned"}.union(*(kind.__struct_fields__ for kind in _KINDS.values()))


@dataclass(frozen=True)
class Rope:
    """``kind``: default, linear, llama3 or yarn; the rest are the kind's numbers by transformers' names, none left out."""

    kind: str = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    attention_factor: float = 1.0
    beta_fast: float = BETAS[0]
    beta_slow: float = BETAS[1]
    truncate: bool = True

    def frequencies(self, head_dim: int) -> F32:
        """F32[head_dim / 2]: radians by which a position turns each pair (transformers' ``ROPE_INIT_FUNCTIONS``)."""
        plain: F32 = (1.0 / (self.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim))).astype(np.float32)
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        if self.kind == "llama3":
            return self._llama3(plain)
        return self._yarn(plain, head_dim) if self.kind == "yarn" else plain

    def tables(self, head_dim: int, positions: int) -> tuple[F32, F32]:
        """F32[positions, head_dim / 2]: cosines and sines, times ``attention_factor``."""
        angles = np.outer(np.arange(positions, dtype=np.float32), self.frequencies(head_dim)).astype(np.float32)
        scale = np.float32(self.attention_factor)
        return np.cos(angles) * scale, np.sin(angles) * scale

    def _llama3(self, plain: F32) -> F32:
        longest = self.original_max_position_embeddings / self.low_freq_factor
        shortest = self.original_max_position_embeddings / self.high_freq_factor
        waves = 2 * math.pi / plain
        slow = np.where(waves > longest, plain / self.factor, plain)
        smooth = self.original_max_position_embeddings / waves - self.low_freq_factor
        smooth /= self.high_freq_factor - self.low_freq_factor
        between = ~(waves < shortest) & ~(waves > longest)
        mixed: F32 = np.where(between, (1 - smooth) * slow / self.factor + smooth * slow, slow).astype(np.float32)
        return mixed

    def _yarn(self, plain: F32, dim: int) -> F32:
        low, high = (self._ramp_end(turns, dim) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        high += 0.001 if low == high else 0
        kept = 1.0 - np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0.0, 1.0)
        mixed: F32 = (plain / self.factor * (1 - kept) + plain * kept).astype(np.float32)
        return mixed

    def _ramp_end(self, turns: float, dim: int) -> float:
        """The pair that turns so often over the original context."""
        return dim * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


def default_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """What yarn multiplies cosines and sines by where nothing else is said (arXiv 2309.00071, 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_settings(raw: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The key of config.json that counts, and what stands there; nothing checked."""
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    return key, raw.get(key) or {}


def read_rope(raw: Mapping[str, Any], max_position: int, door: Door, where: str) -> Rope:
    """The rotary embedding of ``raw``, its keys outside checked. Raises the door's error for one that is not computed here."""
    key, held = rope_settings(raw)
    kind = held.get("rope_type", held.get("type", "default"))
    place = f"{where}: {key}"
    if not isinstance(kind, str) or kind not in _KINDS:
        raise door.refused(where, f"rope scaling {shown(kind)!r} ({key}) is not supported; supported: {', '.join(_KINDS)}")
    unknown = [name for name, value in held.items() if name not in ROPE_KEYS and value is not None]
    if unknown:
        named = ", ".join(unknown[:3])
        raise door.refused(
            place, f"rope scaling {kind} with {shown(named)} is not supported, and leaving it out is another model"
        )
    values = door.convert(held, place, _KINDS[kind])
    theta = raw.get("rope_theta", DEFAULT_THETA) if values.rope_theta is msgspec.UNSET else values.rope_theta
    for factor in (raw.get("partial_rotary_factor"), values.partial_rotary_factor):
        if factor not in (None, 1):
            raise door.refused(where, f"partial_rotary_factor {factor!r} is not supported: whole heads are rotated here")
    inside = getattr(values, "original_max_position_embeddings", msgspec.UNSET)
    original = int(raw.get("original_max_position_embeddings") or (max_position if inside is msgspec.UNSET else inside))
    if isinstance(values, _Yarn):
        problem = _yarn_problem(values)
        if problem is not None:
            raise door.refused(place, problem)
        return _yarn(values, float(theta), original, max_position)
    if isinstance(values, _Llama3):
        low, high = values.low_freq_factor, values.high_freq_factor
        if high <= low:
            raise door.refused(place, f"high_freq_factor {high} is not above low_freq_factor {low}")
        return Rope(kind, float(theta), values.factor, low, high, original)
    return Rope(kind, float(theta), values.factor if isinstance(values, _Linear) else 1.0)


def _yarn_problem(values: _Yarn) -> str | None:
    fast, slow = values.beta_fast or BETAS[0], values.beta_slow or BETAS[1]
    return f"beta_fast {fast} is below beta_slow {slow}" if fast < slow else None


def _yarn(values: _Yarn, theta: float, original: int, max_position: int) -> Rope:
    factor = max_position / original if values.factor is None else values.factor
    attention = values.attention_factor
    if attention is None and values.mscale and values.mscale_all_dim:
        attention = default_attention_factor(factor, values.mscale) / default_attention_factor(factor, values.mscale_all_dim)
    return Rope(
        "yarn",
        theta,
        factor,
        original_max_position_embeddings=original,
        attention_factor=default_attention_factor(factor) if attention is None else attention,
        beta_fast=values.beta_fast or BETAS[0],
        beta_slow=values.beta_slow or BETAS[1],
        truncate=bool(values.truncate),
    )

"""How a linear of a file reads its input: turned or not, by parts with codes or in floats, and rounded as its node does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from quantize.activations import STATIC, Activation, Rounding
from quantize.activations.grids import Blocks
from quantize.types import F32
from quantize.weight import Index
from runtime_checks.reference.onnx_sum import OnnxWeight
from runtime_checks.reference.onnx_tensor import OnnxTensor
from runtime_checks.reference.onnx_turn import Turn

ROUNDING_LEVEL, ROUNDED_BITS = 4, 8  # what MatMulNBits reads, in blocks as long as its weights'


@dataclass(frozen=True, eq=False)
class CodedPart:
    """``channels`` intp[n]: of the input, that codes multiply; None: all. ``held``: what the part's node makes of them; None:
    that is not known here."""

    channels: Index | None = None
    held: Rounding | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """``parts``: those with codes; a linear without any counts as one. ``floats``: channels that floats multiply beside them.
    ``turn``: of the input first. ``static``: what rounds it by a scale that the file has."""

    parts: tuple[CodedPart, ...] = (CodedPart(),)
    floats: tuple[Index, ...] = ()
    turn: Turn | None = None
    static: Activation | None = None

    @property
    def told(self) -> bool:
        """Whether it is known what the file does to the input."""
        return all(part.held is not None for part in self.parts)

    def round(self, x: F32, rounding: Rounding | None = None) -> F32:
        """F32[..., IC] as the linear multiplies it, in its own basis: a turned input is turned back. Channels that floats
        multiply keep their bits, and are in no range of the others. ``rounding``: None: as the file does."""
        assert self.turn is None or not self.floats, "floats beside a turned weight read an input that is not turned"
        rows = x.reshape(-1, x.shape[-1])
        out = rows.copy() if self.turn is None else self.turn.apply(rows)
        for channels in self.floats:
            out[:, channels] = 0  # which every range holds
        for part in self.parts:
            own = rounding or part.held
            assert own is not None, "nothing says what the file does to its input"
            if part.channels is None:
                out = own(out)
            else:
                out[:, part.channels] = own(out[:, part.channels])
        out = out if self.turn is None else self.turn.back(out)
        for channels in self.floats:
            out[:, channels] = rows[:, channels]
        return out.reshape(x.shape)


def reading_of(weight: OnnxWeight) -> Reading:
    """Of a linear in an ONNX folder. Raises DamagedFileError."""
    inputs = weight.shape[1]
    coded, floats = list[CodedPart](), list[Index]()
    for part in weight.parts:
        channels = None if part.read_channels is None else part.channels(inputs)
        if part.read_floats is None:
            coded.append(CodedPart(channels, _held(part)))
        elif channels is not None:
            floats.append(channels)
    return Reading(tuple(coded) or (CodedPart(held=_as_it_is),), tuple(floats), weight.first.turn(), _static(weight.first))


def _held(part: OnnxTensor) -> Rounding | None:
    """What a part's node makes of its input."""
    static = _static(part)
    if static is not None:
        return static.round
    if part.form != "matmulnbits":
        return None
    if part.accuracy_level != ROUNDING_LEVEL:
        return _as_it_is
    return partial(Blocks(ROUNDED_BITS, part.codes(slice(0, 1)).group_size).round, params={})


def _static(part: OnnxTensor) -> Activation | None:
    held = part.input()
    return None if held is None else Activation(STATIC, float(held.scale), held.zero_point)


def _as_it_is(x: F32) -> F32:
    return x

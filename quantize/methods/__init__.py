"""METHODS: what quantizes a model, by the word before the axis in ``--method``; a system by its name alone.

A new one is one file and one row here. A block is taken through ``before``, then the steps up to rounding of each method that one
of its linears has, ``ChooseAxis``, those methods' other steps, and ``after``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from quantize.block import DividingStep, PlanStep, Step
from quantize.methods import (
    awq,
    cmpq,
    duquant,
    finequant,
    gptq,
    higgs,
    norm_tweaking,
    omniquant,
    outlier_suppression,
    outliertune,
    quik,
    rtn,
    search,
    smoothquant,
)
from quantize.methods.around import Around
from quantize.methods.method import Method
from quantize.rounding import Rounder
from quantize.steps.axis import ChooseAxis, ChooseByScope
from quantize.steps.columns import FloatColumns
from quantize.steps.fold import ChangeBasis, Correction
from quantize.steps.learn_codes import LearnCodes
from quantize.transforms import CORRECTIONS, TRANSFORMS
from quantize.types import Axis

MODULES = (
    *(rtn, search, gptq, finequant, norm_tweaking, omniquant, higgs, quik, cmpq),
    *(smoothquant, awq, outliertune, outlier_suppression, duquant),
)
METHODS: dict[str, Method] = {module.METHOD.name: module.METHOD for module in MODULES}
BY_WORD: Mapping[str, Rounder] = {"nearest": rtn.METHOD.rounder, "gptq": gptq.METHOD.rounder}  # of ``Around.rounder``
ROUNDERS = {name: method.rounder for name, method in METHODS.items()}
AXES = {"oc": (Axis.PER_OC,), "ic": (Axis.PER_IC,), "ada": (Axis.PER_OC, Axis.PER_IC)}
WORDS = tuple(
    word for name, method in METHODS.items() for word in ([name] if method.axes else [f"{name}-{axes}" for axes in AXES])
)


class Asked(NamedTuple):
    """A word of ``--method``, read."""

    method: Method
    axes: tuple[Axis, ...]

    @property
    def adaptive(self) -> bool:
        """Whether AdaDim chooses."""
        return len(self.axes) > 1


def read_word(word: str) -> Asked:
    """One of WORDS."""
    if word in METHODS:
        return Asked(METHODS[word], METHODS[word].axes)
    name, _, axes = word.partition("-")
    return Asked(METHODS[name], AXES[axes])


def word_of(method: Method, axes: tuple[Axis, ...]) -> str:
    """The inverse of ``read_word``."""
    if method.axes:
        return method.name
    return f"{method.name}-{next(word for word, known in AXES.items() if known == axes)}"


def method_of(name: str, around: Around) -> Method:
    """METHODS[name], which rounds as ``around`` says if it leaves that open."""
    method: Method = METHODS[name]
    if around.rounder is None or around.rounder not in method.rounders:
        return method
    return method.rounding_by(BY_WORD[around.rounder])


def rounders_of(around: Around) -> dict[str, Rounder]:
    """By the method's name."""
    return {name: method_of(name, around).rounder for name in METHODS}


def before(around: Around, keeps_columns: bool = False) -> list[Step]:
    """What comes before any method's own steps; ``keeps_columns``: whether some plan does, whatever ``around`` says."""
    steps: list[Step] = [ChangeBasis(name) for name in TRANSFORMS if name in around.transforms]
    steps += [FloatColumns()] if keeps_columns or around.float_columns else []
    return [*steps, ChooseByScope()] if around.by_scope else steps


def after(methods: Collection[str], around: Around) -> list[Step]:
    """What comes after the own steps of all these methods; steps of learning that one of them takes are not taken twice."""
    steps: list[Step] = [Correction(name) for name in CORRECTIONS if name in around.transforms]
    learns = around.block_steps and not any(METHODS[name].block_steps for name in methods)
    return [*steps, LearnCodes()] if learns else steps


def steps_of(methods: Collection[str], around: Around) -> list[Step | PlanStep | DividingStep]:
    """All that a block of linears of these methods may go through, and what was planned of them."""
    own = (step for name in methods for step in method_of(name, around).steps)
    return [*before(around), *own, ChooseAxis(), *after(methods, around)]


__all__ = [
    "AXES",
    "METHODS",
    "ROUNDERS",
    "WORDS",
    "Around",
    "Asked",
    "Method",
    "after",
    "before",
    "method_of",
    "read_word",
    "rounders_of",
    "steps_of",
    "word_of",
]

"""What options add to any method, for whoever asks what there is; by the option's Python name and the word that it takes."""

from __future__ import annotations

from typing import NamedTuple

from quantize.types import Need


class Extra(NamedTuple):
    """``word``: what ``option`` takes for it, or what it counts."""

    option: str
    word: str
    kind: str
    paper: str
    needs: Need


ADDED = (
    Extra("transforms", "norm-scales", "channels scaled into a norm", "after AWQ, arXiv 2306.00978", Need.HESSIAN),
    Extra("transforms", "ffn-scales", "channels scaled between up and down", "after AWQ, arXiv 2306.00978", Need.HESSIAN),
    Extra("transforms", "value-scales", "channels scaled between v and o", "after AWQ, arXiv 2306.00978", Need.HESSIAN),
    Extra("transforms", "ffn-order", "hidden channels in another order", "ours", Need.HESSIAN),
    Extra("transforms", "value-order", "channels of values in another order", "ours", Need.HESSIAN),
    Extra("transforms", "norm-gains", "gains of norms refitted after rounding", "arXiv 2309.02784, in closed form", Need.HESSIAN),
    Extra("float_columns", "N", "outlier input channels in float16", "QUIK, arXiv 2310.09259, its weights", Need.HESSIAN),
    Extra("rounder", "gptq", "another rounding in a system that leaves it open", "GPTQ, arXiv 2210.17323", Need.HESSIAN),
    Extra("selection", "scope", "axes by the output around a linear", "AdaDim, arXiv 2309.15531, 4.2", Need.BLOCK),
    Extra("block_steps", "N", "codes and scales learned block by block", "after SignRound, arXiv 2309.05516", Need.LEARNING),
    Extra("tune_steps", "N", "floats tuned by the whole model", "after EfficientQAT, arXiv 2407.11062", Need.MODEL),
)

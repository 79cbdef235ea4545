"""The data that tests run over: every grid, both axes, shapes that divide evenly and shapes that do not."""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from exporter.cli.spelling import quantize_config
from quantize.config import QuantizeConfig
from quantize.grids import make_grid
from quantize.grids.levels import Levels
from quantize.types import Axis, Grid, InputStats

INT_GRIDS = [
    make_grid("int", bits, group, symmetric)
    for bits, group, symmetric in [
        (2, 16, False),
        (3, 32, False),
        (4, 32, False),
        (4, 64, True),
        (8, 128, False),
        (4, 256, False),
    ]
] + [make_grid("int", 4, 32, False, "float32"), make_grid("int", 3, 64, True, "float32")]
MIN_MAX_GRIDS = INT_GRIDS + [
    make_grid(name, bits, 32) for name, bits in [("q4_0", 4), ("q4_1", 4), ("q5_0", 5), ("q5_1", 5), ("q8_0", 8)]
]
SEARCHED = [
    ("iq4_nl", 4, 32),
    ("q2_k", 2, 16),
    ("q3_k", 3, 16),
    ("q4_k", 4, 32),
    ("q5_k", 5, 32),
    ("q6_k", 6, 16),
    ("iq4_xs", 4, 32),
    ("tq2_0", 2, 256),
    ("mxfp4", 4, 32),
    ("iq2_xxs", 2, 32),
    ("iq2_xs", 2, 16),
    ("iq2_s", 2, 16),
    ("iq3_xxs", 3, 32),
    ("iq3_s", 3, 32),
]
LEVELS = [("lm2", 2, 32), ("lm3", 3, 64), ("lm4", 4, 256), ("hg2", 2, 256), ("hg3", 3, 32)]
LEVEL_GRIDS = [make_grid(name, bits, group) for name, bits, group in LEVELS]
LEVEL_GRIDS.append(Levels("levels", 2, ((-127, -20, 0, 90),), 32))  # a tensor's own
SEARCHED_GRIDS = [make_grid(name, bits, group) for name, bits, group in SEARCHED] + LEVEL_GRIDS  # even without importance
GRIDS = MIN_MAX_GRIDS + SEARCHED_GRIDS
AXES = list(Axis)
SHAPES = [(64, 96), (32, 32), (40, 50), (1, 33)]  # (OC, IC)


def config_of(method: str = QuantizeConfig.method, **options) -> QuantizeConfig:
    """A config by what its options are called on the command line, in Python's spelling."""
    config = quantize_config(Namespace(method=method, **options))
    assert options.keys() <= {*config.to_json(), "float_columns", "max_memory", "rounder"}, options
    return config


def grid_id(grid: Grid) -> str:
    """A readable pytest id."""
    symmetric = "-sym" if grid.name == "int" and grid.symmetric else ""
    return f"{grid.name}-{grid.bits}-g{grid.group_size}{symmetric}" + (
        "-f32" if getattr(grid, "scale_dtype", "") == "float32" else ""
    )


def grid_named(name: str) -> Grid:
    """The first in GRIDS of that name: of the int grids the coarsest."""
    return next(grid for grid in GRIDS if grid.name == name)


def weight_of(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Heavy-tailed weights with two outlier input channels."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(4, shape).astype(np.float32) * np.float32(0.05)
    weight[:, rng.integers(0, shape[1], 2)] *= 8
    return weight


def stats_of(channels: int, tokens: int = 512, seed: int = 1, rows: int | None = None) -> InputStats:
    """Second moments of correlated activations with one massive channel; weights for ``rows`` output channels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, channels)) @ (np.eye(channels) + 0.3 * rng.standard_normal((channels, channels)))
    x[:, channels // 3] *= 10
    row_weight = None if rows is None else rng.uniform(0.1, 10, rows).astype(np.float32)
    return InputStats((x.T @ x / tokens).astype(np.float32), tokens, row_weight)

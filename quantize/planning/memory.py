"""Whether the source fits into this machine's memory as often as was asked for, said before any work."""

from __future__ import annotations

from collections.abc import Mapping

from quantize.config import DataSpec, QuantizeConfig
from quantize.errors import ConfigError, asked
from quantize.types import TensorSpec
from quantize.workers import memory_within

WHOLE, TUNED = 1.3, 4.5  # times the float32 weights: run backwards; with gradients for all, and all codes beside them
GIB = 2**30


def check_memory(specs: Mapping[str, TensorSpec], config: QuantizeConfig, where: str) -> None:
    """Raises ConfigError if ``config`` needs the source ``where`` whole in more memory than it may take."""
    if config.around.tune_steps:
        times, mend = TUNED, f"give {asked('tune_steps', 0)}"
    elif config.data.token_weight == "gradient":
        times, mend = WHOLE, f"give {asked('token_weight', 'unit')}"
    else:
        return
    _check(_float32(specs) * times, config.data, where, mend)


def check_backward(specs: Mapping[str, TensorSpec], data: DataSpec, where: str) -> None:
    """Raises ConfigError if the source ``where``, run backwards, needs more memory than it may take."""
    _check(
        _float32(specs) * WHOLE,
        data,
        where,
        f"measure on a larger one ({asked('sensitivity')}), or give {asked('bits')} and {asked('token_weight', 'unit')} "
        "instead of a size",
    )


def _check(needed: float, data: DataSpec, where: str, mend: str) -> None:
    there = memory_within(data.max_memory)
    if needed <= there:
        return
    holder = "this machine has" if there != data.max_memory else f"{asked('max_memory')} gives it"
    raise ConfigError(f"{where}: takes about {needed / GIB:.0f} GiB of memory, and {holder} {there / GIB:.0f}; {mend}")


def fits(specs: Mapping[str, TensorSpec], times: float) -> bool:
    """Whether the source's float32 weights fit into this machine's memory that many times."""
    return times * _float32(specs) <= memory_within()


def _float32(specs: Mapping[str, TensorSpec]) -> int:
    """Bytes of all its weights."""
    return 4 * sum(spec.size for spec in specs.values())

"""Whether the source fits into this machine's memory as often as was asked for, said before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from quantize.checkpoint import Checkpoint
from quantize.checkpoint.template import Template
from quantize.config import BUILTIN, GENERATED, DataSpec, QuantizeConfig
from quantize.errors import ConfigError, asked
from quantize.model_config import block_index
from quantize.types import TensorSpec
from quantize.workers import memory_within

WHOLE, TUNED = 1.3, 4.5  # times the float32 weights: run backwards; with gradients for all, and all codes beside them
PAGED, LEARNED = 3, 12  # times those of the largest block: run backwards alone; with what learns its codes
STREAMS = 4  # floats of each token between two blocks: as in the source, with the codes before it, and as either is made
FLOAT, GIB = 4, 2**30  # bytes


def check_memory(source: Checkpoint, config: QuantizeConfig) -> None:
    """Raises ConfigError if ``config`` needs ``source`` in more memory than it may take."""
    around, data = config.around, config.data
    if around.tune_steps:
        _check(source, data, TUNED * _float32(source.specs), f"give {asked('tune_steps', 0)}")
    elif data.token_weight == "gradient":
        _check(source, data, _backward(source), f"give {asked('token_weight', 'unit')}")
    if data.text == GENERATED:
        _check(source, data, _backward(source), f"give {asked('data.text', BUILTIN)}, or a text file")
    if around.block_steps and isinstance(source, Template):  # of a known family one block is read
        streams = STREAMS * FLOAT * data.tokens * source.config.hidden_size
        needed = _held(source) + LEARNED * _by_block(source.specs)[1] + streams
        _check(source, data, needed, f"give {asked('block_steps', 0)}")


def check_backward(source: Checkpoint, data: DataSpec) -> None:
    """Raises ConfigError if ``source``, run backwards, needs more memory than it may take."""
    mend = (
        f"measure on a larger one ({asked('sensitivity')}), or give {asked('bits')} and {asked('token_weight', 'unit')} "
        "instead of a size"
    )
    _check(source, data, _backward(source), mend)


def _check(source: Checkpoint, data: DataSpec, needed: float, mend: str) -> None:
    there = memory_within(data.max_memory)
    if needed <= there:
        return
    holder = "this machine has" if there != data.max_memory else f"{asked('max_memory')} gives it"
    raise ConfigError(f"{source.path}: takes about {needed / GIB:.0f} GiB of memory, and {holder} {there / GIB:.0f}; {mend}")


def _backward(source: Checkpoint) -> float:
    """Bytes for a pass forth and back."""
    if _is_paged(source):
        return _held(source) + PAGED * _by_block(source.specs)[1]
    return WHOLE * _float32(source.specs)


def _held(source: Checkpoint) -> int:
    """Bytes of the float32 weights that torch holds all the time."""
    return _by_block(source.specs)[0] if _is_paged(source) else _float32(source.specs)


def _is_paged(source: Checkpoint) -> bool:
    """Whether torch brings in block after block from its files; see ``quantize.source.paged``."""
    return isinstance(source, Template) and source.twin is not None and source.twin.is_dir()


def fits(specs: Mapping[str, TensorSpec], times: float) -> bool:
    """Whether the source's float32 weights fit into this machine's memory that many times."""
    return times * _float32(specs) <= memory_within()


def _float32(specs: Mapping[str, TensorSpec]) -> int:
    """Bytes of all its weights."""
    return FLOAT * sum(spec.size for spec in specs.values())


def _by_block(specs: Mapping[str, TensorSpec]) -> tuple[int, int]:
    """Bytes of the weights outside the blocks, and of the largest block's."""
    sizes = Counter[int | None]()
    for spec in specs.values():
        sizes[block_index(spec.name)] += FLOAT * spec.size
    outside = sizes.pop(None, 0)
    return outside, max(sizes.values(), default=0)

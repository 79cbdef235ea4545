"""What was measured of a source, for as long as somebody holds it: one command may quantize it for several targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantize.checkpoint import Checkpoint
from quantize.checkpoint.template import Template
from quantize.statistics.by_template import TemplateRun, template_blocks
from quantize.types import I64, Curvature

if TYPE_CHECKING:
    from quantize.source import BlockRun


class Measured:
    """Of one ``source``. Remembers the curvature that was measured last."""

    def __init__(self, source: Checkpoint) -> None:
        self.source = source
        self._key: tuple[bytes, int] | None = None
        self._curvature: Curvature | None = None

    def curvature(self, tokens: I64, seed: int) -> Curvature:
        """``measure_curvature`` of I64[sequences, length]. Raises CalibrationError."""
        from quantize.source import measure_curvature

        key = tokens.tobytes(), seed
        if self._curvature is None or key != self._key:
            self._key, self._curvature = None, None
            self._curvature = measure_curvature(self.source, tokens, seed)
            self._key = key
        return self._curvature


@dataclass(frozen=True)
class Walk:
    """How blocks are run: ``sequences`` that judge a scope loss, whether rounding is ``taught``, and bytes of ``memory``."""

    sequences: int = 0
    taught: bool = False
    memory: int | None = None


def blocks_of(source: Checkpoint, tokens: I64, token_weight: str | Curvature, walk: Walk) -> Iterator[BlockRun | TemplateRun]:
    """``walk_blocks``, or ``template_blocks`` for a template, of which no scope loss is asked."""
    if isinstance(source, Template):
        return template_blocks(source, tokens, token_weight, walk.taught, walk.memory)
    from quantize.source import walk_blocks

    return walk_blocks(source, tokens, token_weight, walk.sequences, walk.taught)

"""What rounds the inputs of a decoder block's linears, where the target leaves that to the file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from quantize.activations import ACTIVATIONS, RUNTIMES, Activation
from quantize.architecture.families import ends_mlp
from quantize.block import Block, Kit
from quantize.errors import CalibrationError
from quantize.types import Need


@dataclass(frozen=True)
class ChooseActivation:
    """One for each input, since one node rounds it for all that read it: static over all that was seen, or where an MLP ends,
    whose outliers no one scale holds, what the runtime does by itself."""

    needs: Need = Need.HESSIAN

    def __call__(self, block: Block, names: Collection[str], kit: Kit) -> Block:
        """See Step. Raises CalibrationError where no inputs were seen."""
        open_ones = [name for name in names if block.plans[name].activations]
        first = {name: site[0] for site in block.sites for name in site}
        found = dict(block.activations)
        for name in open_ones:
            source = first.get(name, name)
            found[name] = found[source] if source in found else self._of(source, block)
        return replace(block, activations=found)

    def _of(self, name: str, block: Block) -> Activation:
        stats, words = block.stats.get(name), block.plans[name].activations
        if stats is None or stats.inputs is None:
            raise CalibrationError(f"{name}: nothing was seen of its inputs, so no scale fits them; quantize the original model")
        static = next((word for word in words if ACTIVATIONS[word].static), None)
        if static is None or (RUNTIMES in words and ends_mlp(name)):
            return Activation(RUNTIMES)
        return Activation.fitted(static, np.stack([stats.inputs.low, stats.inputs.high]))

"""The source run by its own runtime instead of torch: what its blocks' inputs are, whatever the architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from quantize.checkpoint import Checkpoint
from quantize.checkpoint.huggingface import is_quantized
from quantize.checkpoint.template import Template
from quantize.config import BUILTIN, GENERATED, DataSpec, QuantizeConfig
from quantize.errors import ConfigError, asked, shown
from quantize.inputs import SAMPLE
from quantize.model_config import block_index
from quantize.moments import Moments, Product, Text
from quantize.statistics.experts import ExpertStats
from quantize.types import F32, I64, Curvature, InputStats
from quantize.workers import memory_within

if TYPE_CHECKING:
    from quantize.source import ExpertInputs, NamedBlock
    from quantize.source.expert_inputs import Seen

HIDDEN = -1  # a site that only torch knows
SHARE = 4  # of the memory that may be taken, the part of moments: others hold them too, and what is made of them


@dataclass(frozen=True, eq=False)
class TemplateRun:
    """One block of the source, text having passed through it; see ``quantize.source.BlockRun``."""

    index: int
    stats: Mapping[str, InputStats]
    sites: tuple[tuple[str, ...], ...]
    experts: Mapping[str, ExpertStats] = field(default_factory=dict)  # of stacks
    student: NamedBlock | None = None  # what it is left with at the end counts as this block for the next one's

    def scope_loss(self, name: str, candidates: list[F32]) -> NoReturn:
        """Refused before any data."""
        raise AssertionError(f"{name}: a runtime computes no scope loss")

    def commit(self, name: str, weight: F32) -> NoReturn:
        """As ``scope_loss``."""
        raise AssertionError(f"{name}: a runtime computes no scope loss")


def gives_gradients(source: Checkpoint) -> bool:
    """Whether torch runs it, there and back. Of experts no gradients are taken."""
    return runs_in_torch(source) and not (isinstance(source, Template) and source.has_experts)


def runs_in_torch(source: Checkpoint) -> bool:
    """A template does if it has a twin there or transformers reads the file."""
    if not isinstance(source, Template):
        return True
    if not _has_torch():
        return False
    if source.twin is not None:
        return source.twin.is_file() or not is_quantized(source.twin)  # else torch's floats are not the converter's
    if not source.read_by_torch:
        return False
    from quantize.source import reads_gguf

    return reads_gguf(source.config.model_type)


def _has_torch() -> bool:
    return all(find_spec(name) is not None for name in ("torch", "transformers"))


def check_template(source: Template, config: QuantizeConfig, runs: bool) -> None:
    """Raises ConfigError for what needs the modules of a block, which are not known of a template, or gradients where torch does
    not run it.

    ``runs``: whether a text passes through it; how its tokens are weighed does not matter otherwise.
    """
    around, data, named = config.around, config.data, shown(source.config.model_type)
    if runs:
        check_passes(source, data)
        check_writes(source, data)
    weighs = runs and data.token_weight == "gradient"
    wanted = {"block_steps": around.block_steps, "tune_steps": around.tune_steps}
    learned = [option for option, steps in wanted.items() if steps]
    if (weighs or learned) and not gives_gradients(source):
        reason = f"{source.path}: {named} runs in {source.runtime}, which gives no gradients"
        if weighs:
            raise ConfigError(f"{asked('token_weight', data.token_weight)}: {reason}; give {asked('token_weight', 'unit')}")
        raise ConfigError(f"{asked(learned[0], wanted[learned[0]])}: {reason}; give {asked(learned[0], 0)}")
    if around.by_scope:
        raise ConfigError(
            f"{asked('selection', around.selection)}: {source.path}: no part of {named} is known by itself; "
            f"drop {asked('selection')}"
        )
    if around.transforms and learned:  # torch's model has no norms in it by which a folded block could be put there
        raise ConfigError(
            f"{asked(learned[0], wanted[learned[0]])}: {source.path}: a block of {named} whose basis changes does not learn; "
            f"drop {asked('transforms')}, or give {asked(learned[0], 0)}"
        )


def check_gradients(source: Checkpoint) -> None:
    """Raises ConfigError for a source that torch does not run: what an option costs the whole model is told by gradients."""
    if isinstance(source, Template) and not gives_gradients(source):
        named = shown(source.config.model_type)
        raise ConfigError(
            f"{source.path}: {named} runs in {source.runtime}, which gives no gradients to choose grids by; "
            f"give {asked('grid.bits')} or {asked('grid.name')} instead of a size"
        )


def check_writes(source: Checkpoint, data: DataSpec) -> None:
    """Raises ConfigError for a source that is to write its text itself, and which torch does not run."""
    if data.text == GENERATED and not runs_in_torch(source):
        assert isinstance(source, Template)
        raise ConfigError(
            f"{asked('data.text', data.text)}: {source.path}: {shown(source.config.model_type)} runs in {source.runtime}, which "
            f"writes no text here; give {asked('data.text', BUILTIN)}, or a text file"
        )


def check_passes(source: Checkpoint, data: DataSpec) -> None:
    """Raises ConfigError for less memory than the moments of one block need. Without a bound the largest has what it needs."""
    if data.max_memory is None or not isinstance(source, Template):
        return
    index, needed = max(
        ((index, SHARE * _moments_size(source, products)) for index, products in _by_block(source).items()),
        key=lambda item: item[1],
        default=(0, 0),
    )
    given, least = (asked("max_memory", size, f"{size}B") for size in (data.max_memory, needed))
    if needed > data.max_memory:
        raise ConfigError(f"{given}: {source.path}: block {index} needs {needed:,} bytes; give {least} or more")


def template_blocks(
    source: Template, tokens: I64, token_weight: str | Curvature, taught: bool = False, memory: int | None = None
) -> Iterator[TemplateRun]:
    """Every block of I64[sequences, length] tokens; ``token_weight`` and ``taught`` as for ``quantize.source.walk_blocks``.

    The text passes as often as the moments need that fit into a part of this machine's memory, or of ``memory`` bytes if they
    are fewer. Raises CalibrationError, CheckpointError.
    """
    students = None
    if taught:
        from quantize.source import block_students

        students = block_students(source, tokens, token_weight)
    apart = _experts_apart(source, tokens)
    by_block = _by_block(source)
    for some in _passes(source, by_block, memory_within(memory) // SHARE):
        with TemporaryDirectory() as folder:
            own = [product for index in some for product in by_block[index] if product.site != HIDDEN]
            text = Text(tokens, token_weight == "unit", _by_site(own, token_weight))
            moments = source.measure(text, own, Path(folder)) if own else {}
            for index in some:
                run = _weighed(_block(source, index, by_block[index], moments), token_weight)
                if apart is not None:
                    names = [product.weight for product in by_block[index]]
                    run = _by_expert(run, *apart.of(names, token_weight == "unit"))
                yield run if students is None else replace(run, student=next(students))


def _experts_apart(source: Template, tokens: I64) -> ExpertInputs | None:
    """What tells which tokens each expert sees, where the runtime does not and torch runs the source."""
    runs = source.twin is not None and source.twin.is_dir() and not is_quantized(source.twin)
    if not source.hides_experts or not runs or not _has_torch():
        return None
    from quantize.source import ExpertInputs

    return ExpertInputs(source, tokens)


def _hidden_stacks(source: Template) -> list[Product]:
    """Those of which the runtime tells nothing."""
    names = [name for name, spec in source.specs.items() if len(spec.shape) > 2 and source.is_quantized(name)]
    return [Product(name, HIDDEN, source.specs[name].shape[0]) for name in names if source.hides_experts]


def _unknown(product: Product, channels: int) -> ExpertStats:
    """Of no tokens."""
    nothing = np.broadcast_to(np.float32(0), (product.experts, channels, channels))
    return ExpertStats(nothing, np.zeros(product.experts, np.int64))


def _by_expert(run: TemplateRun, seen: Sequence[Seen], stacks: Mapping[str, Moments]) -> TemplateRun:
    """With each expert known by its own tokens; one that saw few by its channels' squares alone."""
    known = {name: one for one in seen for name in one.names}
    own = {id(one): ExpertStats(one.moment[None], np.array([one.tokens])).of(0) for one in seen}
    stats = {  # a sample of what an expert could have seen
        name: replace(own[id(known[name])], inputs=stats.inputs) if name in known else stats for name, stats in run.stats.items()
    }
    shared = (tuple(name for name in names if name not in known) for names in run.sites)
    sites = (*(names for names in shared if names), *(tuple(one.names) for one in seen))
    experts = {name: ExpertStats(one.squares, one.tokens) for name, one in stacks.items()}
    return replace(run, stats=stats, sites=sites, experts={**run.experts, **experts})


def _by_site(products: Sequence[Product], token_weight: str | Curvature) -> dict[int, F32]:
    """Token weights of the sites that have some."""
    if isinstance(token_weight, str):
        return {}
    return {one.site: token_weight.tokens[one.weight] for one in products if one.weight in token_weight.tokens}


def _weighed(run: TemplateRun, token_weight: str | Curvature) -> TemplateRun:
    """With what errors of its outputs cost, where that is known."""
    if isinstance(token_weight, str):
        return run
    stats = {name: replace(one, row_weight=token_weight.rows.get(name)) for name, one in run.stats.items()}
    return replace(run, stats=stats)


def _by_block(source: Template) -> dict[int, list[Product]]:
    """What is quantized of each block, in order."""
    blocks = [index for index, _ in groupby(sorted(i for i in map(block_index, source.specs) if i is not None))]
    wanted = [product for product in source.products if source.is_quantized(product.weight)]
    wanted += _hidden_stacks(source)
    return {index: [product for product in wanted if block_index(product.weight) == index] for index in blocks}


def _moments_size(source: Template, products: Sequence[Product]) -> int:
    """Bytes, with the sample of each input."""
    sites = dict(enumerate(products)) if source.hides_experts else {product.site: product for product in products}
    channels = [(one.experts, source.specs[one.weight].shape[-1]) for one in sites.values()]
    return sum(4 * count * (experts * count if experts else count + SAMPLE) for experts, count in channels)


def _passes(source: Template, by_block: Mapping[int, list[Product]], most: int) -> Iterator[list[int]]:
    """Blocks whose moments take ``most`` bytes together, or one."""
    taken, some = 0, list[int]()
    for index, products in by_block.items():
        size = _moments_size(source, products)
        if some and taken + size > most:
            yield some
            taken, some = 0, []
        taken, some = taken + size, [*some, index]
    if some:
        yield some


def _block(source: Template, index: int, products: Sequence[Product], moments: Mapping[int, Moments]) -> TemplateRun:
    plain = [product for product in products if not product.experts]
    seen = {site: moments[site] for site in _sites(plain)}
    stats = {site: InputStats(np.array(one.squares[0]), int(one.tokens[0]), inputs=one.inputs) for site, one in seen.items()}
    sites = tuple(tuple(one.weight for one in plain if one.site == site) for site in stats)
    experts = {
        product.weight: ExpertStats(moments[product.site].squares, moments[product.site].tokens)
        for product in products
        if product.experts and product.site != HIDDEN
    }
    for product in (product for product in products if product.site == HIDDEN):
        experts[product.weight] = _unknown(product, source.specs[product.weight].shape[-1])
    return TemplateRun(index, {one.weight: stats[one.site] for one in plain}, sites, experts)


def _sites(products: Sequence[Product]) -> list[int]:
    return list(dict.fromkeys(product.site for product in products))

"""What ``adadim run`` makes of which source: one, or for each writer its own, made first of a model that is known by no name."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.convert import is_packed, template_path
from exporter.cli.export import RunOutputs
from exporter.cli.options import DEFAULT_RUN_TARGETS
from exporter.cli.process import warn
from exporter.writers import writer_of
from quantize.checkpoint.template import Template
from quantize.errors import ConfigError, NoGraphError

if TYPE_CHECKING:
    from quantize.checkpoint import Checkpoint

LADDER_TARGETS = DEFAULT_RUN_TARGETS[:1]


@dataclass(frozen=True)
class Rung:
    """One file to be made: of a target, and of a size in bytes or a width in bits if there are several."""

    target: str
    name: str = ""
    size: int | None = None
    bits: float | None = None


@dataclass(frozen=True)
class Wanted:
    """Files that are made of one source, by one writer or by all."""

    writer: str
    rungs: Sequence[Rung]
    outputs: Sequence[RunOutputs]

    @property
    def targets(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(rung.target for rung in self.rungs))


@dataclass(frozen=True)
class Way:
    """A source, and what is wanted of it."""

    source: Checkpoint
    wanted: Wanted


def wanted_of(args: Namespace, given: Checkpoint | None, out: Path) -> list[Wanted]:
    """One; of a decoder that is known by no name, one for each writer, for each has a source of its own. ``given``: None for a
    folder that is none yet."""
    targets = _targets(args, given)
    words = list(dict.fromkeys(writer_of(target).word for target in targets))
    groups = {words[0]: list(targets)}
    if given is None or any(_lacks_graph(given, word) for word in words):
        groups = {word: [target for target in targets if writer_of(target).word == word] for word in words}
    made = {word: _rungs(args, own) for word, own in groups.items()}
    return [
        Wanted(word, rungs, [RunOutputs.under(out / rung.target / rung.name, rung.target) for rung in rungs])
        for word, rungs in made.items()
    ]


def _lacks_graph(given: Checkpoint, word: str) -> bool:
    """Whether a graph is made of it for that writer."""
    return isinstance(given, Template) and given.writer == "gguf" and word == "onnx"


def ways_of(args: Namespace, out: Path, wanted: Sequence[Wanted], given: Checkpoint | None) -> list[Way]:
    """A source for each, made where there is none. What no tool has a graph of is left out if nobody asked for it by name.

    Raises CheckpointError, ConfigError, OutputError."""
    from quantize import open_checkpoint

    ways, twin = list[Way](), args.torch or (None if is_packed(args.source) else args.source)
    for index, each in enumerate(wanted):
        if given is not None and not _lacks_graph(given, each.writer):
            ways.append(Way(given, each))
            continue
        try:
            ways.append(Way(open_checkpoint(template_path(args, out, each.writer), twin), each))
        except NoGraphError as error:
            if args.target or not index:
                raise
            warn([f"{error}; no {each.writer} file is made"])
    if given is None:
        args.tokenizer_pre = None  # said, and in the file
    return ways


def _several(args: Namespace) -> bool:
    """Whether a ladder is asked for."""
    return len(args.sizes or args.widths or ()) > 1


def _targets(args: Namespace, source: Checkpoint | None) -> Sequence[str]:
    """Those asked for; else what a source of this kind is written as; None: a folder of which each writer has its own."""
    if args.target:
        return list(args.target)
    if isinstance(source, Template):
        return [target for target in DEFAULT_RUN_TARGETS if writer_of(target).word == source.writer]
    return LADDER_TARGETS if _several(args) else DEFAULT_RUN_TARGETS


def _rungs(args: Namespace, targets: Sequence[str]) -> list[Rung]:
    """Raises ConfigError for options that say the size twice."""
    several = args.sizes or args.widths or ()
    if args.sizes and (args.target_size or args.target_bpw or args.widths):
        raise ConfigError("--sizes: says already how large the files are; drop --target-size, --target-bpw and --bits")
    steps = [Rung("", word, size=size) for word, size in args.sizes or ()]
    steps += [Rung("", f"{bits}bit" if len(several) > 1 else "", bits=bits) for bits in args.widths or ()]
    return [replace(rung, target=target) for target in targets for rung in steps or [Rung("")]]

"""What ``adadim report`` is given, read and checked: every fault is one line with the file's name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from exporter.inspect import inspect
from quantize.errors import ConfigError, FileFormatError, asked
from quantize.kinds import is_store, readable
from quantize.outside import Door

Json = dict[str, Any]
SAME_TEXT = 1e-3  # two runs of one source over one text differ in perplexity by threads and rounding alone, far below this


COMPARE_DOOR, EVAL_DOOR, VERIFY_DOOR = (
    Door(FileFormatError, f"write it with `adadim {command} --json`") for command in ("compare", "eval", "verify")
)
MOST_FILES = 200  # of a comparison
Name = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]+\Z", max_length=1000)]
Told = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*\Z", max_length=100_000)]
Measure = Annotated[float, msgspec.Meta(ge=0, lt=1e30)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


@dataclass(frozen=True)
class Measured:
    """What `adadim eval` found of a file; what has a default is of `adadim compare` alone."""

    size: int
    ppl: float
    source_ppl: float
    kld: float
    kld_p99: float
    top1: float
    tokens: int
    tokens_per_s: float
    runtime: str
    bits_per_weight: float | None = None
    sample: str | None = None
    first_difference: int | None = None


class _Evaluation(msgspec.Struct, kw_only=True):
    bytes: Bytes
    ppl: Measure
    source_ppl: Measure
    kld: Measure
    kld_p99: Measure
    top1: Measure
    tokens: Bytes
    tokens_per_s: Measure
    runtime: Told
    bits_per_weight: Measure | None = None
    sample: Told | None = None
    first_difference: Bytes | None = None

    def measured(self) -> Measured:
        """The same, with our name for its size."""
        held = {name: getattr(self, name) for name in self.__struct_fields__ if name in Measured.__dataclass_fields__}
        return Measured(size=self.bytes, **held)


class _Row(_Evaluation, kw_only=True):
    name: Name


class _Failed(msgspec.Struct):
    name: Name
    error: Told


class _Comparison(msgspec.Struct):
    files: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=MOST_FILES)]
    source: Told | None = None
    text: Told | None = None
    prompt: Told | None = None
    sample: Told | None = None


class Miss(msgspec.Struct):
    """A check of `adadim verify`; also one that holds."""

    name: Told
    tensor: Told
    error: Annotated[float, msgspec.Meta(ge=0)]
    tolerance: Annotated[float, msgspec.Meta(ge=0)]
    ok: bool


class _Verification(msgspec.Struct):
    checks: list[Miss]


@dataclass(frozen=True)
class Verified:
    """How many checks `adadim verify` made, and those that missed."""

    checks: int
    misses: Sequence[Miss]


@dataclass
class Subject:
    """One file or store by its name, and all that was given of it. ``error``: why it could not be measured."""

    name: str
    path: Path | None = None
    report: Json | None = None  # of ``exporter.inspect``
    measured: Measured | None = None
    verified: Verified | None = None
    error: str | None = None
    reference: bool = False

    @property
    def is_store(self) -> bool:
        """Whether it is a store: the only one that knows losses, and not what is shipped."""
        return self.path is not None and is_store(self.path)


@dataclass(frozen=True)
class Inputs:
    """``subjects`` in the order they were given; what is measured on and said is of the comparison, if there was one."""

    subjects: Sequence[Subject]
    text: str | None = None
    prompt: str | None = None
    sample: str | None = None  # what the source itself goes on with


@dataclass(frozen=True)
class Paths:
    """The files that a report is made of. ``evaluations`` and ``verifications``: by the name of the file they speak of."""

    models: Sequence[Path] = ()
    comparisons: Sequence[Path] = ()
    evaluations: Sequence[tuple[str, Path]] = ()
    verifications: Sequence[tuple[str, Path]] = ()
    references: Sequence[str] = ()


@dataclass
class _Reader:
    subjects: list[Subject] = field(default_factory=list)
    said: dict[str, str | None] = field(default_factory=dict)

    def subject(self, name: str) -> Subject:
        """The one of that name, or with a longer or a shorter path to it; a new one if there is none."""
        name = readable(name)
        found = [subject for subject in self.subjects if _same_file(subject.name, name)]
        if len(found) > 1:
            raise ConfigError(f"{name}: may be any of {', '.join(subject.name for subject in found)}; give more of its path")
        if not found:
            self.subjects.append(Subject(name))
        return (found or self.subjects)[-1]

    def add_model(self, path: Path) -> None:
        subject = self.subject(str(path))
        if subject.report is not None:
            raise ConfigError(f"{path}: is given twice, or {subject.name} is another one of that name; give more of their paths")
        subject.path, subject.report = path, inspect(path)

    def add_measured(self, name: str, measured: Measured, path: Path) -> None:
        subject = self.subject(name)
        if subject.measured is not None:
            raise ConfigError(f"{path}: {name} is measured twice; give each measurement a name of its own")
        others = [item.measured for item in self.subjects if item.measured is not None]
        if others and not _same_text(measured, others[0]):
            raise ConfigError(
                f"{path}: {name} was measured on {measured.tokens:,} tokens where the source's perplexity is "
                f"{measured.source_ppl:.4f}, the files before it on {others[0].tokens:,} where it is {others[0].source_ppl:.4f}; "
                f"measure all of them on one text with the same {asked('context')} and {asked('chunks')}"
            )
        subject.measured = measured

    def add_comparison(self, path: Path) -> None:
        raw = COMPARE_DOOR.load(path, _Comparison)
        if raw.source is None:
            raise ConfigError(
                f"{path}: was compared without {asked('source')}, so no quality was measured; compare with "
                f"{asked('source')} and {asked('text')}"
            )
        self.said |= {"text": raw.text, "prompt": raw.prompt, "sample": raw.sample}
        for index, item in enumerate(raw.files):
            where = f"{path}: files[{index}]"
            if "error" in item:
                failed = COMPARE_DOOR.convert(item, where, _Failed)
                self.subject(failed.name).error = failed.error
            else:
                row = COMPARE_DOOR.convert(item, where, _Row)
                self.add_measured(row.name, row.measured(), path)

    def add_verification(self, name: str, path: Path) -> None:
        checks = VERIFY_DOOR.load(path, _Verification).checks
        self.subject(name).verified = Verified(len(checks), [check for check in checks if not check.ok])


def read_inputs(paths: Paths) -> Inputs:
    """Raises ConfigError for inputs that contradict one another, FileFormatError and StoreError for what cannot be read."""
    reader = _Reader()
    for path in paths.models:
        reader.add_model(path)
    for path in paths.comparisons:
        reader.add_comparison(path)
    for name, path in paths.evaluations:
        reader.add_measured(name, EVAL_DOOR.load(path, _Evaluation).measured(), path)
    for name, path in paths.verifications:
        reader.add_verification(name, path)
    if not reader.subjects:
        raise ConfigError(f"nothing to report on; give a file, a store, {asked('compare')}, {asked('eval')} or {asked('verify')}")
    for name in paths.references:
        known = len(reader.subjects)
        reader.subject(name).reference = True
        if len(reader.subjects) > known:
            raise ConfigError(
                f"{asked('reference', name)}: is none of {', '.join(item.name for item in reader.subjects[:known])}"
            )
    shorten(reader.subjects)
    return Inputs(reader.subjects, **reader.said)


def shorten(subjects: Sequence[Subject]) -> None:
    """Give each subject as much of the end of its path as tells it from the others."""
    parts = [_parts(subject.name) for subject in subjects]
    for subject, own in zip(subjects, parts, strict=True):
        length = next(n for n in range(1, len(own) + 1) if n == len(own) or sum(other[-n:] == own[-n:] for other in parts) == 1)
        subject.name = "/".join(own[-length:])


def _same_file(one: str, other: str) -> bool:
    """Whether one path is the end of the other."""
    short, long = sorted((_parts(one), _parts(other)), key=len)
    return long[-len(short) :] == short


def _parts(name: str) -> tuple[str, ...]:
    """Of a path; "." has none by itself."""
    return Path(name).parts or (name,)


def _same_text(one: Measured, other: Measured) -> bool:
    return one.tokens == other.tokens and math.isclose(one.source_ppl, other.source_ppl, rel_tol=SAME_TEXT)


def measured_subjects(subjects: Iterable[Subject]) -> list[tuple[Subject, Measured]]:
    """Those that were measured, with what was found."""
    return [(subject, subject.measured) for subject in subjects if subject.measured is not None]

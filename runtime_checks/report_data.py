"""What ``adadim report`` is given, read and checked: every fault is one line with the file's name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.inspect import inspect
from quantize.errors import ConfigError, FileFormatError
from quantize.kinds import is_store, readable

Json = dict[str, Any]
SAME_TEXT = 1e-3  # two runs of one source over one text differ in perplexity by threads and rounding alone, far below this


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


@dataclass(frozen=True)
class Verified:
    """How many checks `adadim verify` made, and those that missed."""

    checks: int
    misses: Sequence[Json]


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
                "measure all of them on one text with the same --context and --chunks"
            )
        subject.measured = measured

    def add_comparison(self, path: Path) -> None:
        raw = _read(path, "adadim compare --json")
        rows = raw.get("files")
        if raw.get("source") is None:
            raise ConfigError(
                f"{path}: was compared without --source, so no quality was measured; compare with --source and --text"
            )
        if not isinstance(rows, list):
            raise FileFormatError(f"{path}: has no list of files; write it with `adadim compare --json`")
        self.said |= {key: _text(raw, key, path) for key in ("text", "prompt", "sample")}
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("name"), str):
                raise FileFormatError(f"{path}: a file in it has no name; write it with `adadim compare --json`")
            if "error" in row:
                self.subject(row["name"]).error = _text(row, "error", path)
            else:
                self.add_measured(row["name"], _measured(row, path), path)

    def add_verification(self, name: str, path: Path) -> None:
        checks = _read(path, "adadim verify --json").get("checks")
        if not isinstance(checks, list) or not all(_is_check(check) for check in checks):
            raise FileFormatError(f"{path}: has no list of checks; write it with `adadim verify --json`")
        self.subject(name).verified = Verified(len(checks), [check for check in checks if not check["ok"]])


def read_inputs(paths: Paths) -> Inputs:
    """Raises ConfigError for inputs that contradict one another, FileFormatError and StoreError for what cannot be read."""
    reader = _Reader()
    for path in paths.models:
        reader.add_model(path)
    for path in paths.comparisons:
        reader.add_comparison(path)
    for name, path in paths.evaluations:
        reader.add_measured(name, _measured(_read(path, "adadim eval --json"), path), path)
    for name, path in paths.verifications:
        reader.add_verification(name, path)
    if not reader.subjects:
        raise ConfigError("nothing to report on; give a file, a store, --compare, --eval or --verify")
    for name in paths.references:
        known = len(reader.subjects)
        reader.subject(name).reference = True
        if len(reader.subjects) > known:
            raise ConfigError(f"--reference {name}: is none of {', '.join(item.name for item in reader.subjects[:known])}")
    shorten(reader.subjects)
    return Inputs(reader.subjects, **reader.said)


def shorten(subjects: Sequence[Subject]) -> None:
    """Give each subject as much of the end of its path as tells it from the others."""
    parts = [Path(subject.name).parts for subject in subjects]
    for subject, own in zip(subjects, parts, strict=True):
        length = next(n for n in range(1, len(own) + 1) if n == len(own) or sum(other[-n:] == own[-n:] for other in parts) == 1)
        subject.name = "/".join(own[-length:])


def _same_file(one: str, other: str) -> bool:
    """Whether one path is the end of the other."""
    short, long = sorted((Path(one).parts, Path(other).parts), key=len)
    return long[-len(short) :] == short


def _read(path: Path, maker: str) -> Json:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}); write it with `{maker}`") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: not JSON ({error}); write it with `{maker}`") from error
    if not isinstance(raw, dict):
        raise FileFormatError(f"{path}: holds no JSON object; write it with `{maker}`")
    return raw


def _measured(row: Mapping[str, Any], path: Path) -> Measured:
    numbers = {key: _number(row, key, path) for key in ("ppl", "source_ppl", "kld", "kld_p99", "top1", "tokens_per_s")}
    first, bits = row.get("first_difference"), row.get("bits_per_weight")
    return Measured(
        size=int(_number(row, "bytes", path)),
        tokens=int(_number(row, "tokens", path)),
        runtime=_text(row, "runtime", path) or "",
        bits_per_weight=None if bits is None else _number(row, "bits_per_weight", path),
        sample=_text(row, "sample", path),
        first_difference=None if first is None else int(_number(row, "first_difference", path)),
        **numbers,
    )


def _number(row: Mapping[str, Any], key: str, path: Path) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        name = f" of {row['name']}" if "name" in row else ""
        raise FileFormatError(f"{path}: {key}{name} is {value!r}, not a number of 0 or more; measure it again")
    return value


def _text(row: Mapping[str, Any], key: str, path: Path) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise FileFormatError(f"{path}: {key} is {value!r}, not a text; write it again")
    return value


def _is_check(check: object) -> bool:
    kinds = {"name": str, "tensor": str, "error": int | float, "tolerance": int | float, "ok": bool}
    return isinstance(check, dict) and all(isinstance(check.get(key), kind) for key, kind in kinds.items())


def _same_text(one: Measured, other: Measured) -> bool:
    return one.tokens == other.tokens and math.isclose(one.source_ppl, other.source_ppl, rel_tol=SAME_TEXT)


def measured_subjects(subjects: Iterable[Subject]) -> list[tuple[Subject, Measured]]:
    """Those that were measured, with what was found."""
    return [(subject, subject.measured) for subject in subjects if subject.measured is not None]

"""Which file to ship, by one rule, and why: the line with which a report begins."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TypeVar

from runtime_checks.report.data import Measured, Subject
from runtime_checks.report.page import Answer

CLOSE = 0.05  # nats a token; of text that is as the source would write it, exp(0.05) is 5 % more perplexity
FEW = 1000  # scored tokens; below, the mean of a KL divergence says little
RULE = (
    "The rule: ship the smallest file of which every check of `adadim verify` holds and whose mean KL divergence from the source "
    f"is at most {CLOSE} nats a token, which is about 5 % of perplexity. Files of other tools are compared, never chosen. "
    "The bound is this page's; what you build may need a closer file, or bear one that is further away."
)
_File = tuple[Subject, Measured]
_Named = TypeVar("_Named", Subject, str)


def advise(subjects: Sequence[Subject]) -> Answer:
    """What RULE says of the files; the same subjects in any order give the same answer, but for the one named first of equals."""
    files = [subject for subject in subjects if not subject.reference and not subject.is_store]
    measured = [(subject, subject.measured) for subject in files if subject.measured is not None and fault(subject) is None]
    close = sorted((file for file in measured if file[1].kld <= CLOSE), key=_rank)
    sound = [file for file in close if file[0].verified is not None]
    unknown = [subject for subject in files if subject.measured is None and fault(subject) is None]
    if sound:
        return _ship(sound[0], files, subjects)
    if close:
        return _not_yet(close[0], files, subjects)
    if unknown:
        return _not_measured(unknown, measured, files)
    if measured:
        return _too_far(measured, files)
    return _failed(files) if files else _no_file(subjects)


def fault(subject: Subject) -> str | None:
    """Why a file may not be shipped at all, or None; that nothing was checked or measured is no fault."""
    if subject.error is not None:
        return f"could not be measured: {subject.error}"
    if subject.verified is None:
        return None
    misses, checks = subject.verified.misses, subject.verified.checks
    if not checks:
        return "was verified by no check at all"
    if not misses:
        return None
    where = f"{misses[0].name} at {misses[0].tensor}" if misses[0].tensor else misses[0].name
    return f"misses {len(misses):,} of {checks:,} checks (first: {where})"


def best_for_its_size(files: Sequence[tuple[str, Measured]]) -> tuple[str, Measured]:
    """The smallest within CLOSE, or the closest if none is. ``files`` must not be empty."""
    close = [file for file in files if file[1].kld <= CLOSE]
    return min(close, key=lambda file: (file[1].size, file[1].kld)) if close else _closest(files)


def in_numbers(found: Measured) -> str:
    """Size, distance and agreement; no line breaks between a number and its unit."""
    size, agreement = f"{found.size / 1e6:,.1f}\u00a0MB", f"{100 * found.top1:.1f}\u00a0%"
    return f"{size}, KL divergence {found.kld:.4f}, same favourite token {agreement} of the time"


def caveats(found: Measured) -> str:
    """What weakens a measurement, as a sentence; or nothing."""
    return f" Only {found.tokens:,} tokens were measured, which is few." if found.tokens < FEW else ""


def _rank(file: _File) -> tuple[int, float]:
    return file[1].size, file[1].kld


def _closest(files: Sequence[tuple[_Named, Measured]]) -> tuple[_Named, Measured]:
    return min(files, key=lambda file: (file[1].kld, file[1].size))


def _ship(file: _File, files: Sequence[Subject], subjects: Sequence[Subject]) -> Answer:
    subject, found = file
    checks = 0 if subject.verified is None else subject.verified.checks
    hold = "its one check holds" if checks == 1 else f"all {checks:,} checks hold"
    alone = len(files) == 1
    why = "it is close to the source" if alone else "it is the smallest such file that is close to the source"
    text = f"{hold}, and {why} ({in_numbers(found)})."
    notes = _passed_over(files, file) + _rivals(file, subjects) + caveats(found)
    return Answer("Ship it" if alone else f"Ship {subject.name}", text + notes, "good", chosen=subject.name)


def _passed_over(files: Sequence[Subject], chosen: _File | None) -> str:
    """Files that are close to the source and would have been taken before the chosen one, but for their checks."""
    passed = [
        (subject, found)
        for subject in files
        if (found := subject.measured) is not None
        and found.kld <= CLOSE
        and (chosen is None or (subject is not chosen[0] and _rank((subject, found)) < _rank(chosen)))
    ]
    if not passed:
        return ""
    first = min(passed, key=_rank)[0]
    more = f" (and {len(passed) - 1} more)" if len(passed) > 1 else ""
    return f" Passed over{more}: {first.name}, which {fault(first) or 'is not verified'}."


def _rivals(file: _File, subjects: Sequence[Subject]) -> str:
    """A reference that the rule would have taken, or that is better in one thing and no worse in the other."""
    found = file[1]
    better = [other for other in subjects if other.reference and other.measured is not None and _beats(other.measured, found)]
    if not better:
        return ""
    name, rival = _closest([(other.name, other.measured) for other in better if other.measured is not None])
    near = "closer" if rival.kld < found.kld else "as close" if rival.kld == found.kld else "close enough too"
    size = "smaller" if rival.size < found.size else "as large"
    return f" But the reference {name} is {size} and {near} ({rival.size / 1e6:,.1f} MB, {rival.kld:.4f})."


def _beats(rival: Measured, found: Measured) -> bool:
    if rival.size == found.size:
        return rival.kld < found.kld
    return rival.size < found.size and rival.kld <= max(found.kld, CLOSE)


def _not_yet(file: _File, files: Sequence[Subject], subjects: Sequence[Subject]) -> Answer:
    subject, found = file
    alone = len(files) == 1
    which = "it is" if alone else f"{subject.name} is the smallest file that is"
    text = f"{which} close to the source ({in_numbers(found)}), but whether its bytes are right is not verified."
    name = shlex.quote(subject.name)
    commands = (
        f"adadim verify {name} --source MODEL --json verify.json",
        f"adadim report ... --verify {shlex.quote(f'{subject.name}=verify.json')}",
    )
    notes = _passed_over(files, file) + _rivals(file, subjects) + caveats(found)
    return Answer("Not yet", text + notes, "", commands)


def _not_measured(unknown: Sequence[Subject], measured: Sequence[_File], files: Sequence[Subject]) -> Answer:
    many = len(unknown) > 1
    names = f"{unknown[0].name} and {len(unknown) - 1} more are" if many else f"{unknown[0].name} is"
    text = f"how close {names} to the source is not measured."
    if measured:
        subject, found = _closest(measured)
        text += f" Of what is measured nothing is close enough; {subject.name} is the closest ({in_numbers(found)})."
    paths = " ".join(shlex.quote(subject.name) for subject in unknown[:3]) + (" ..." if len(unknown) > 3 else "")
    compare = f"adadim compare {paths} --source MODEL --text FILE --json compare.json"
    return Answer("Cannot say", text + _passed_over(files, None), "", (compare, "adadim report ... --compare compare.json"))


def _too_far(measured: Sequence[_File], files: Sequence[Subject]) -> Answer:
    subject, found = _closest(measured)
    if len(files) == 1:
        text = f"it is too far from the source ({in_numbers(found)})"
    else:
        which = "the closest without a fault" if any(map(fault, files)) else "the closest"
        text = f"no file is close enough to the source; {which} is {subject.name} ({in_numbers(found)})"
    text += f". At most {CLOSE} nats a token is close; a larger file is closer."
    notes = _passed_over(files, None) + caveats(found)
    return Answer("Do not ship", text + notes, "bad", ("adadim run MODEL --target-size SIZE --out OUT",))


def _failed(files: Sequence[Subject]) -> Answer:
    if len(files) == 1:
        return Answer("Do not ship", f"{files[0].name} {fault(files[0])}. Make the file again.", "bad")
    return Answer("Do not ship any", f"each of {len(files)} files has a fault. {files[0].name} {fault(files[0])}.", "bad")


def _no_file(subjects: Sequence[Subject]) -> Answer:
    store = next((subject for subject in subjects if subject.is_store), None)
    if store is None:
        text = "only files of other tools were given, which are here to compare with."
        return Answer("Cannot say", text, "", ("adadim run MODEL --out OUT",))
    form = "onnx" if str((store.report or {}).get("target", "")).startswith("onnx") else "gguf"
    out = "onnx" if form == "onnx" else "model.gguf"
    text = f"{store.name} is a store, and what is shipped is a file. Write, verify and measure it."
    commands = (
        f"adadim export {form} {shlex.quote(store.name)} --out {out}",
        f"adadim verify {out} --source MODEL --store {shlex.quote(store.name)} --json verify.json",
        f"adadim compare {out} --source MODEL --text FILE --json compare.json",
    )
    return Answer("Cannot say", text, "", commands)

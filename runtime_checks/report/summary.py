"""The top of a report: what was measured and checked of each file, in numbers, for the one who decides whether to ship it."""

from __future__ import annotations

from runtime_checks.report.advice import RULE
from runtime_checks.report.data import Inputs, Measured, Subject, measured_subjects
from runtime_checks.report.page import Block, Card, Cell, Facts, Number, Table, Text
from runtime_checks.report.pareto import Point, pareto_front

Statement = tuple[str, str]
BADGE = "ship this"
COLUMNS = (
    "file",
    "MB",
    "bits/weight",
    "KL divergence",
    "99th %",
    "top-1",
    "perplexity",
    "tokens/s",
    "checks",
    "front",
)


def points(inputs: Inputs, chosen: str | None) -> list[Point]:
    """What was measured, in the plane of size and quality; ``chosen`` is the name of the file to ship."""
    return [
        Point(subject.name, found.size, found.kld, subject.reference, BADGE if subject.name == chosen else "")
        for subject, found in measured_subjects(inputs.subjects)
    ]


def basis(inputs: Inputs) -> str:
    """What the whole page rests on, in a sentence or two."""
    files = [subject for subject in inputs.subjects if not subject.reference and not subject.is_store]
    stores = sum(subject.is_store for subject in inputs.subjects)
    counts = [
        _count(len(files), "file"),
        _count(stores, "store"),
        _count(len(inputs.subjects) - len(files) - stores, "reference"),
    ]
    parts = [f"{', '.join(text for text in counts if text)}."]
    verified = [subject.verified for subject in files if subject.verified is not None]
    if files:
        checks, misses = sum(item.checks for item in verified), sum(len(item.misses) for item in verified)
        parts.append(
            f"{len(verified)} of {len(files)} verified: {checks:,} checks, {misses:,} missed."
            if verified
            else "None is verified."
        )
    measured = measured_subjects(inputs.subjects)
    if measured:
        found = sorted((item for _, item in measured), key=lambda item: item.kld)
        klds = list(dict.fromkeys(f"{item.kld:.4f}" for item in (found[0], found[-1])))
        on = f" of {inputs.text}" if inputs.text else ""
        parts.append(
            f"Measured on {found[0].tokens:,} tokens{on}, where the source's perplexity is {found[0].source_ppl:.2f}: "
            f"KL divergence {' to '.join(klds)} nats a token."
        )
    return " ".join(parts)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}" if number else ""


def summary_blocks(inputs: Inputs, chosen: str | None) -> list[Block]:
    """A card for each file that may be shipped, the chosen one first; what nothing was said of; all numbers as a table."""
    front = {point.name for point in pareto_front(points(inputs, chosen))}
    files = [
        subject
        for subject in inputs.subjects
        if not subject.reference and (subject.measured or subject.verified or subject.error)
    ]
    files.sort(key=lambda subject: subject.name != chosen)
    cards = [_card(subject, inputs, BADGE if subject.name == chosen else "") for subject in files]
    blocks: list[Block] = [Facts(cards)] if cards else []
    blocks += [Text(RULE, small=True), Text(basis(inputs), small=True)]
    gaps = _gaps(inputs)
    if gaps:
        blocks.append(Text(f"Not known from what was given: {'; '.join(gaps)}."))
    rows = [_row(subject, subject.name in front) for subject in inputs.subjects]
    used = [index for index in range(len(COLUMNS)) if any(row[index] for row in rows)]
    table = Table("All that was given", [COLUMNS[index] for index in used], [[row[index] for index in used] for row in rows])
    return [*blocks, table]


def _card(subject: Subject, inputs: Inputs, badge: str) -> Card:
    size = _size(subject)
    statements = [("size", f"{size / 1e6:,.1f} MB")] if size else []
    if subject.measured is not None:
        statements += _quality(subject.measured) + _rivals(subject, subject.measured, inputs)
    return Card(subject.name, *_verdict(subject), statements, badge)


def _verdict(subject: Subject) -> tuple[str, str]:
    if subject.error is not None:
        return f"failed: {subject.error}", "bad"
    if subject.verified is None:
        return "not verified", ""
    checks, misses = subject.verified.checks, len(subject.verified.misses)
    return (f"{misses:,} of {checks:,} checks missed", "bad") if misses or not checks else (f"all {checks:,} checks hold", "good")


def _quality(found: Measured) -> list[Statement]:
    change = 100 * (found.ppl / found.source_ppl - 1) if found.source_ppl else 0.0
    out = [
        ("KL divergence", f"{found.kld:.4f}"),
        ("1 token in 100 is over", f"{found.kld_p99:.3f}"),
        ("same favourite token", f"{100 * found.top1:.1f} %"),
        ("perplexity", f"{found.ppl:.2f} ({change:+.1f} %)"),
        ("speed here", f"{found.tokens_per_s:,.0f} tokens/s"),
        ("in", found.runtime),
    ]
    if found.sample is not None:
        same = found.first_difference is None
        out.append(
            ("text as the source's", "all of it" if same else f"for {_count(found.first_difference or 0, 'token') or '0 tokens'}")
        )
    return out


def _rivals(subject: Subject, found: Measured, inputs: Inputs) -> list[Statement]:
    """What is better in both, and the best reference that is no larger."""
    others = [(other, item) for other, item in measured_subjects(inputs.subjects) if other is not subject]
    better = [other.name for other, item in others if item.size <= found.size and item.kld < found.kld]
    out = [("better in both", ", ".join(better) or "none")] if others else []
    references = [(item.kld, other.name) for other, item in others if other.reference and item.size <= found.size]
    if references:
        kld, name = min(references)
        out.append(("reference no larger", f"{name}, {kld:.4f}"))
    return out


def _gaps(inputs: Inputs) -> list[str]:
    """What a decision would rest on and was not given."""
    files = [subject for subject in inputs.subjects if not subject.reference and not subject.is_store and subject.error is None]
    unverified = [subject.name for subject in files if subject.verified is None]
    unmeasured = [subject.name for subject in files if subject.measured is None]
    gaps = [f"whether the bytes are right (`adadim verify`) of {', '.join(unverified)}"] if unverified else []
    return gaps + ([f"quality (`adadim eval`) of {', '.join(unmeasured)}"] if unmeasured else [])


def _size(subject: Subject) -> int | None:
    """Of the file; of a store, that of its tensors in the file to come."""
    if subject.measured is not None:
        return subject.measured.size
    return None if subject.report is None else int(subject.report["totals"]["bytes"])


def _row(subject: Subject, front: bool) -> list[Cell]:
    found, size = subject.measured, _size(subject)
    kind = " (reference)" if subject.reference else " (store)" if subject.is_store else ""
    bits = subject.report["totals"]["bits_per_weight"] if subject.report else found and found.bits_per_weight
    checks = (
        ""
        if subject.verified is None
        else f"{subject.verified.checks - len(subject.verified.misses):,} of {subject.verified.checks:,}"
    )
    start: list[Cell] = [subject.name + kind, Number(f"{size / 1e6:,.1f}" if size else ""), Number(f"{bits:.2f}" if bits else "")]
    if found is None:
        return [*start, *[Number("")] * 5, Number(checks), ""]
    numbers = (f"{found.kld:.4f}", f"{found.kld_p99:.3f}", f"{found.top1:.3f}", f"{found.ppl:.2f}", f"{found.tokens_per_s:,.0f}")
    return [*start, *map(Number, numbers), Number(checks), "yes" if front else "no"]

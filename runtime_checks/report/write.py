"""``adadim report``: one page that says which file to ship and why, and all that is known of it and of the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantize import open_checkpoint
from quantize.errors import ConfigError, asked
from quantize.store.outputs import new_file
from quantize.store.tensors import QuantizedStore
from runtime_checks.report.advice import CLOSE, advise
from runtime_checks.report.data import Inputs, Paths, measured_subjects, read_inputs
from runtime_checks.report.maps import layer_charts
from runtime_checks.report.outliers import find_outliers
from runtime_checks.report.page import Block, Cell, Number, Samples, Section, Table, Text, page
from runtime_checks.report.pareto import pareto_chart
from runtime_checks.report.slices import outlier_charts
from runtime_checks.report.summary import points, summary_blocks
from runtime_checks.report.tree import tree_chart

TITLE = "Good enough to ship?"
SHOWN_MISSES = 50
WORDS = (
    (
        "KL divergence",
        "how far a file's prediction of the next token is from the source's, in nats a token; 0 is the source itself",
    ),
    ("close to the source", f"a KL divergence of at most {CLOSE} nats a token"),
    ("99th %", "the KL divergence that 1 token in 100 exceeds"),
    ("top-1", "how often file and source have the same favourite next token"),
    ("perplexity", "how surprised a model is by the text; the source's on the same text is the measure"),
    ("per OC, per IC", "whether the weights that share a scale lie in one output channel or in one input channel"),
    ("loss", "what rounding a linear does to the model's output, as was predicted when its axis was chosen"),
    ("the front", "the files than which no other is both smaller and closer to the source"),
)


@dataclass(frozen=True)
class Closeup:
    """For the picture of one layer: the source, a text to run it over, and the layer if it shall not be the loudest."""

    source: Path
    text: str | None = None
    layer: str | None = None


def write_report(paths: Paths, closeup: Closeup | None, out: Path, force: bool = False) -> list[str]:
    """Write the page and return the titles of its sections; the same inputs give the same bytes.

    Raises OutputError, what ``read_inputs`` and ``find_outliers`` raise, and ConfigError for a close-up without a store.
    """
    with new_file(out, force) as file:
        content, titles = report_page(read_inputs(paths), closeup)
        file.write(content)
    return titles


def report_page(inputs: Inputs, closeup: Closeup | None) -> tuple[bytes, list[str]]:
    """The page itself, and the titles of its sections. Raises as ``write_report``, but for what it reads and writes."""
    answer = advise(inputs.subjects)
    sections = list(_sections(inputs, closeup, answer.chosen))
    return page(TITLE, answer, sections), [section.title for section in sections]


def _sections(inputs: Inputs, closeup: Closeup | None, chosen: str | None) -> Iterator[Section]:
    outliers = [] if closeup is None else _outliers(inputs, closeup)  # first: it may refuse
    measured = points(inputs, chosen)
    if len(measured) > 1:
        yield Section("quality", "Quality against size", [pareto_chart(measured)])
    yield Section("summary", "What is known", summary_blocks(inputs, chosen))
    samples = _samples(inputs)
    if samples:
        yield Section("samples", "What they say", samples)
    held = [(subject.report, subject.name) for subject in inputs.subjects if subject.report is not None]
    layers = [chart for report, name in held for chart in layer_charts(report, name)]
    if layers:
        yield Section("layers", "Layer by layer", layers)
    if outliers:
        yield Section("outliers", "One layer's outliers", outliers)
    if held:
        yield Section("bytes", "Where the bytes are", [tree_chart(report, name) for report, name in held])
    yield Section("failures", "What failed", _failures(inputs))
    yield Section("words", "Words", [Table("As they are used on this page", ("word", "meaning"), WORDS)])


def _outliers(inputs: Inputs, closeup: Closeup) -> list[Block]:
    stores = [subject.path for subject in inputs.subjects if subject.is_store and subject.path is not None]
    if not stores:
        raise ConfigError(
            f"{asked('source', str(closeup.source))}: shows a layer before and after, which takes a store; give one, or drop it"
        )
    return [
        *outlier_charts(find_outliers(QuantizedStore(stores[0]), open_checkpoint(closeup.source), closeup.text, closeup.layer))
    ]


def _samples(inputs: Inputs) -> list[Block]:
    said = [
        (
            subject.name,
            "as the source, token for token"
            if found.first_difference is None
            else f"the source until token {found.first_difference}",
            found.sample,
        )
        for subject, found in measured_subjects(inputs.subjects)
        if found.sample is not None
    ]
    if not said:
        return []
    own = [] if inputs.sample is None else [("source", "", inputs.sample)]
    return [
        Text(f"Each goes on after the same words, always with its favourite token: {inputs.prompt or ''}"),
        Samples([*own, *said]),
    ]


def _failures(inputs: Inputs) -> list[Block]:
    errors = [(subject.name, subject.error) for subject in inputs.subjects if subject.error is not None]
    misses: list[list[Cell]] = [
        [subject.name, check.name, check.tensor, Number(f"{check.error:.3g}"), Number(f"{check.tolerance:.3g}")]
        for subject in inputs.subjects
        if subject.verified is not None
        for check in subject.verified.misses
    ]
    blocks = list[Block]()
    if errors:
        blocks.append(Table("Files that could not be measured", ("file", "why"), errors))
    if misses:
        shown = (
            f"Checks that missed, the first {SHOWN_MISSES} of {len(misses):,}"
            if len(misses) > SHOWN_MISSES
            else "Checks that missed"
        )
        blocks.append(Table(shown, ("file", "check", "where", "error", "allowed"), misses[:SHOWN_MISSES]))
    return blocks or [Text(_nothing_failed(inputs))]


def _nothing_failed(inputs: Inputs) -> str:
    checks = sum(subject.verified.checks for subject in inputs.subjects if subject.verified is not None)
    measured = len(measured_subjects(inputs.subjects))
    if not checks and not measured:
        return "Nothing was verified or measured, so nothing could fail."
    return f"Nothing that was given failed: {checks:,} checks of `adadim verify`, {measured} measurements."

"""Files of any tool side by side: measured on the same text, asked the same, the source run once for all of them.

All files are open at once, so that no logits have to be kept: memory is the source in float32 and each file as its runtime
holds it. What cannot be measured becomes a row that says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.inspect import inspect
from quantize.checkpoint.protocol import Checkpoint
from quantize.errors import AdaDimError, ConfigError, asked
from quantize.kinds import readable
from quantize.progress import track
from quantize.statistics.calibration import CalibrationText, detokenize, tokenize
from runtime_checks.measure.divergence import Scores
from runtime_checks.measure.evaluate import EvalOptions, cost, open_runner, predictions, score, summary, text_chunks
from runtime_checks.runtimes.isolated import isolated_runner, source_runner
from runtime_checks.runtimes.runners import Runner

Report = dict[str, Any]
PROMPT = "The capital of France is"
GREEDY_TOKENS = 32


@dataclass
class _Entry:
    """A file on its way to becoming a row; an error ends its way, not that of the others."""

    path: Path
    row: Report = field(default_factory=dict)
    error: str | None = None
    runner: Runner | None = None
    parts: list[Scores] = field(default_factory=list)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """What fails in the block is said in the row."""
        try:
            yield
        except OSError as error:
            self._fail(f"{error.filename or self.path}: {error.strerror or error}")
        except AdaDimError as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        self.error = " ".join(reason.split()).removeprefix(f"{self.path}: ")
        self.close()

    def close(self) -> None:
        """Give back what the runtime holds."""
        if self.runner is not None:
            self.runner.close()
        self.runner = None

    def report(self) -> Report:
        """The row."""
        return {"name": readable(self.path)} | (self.row if self.error is None else {"error": self.error})


def compare_files(
    paths: Sequence[Path], source: Checkpoint, text: CalibrationText, options: EvalOptions, prompt: str = PROMPT
) -> Report:
    """``{"source", "text", "chunks", "prompt", "sample", "files": [row]}``, rows in the order of ``paths``.

    A row has ``name`` and the keys of ``evaluate``, ``bits_per_weight`` (of the linears), ``grids`` (grid -> number of
    matrices), ``first_difference`` (the first of GREEDY_TOKENS greedy tokens after ``prompt`` that is not the source's, or
    None) and ``sample``, what they say; or ``name`` and ``error``. The source's own ``sample`` stands beside the rows.

    Raises CalibrationError or ConfigError for a text, a context or a prompt with which no file could be measured.
    """
    chunks = text_chunks(source, text.text, options)
    continuation = _Continuation(source, prompt, options)
    entries = [_Entry(path) for path in paths]
    for entry in entries:
        with entry.attempt():
            entry.row |= _contents(entry.path)
            entry.runner = open_runner(entry.path, source, options)
    if _open(entries):
        base = source_runner(source, options.context)
        for tokens in track(chunks, "comparing", len(chunks)):
            expected = predictions(base, tokens)
            for entry, runner in _open(entries):
                with entry.attempt():
                    entry.parts.append(score(entry.path, expected, runner, tokens))
        continuation.listen(base)
        base.close()
    for entry, runner in _open(entries):
        with entry.attempt():
            entry.row |= summary(entry.parts) | cost(entry.path, runner, options) | continuation.row(runner)
        entry.close()
    about = {
        "source": readable(source.path.name),
        "text": text.name,
        "chunks": len(chunks),
        "prompt": prompt,
        "sample": continuation.sample,
    }
    return about | {"files": [entry.report() for entry in entries]}


def describe_files(paths: Sequence[Path], options: EvalOptions) -> Report:
    """The same without a source: what the files hold, and how fast they are."""
    entries = [_Entry(path) for path in paths]
    for entry in entries:
        with entry.attempt():
            entry.row |= _contents(entry.path)
            entry.runner = isolated_runner(entry.path, options.context)
            entry.row |= cost(entry.path, entry.runner, options)
        entry.close()
    return {"source": None, "files": [entry.report() for entry in entries]}


class _Continuation:
    """What the source goes on with after a prompt, and the files."""

    def __init__(self, source: Checkpoint, prompt: str, options: EvalOptions) -> None:
        """Raises ConfigError if the context leaves no room for an answer."""
        self._prompt = tokenize(prompt, source)
        self._count = min(GREEDY_TOKENS, options.context - len(self._prompt))
        if not len(self._prompt) or self._count < 1:
            raise ConfigError(
                f"{asked('prompt')}: has {len(self._prompt)} tokens, {asked('context', options.context)} takes 1 to "
                f"{options.context - 1}"
            )
        self._source = source
        ends = source.config.raw.get("eos_token_id")
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._expected = list[int]()
        self.sample: str | None = None

    def listen(self, source: Runner) -> None:
        """To the source, before any file."""
        self._expected = self._answer(source)
        self.sample = self._decode(self._expected)

    def row(self, runner: Runner) -> Report:
        """Where a file first says something else, and what it says."""
        found = self._answer(runner)
        differences = (index for index, pair in enumerate(zip(self._expected, found, strict=False)) if pair[0] != pair[1])
        return {"first_difference": next(differences, None), "sample": self._decode(found)}

    def _decode(self, ids: list[int]) -> str:
        return detokenize(ids, self._source)

    def _answer(self, runner: Runner) -> list[int]:
        """Up to the token that ends it, with which some runtimes stop and others go on."""
        tokens = runner.greedy(self._prompt, self._count)
        ends = (index for index, token in enumerate(tokens) if token in self._ends)
        return tokens[: next(ends, len(tokens) - 1) + 1]


def _open(entries: Sequence[_Entry]) -> list[tuple[_Entry, Runner]]:
    return [(entry, entry.runner) for entry in entries if entry.runner is not None]


def _contents(path: Path) -> Report:
    report = inspect(path)
    grids = Counter(_grid(item) for item in report["tensors"] if len(item["shape"]) == 2)
    return {"bits_per_weight": report["totals"]["bits_per_weight"], "grids": dict(sorted(grids.items()))}


def _grid(item: Report) -> str:
    """As a person writes it: q4_0, int4 group 64, int3 group 32 per_ic."""
    name = f"int{item['bits']} group {item['group_size']}" if item["grid"] == "int" else str(item["grid"])
    return f"{name} per_ic" if item["axis"] == "per_ic" else name

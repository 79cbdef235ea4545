"""``adadim run``: quantize, export and verify for each target; of several sizes or widths it makes a ladder, and measures it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.compare import measuring_text, naming
from exporter.cli.convert import needs_template
from exporter.cli.export import Made, RunOutputs, found, write
from exporter.cli.formats import DTYPES
from exporter.cli.process import say, warn
from exporter.cli.reports import json_bytes, page_of, report_of
from exporter.cli.size import model_plan, planned_size, size_plans
from exporter.cli.spelling import quantize_config
from exporter.cli.summary import checks_summary, store_summary
from exporter.cli.ways import Rung, Wanted, Way, wanted_of, ways_of
from exporter.writers import source_notes, writer_of
from quantize.config import BUILTIN
from quantize.errors import ConfigError
from quantize.statistics.calibration import CalibrationText
from quantize.store.output_place import free_space
from quantize.store.outputs import check_file, new_file

if TYPE_CHECKING:
    from quantize.checkpoint import Checkpoint
    from quantize.planning.plan import ModelPlan
    from quantize.statistics.measured import Measured
    from quantize.store.tensors import QuantizedStore

CHUNKS = 8  # of 512 tokens, which is enough to tell sizes apart
MOST_BYTES = 5  # of a weight in a file: a float32, and its share of a graph and a tokenizer
STORE_BYTES = 1.1  # of a weight in a store: a code, and its share of scales


def run(args: Namespace) -> int:
    """All that was asked for; 1 if a check missed, or a file could not be measured."""
    from quantize import open_checkpoint

    out = args.out or default_out(args.source)
    given = None if needs_template(args.source) else open_checkpoint(args.source, args.torch)
    wanted = wanted_of(args, given, out)
    ladder = Ladder(args, out) if len({rung.name for each in wanted for rung in each.rungs}) > 1 else None
    _check_options(args, ladder, wanted, given)
    ways = ways_of(args, out, wanted, given)
    for way in ways:
        for target in way.wanted.targets:
            writer_of(target).check(way.source, args.tokenizer_pre)
    warn(dict.fromkeys(note for way in ways for target in way.wanted.targets for note in source_notes(way.source, target)))
    made = [_made(args, out, way, ladder) for way in ways]  # all, whatever one misses
    return 0 if all(made) else 1


def _made(args: Namespace, out: Path, way: Way, ladder: Ladder | None) -> bool:
    """Whether all checks held, and all could be measured."""
    from quantize.statistics.measured import Measured

    source, rungs, outputs = way.source, way.wanted.rungs, way.wanted.outputs
    absent = [index for index, each in enumerate(outputs) if args.force or not each.store.exists()]
    if args.sizes:  # known before their plans, which take long to make
        _check_disk(source, out, len(absent), lambda: sum(rungs[index].size or 0 for index in absent))
    measured = Measured(source)
    plans = _plans(args, measured, rungs)
    if not args.sizes:
        _check_disk(source, out, len(absent), lambda: sum(planned_size(args, source, plans[index]) for index in absent))
    outputs = [each.placed(args, source, plan) for plan, each in zip(plans, outputs, strict=True)]
    made = [found(args, source, plan, each) for plan, each in zip(plans, outputs, strict=True)]  # before any work
    ok = _verified(args, source, made, _written(args, measured, plans, made))
    return ok and (ladder is None or ladder.measured(source, outputs))


def default_out(source: Path) -> Path:
    """Where ``run`` writes if nobody says: in this folder, named after the model."""
    return Path(f"{source.resolve().with_suffix('').name if source.is_file() else source.resolve().name}-adadim")


def _check_options(args: Namespace, ladder: Ladder | None, wanted: Sequence[Wanted], given: Checkpoint | None) -> None:
    """Before any work. Raises ConfigError for options that say how to measure where nothing is measured, for files of two
    sources, and for what no file takes; OutputError for what would not be replaced."""
    if ladder is not None and len(wanted) > 1:
        raise ConfigError("--target: files of one source are measured side by side; name targets of one format")
    if args.onnx_dtype != DTYPES[0] and all(each.writer != "onnx" for each in wanted):
        raise ConfigError("--onnx-dtype: is for ONNX folders, and none is made; drop it, or use --target onnxruntime")
    converts = {"--tokenizer-pre": args.tokenizer_pre, "--converter": args.converter}
    for option in (option for option, value in converts.items() if value is not None and given is None):
        if all(each.writer != "gguf" for each in wanted):
            raise ConfigError(f"{option}: is for GGUF files, and none is made; drop it, or use --target llama.cpp")
    for place in (place for each in wanted for place in each.outputs):
        place.check(args.force, args.split_size is None)
    if ladder is None and (args.text is not None or args.chunks is not None):
        raise ConfigError("--text, --chunks: measure a ladder; ask for some with --sizes or --bits, or use `adadim compare`")


def _plans(args: Namespace, measured: Measured, rungs: Sequence[Rung]) -> list[ModelPlan]:
    """One for each, in their order; what a target's sizes rest on is measured once."""
    config = quantize_config(args, measured.source)
    plans: dict[Rung, ModelPlan] = {}
    for target in dict.fromkeys(rung.target for rung in rungs):
        own = [rung for rung in rungs if rung.target == target]
        if args.sizes:
            sizes = [rung.size for rung in own if rung.size is not None]
            plans |= zip(own, size_plans(args, config, measured, target, sizes), strict=True)
        else:
            plans |= {
                rung: model_plan(args, replace(config, grid=replace(config.grid, bits=rung.bits)), measured, target)
                for rung in own
            }
    return [plans[rung] for rung in rungs]


def _check_disk(source: Checkpoint, out: Path, count: int, sizes: Callable[[], int]) -> None:
    """Raises ConfigError if ``count`` files of that many bytes and their stores will not fit, before any work."""
    weights = sum(spec.size for spec in source.specs.values())
    free, stores = free_space(out), count * int(STORE_BYTES * weights)
    if stores + count * MOST_BYTES * weights <= free:
        return  # whatever they take, which a graph would have to be planned for
    needed = stores + sizes()
    if needed > free:
        raise ConfigError(
            f"{out}: {count} stores and files take about {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; "
            "free some, or ask for less"
        )


def _written(args: Namespace, measured: Measured, plans: Sequence[ModelPlan], made: Sequence[Made]) -> list[QuantizedStore]:
    """Every store and its file; what an earlier run of the same command has made is taken."""
    from quantize.run.pipeline import quantize_planned

    pairs = zip(made, plans, strict=True)
    new = quantize_planned(measured, {each.outputs.store: plan for each, plan in pairs if each.store is None}, args.force)
    by_path = {store.path: store for store in new}
    stores = [each.store or by_path[each.outputs.store] for each in made]
    for each, store in zip(made, stores, strict=True):
        if each.store is None:
            say(store_summary(store))
        if not each.exported:
            say(write(args, store, each.outputs.out, each.outputs.writer))
    return stores


def _verified(args: Namespace, source: Checkpoint, made: Sequence[Made], stores: Sequence[QuantizedStore]) -> bool:
    from runtime_checks.checks.verify import verify_all
    from runtime_checks.measure.results import checks_report

    missing = {each.outputs.path: store for each, store in zip(made, stores, strict=True) if each.report is None}
    found_now = dict(zip(missing, map(checks_report, verify_all(missing, source)), strict=True))
    verdicts = []
    for each in made:
        report = each.report
        if report is None:
            report = found_now[each.outputs.path]
            with new_file(each.outputs.report, args.force, report_of("verify")) as file:
                file.write(json_bytes(report))
        say("\n".join([*each.taken(), checks_summary(report, str(each.outputs.path))]))
        verdicts.append(bool(report["ok"]))
    return all(verdicts)


@dataclass(frozen=True)
class Ladder:
    """What tells the files of a ladder apart: ``compare.json`` and ``report.html`` beside them."""

    args: Namespace
    out: Path

    def __post_init__(self) -> None:
        """Raises OutputError, CalibrationError and ModuleNotFoundError before any work."""
        import_module("vl_convert")
        check_file(self.out / "compare.json", self.args.force, report_of("compare"))
        check_file(self.out / "report.html", self.args.force, page_of)
        self.text()

    def text(self) -> CalibrationText:
        """What is measured on. Raises CalibrationError."""
        return measuring_text(self.args.text or BUILTIN)

    def measured(self, source: Checkpoint, outputs: Sequence[RunOutputs]) -> bool:
        """Whether all could be."""
        from runtime_checks.measure.compare import compare_files
        from runtime_checks.measure.evaluate import EvalOptions
        from runtime_checks.report.advice import advise
        from runtime_checks.report.compare import compare_table
        from runtime_checks.report.data import Paths, read_inputs
        from runtime_checks.report.write import report_page

        text, paths = self.text(), [each.path for each in outputs]
        with new_file(self.out / "compare.json", self.args.force, report_of("compare")) as file, naming(text):
            report = compare_files(paths, source, text, EvalOptions(chunks=self.args.chunks or CHUNKS))
            file.write(json_bytes(report))
        say(compare_table(report))
        verified = [(str(each.path), each.report) for each in outputs]
        inputs = read_inputs(Paths(paths, [self.out / "compare.json"], [], verified, []))
        with new_file(self.out / "report.html", self.args.force, page_of) as file:
            file.write(report_page(inputs, None)[0])
        answer = advise(inputs.subjects)
        say(f"{self.out / 'report.html'}: {answer.head}: {answer.text}")
        return not any("error" in row for row in report["files"])

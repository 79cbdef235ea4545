"""The command ``adadim``: argparse -> one call each. It composes: only it and ``run`` may import everything.

Exit codes: 0 done; 1 ``verify`` (alone, in ``run`` or of a bundle) found a miss, or ``compare`` could not measure a file;
2 bad input, said in one line; 130 interrupted, 143 terminated, 129 hung up.
What a command needs is imported inside it: ``adadim --help`` is quick, and nothing asks for a library that it does not use.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exporter.cli.architecture import PRE, architecture_table
from exporter.cli.bundle import VERIFY, bundle, verified_bundle
from exporter.cli.completion import completion
from exporter.cli.convert import convert_source
from exporter.cli.doctor import doctor, requirements
from exporter.cli.finetune import finetune_source
from exporter.cli.methods import methods_report, methods_table
from exporter.cli.options import build_parser
from exporter.cli.process import finished, guarded, prepare_streams, quiet_libraries, say, warn
from exporter.cli.reports import json_output, page_of
from exporter.cli.size import has_target_size, model_plan, noise_levels
from exporter.cli.spelling import quantize_config
from exporter.cli.summary import calibration_rows, checks_summary, inspect_summary, store_summary, table
from exporter.cli.text import kept_texts
from exporter.cli.values import check_whole
from exporter.targets import TARGETS
from exporter.writers import source_notes, writer_of
from quantize.errors import ConfigError
from quantize.kinds import Kind, Wanted, kind_of, mistaken
from quantize.progress import silence
from quantize.store.outputs import new_file
from quantize.telemetry import stay_offline


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    stay_offline()
    prepare_streams()
    if argv is None:
        quiet_libraries()
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:
        raise SystemExit(finished(int(stop.code or 0))) from None
    if getattr(args, "quiet", False):
        silence()
    return finished(guarded(_run_command, args))


def _run_command(args: Namespace) -> int:
    with kept_texts(args):
        return COMMANDS[args.command](args)


def _quantize(args: Namespace) -> int:
    from quantize import open_checkpoint
    from quantize.run.pipeline import planned_store, quantize_planned
    from quantize.statistics.measured import Measured
    from quantize.store.writer import check_store_output

    if args.dry_run and not has_target_size(args):
        raise ConfigError("--dry-run: shows the plan for a file's size; give --target-size or --target-bpw")
    if args.out is not None:
        check_store_output(args.out, args.force)
    source = open_checkpoint(args.source, args.torch)
    writer_of(args.target).check(source, tokenizer_pre="")  # `export` may name it
    warn(source_notes(source, args.target))
    measured = Measured(source)
    plan = model_plan(args, quantize_config(args, source), measured, args.target)
    if args.dry_run:
        with planned_store(source, plan) as store:
            say(store_summary(store, f"{args.source}, planned"))
    else:
        say(store_summary(quantize_planned(measured, {args.out: plan}, args.force)[0]))
    return 0


def _sensitivity(args: Namespace) -> int:
    from quantize import open_checkpoint
    from quantize.planning.sensitivity import measure_sensitivity
    from quantize.statistics.measured import Measured

    levels = noise_levels(args)
    with new_file(args.out, args.force) as file:
        source = open_checkpoint(args.source, args.torch)
        writer_of(args.target).check(source, tokenizer_pre="")
        sensitivity = measure_sensitivity(Measured(source), quantize_config(args, source), TARGETS[args.target], levels)
        file.write(sensitivity.to_json())
    warn([] if sensitivity.noise is None else sensitivity.noise.notes())
    say(f"{args.out}: {sum(map(len, sensitivity.options.values())):,} options of {len(sensitivity.options)} tensors")
    return 0


def _export(args: Namespace) -> int:
    from exporter.cli.export import export

    say(export(args))
    return 0


def _verify(args: Namespace) -> int:
    from quantize import open_checkpoint
    from quantize.store.tensors import QuantizedStore
    from runtime_checks.checks.verify import verify
    from runtime_checks.measure.results import checks_report

    check_whole(args.path)
    with json_output(args) as save:
        store = None if args.store is None else QuantizedStore(args.store)
        report = checks_report(verify(args.path, open_checkpoint(args.source), store))
        save(report)
    say(checks_summary(report, str(args.path)))
    return 0 if report["ok"] else 1


def _eval(args: Namespace) -> int:
    from exporter.cli.compare import measuring_text, naming
    from quantize import open_checkpoint
    from quantize.activations.rules import Rules
    from runtime_checks.measure.evaluate import EvalOptions, evaluate

    check_whole(args.path)
    rules = None if args.activations is None else Rules.parse(args.activations)
    options = EvalOptions(args.context, args.chunks, args.weights_only, rules)
    with json_output(args) as save:
        text = measuring_text(args.text)
        with naming(text):
            report = evaluate(args.path, open_checkpoint(args.source), text.text, options)
        save(report)
    rows = [(key, f"{value:,.10g}" if isinstance(value, float) else str(value)) for key, value in report.items()]
    say(table(str(args.path), rows))
    return 0


def _compare(args: Namespace) -> int:
    from exporter.cli.compare import check_compare
    from runtime_checks.report.compare import compare_page, compare_table

    check_compare(args)
    check_whole(*args.paths)
    with json_output(args) as save:
        if args.html is None:
            report = _compared(args)
        else:
            with new_file(args.html, args.force, page_of) as file:
                report = _compared(args)
                file.write(compare_page(report))
        save(report)
    say(compare_table(report))
    return 1 if any("error" in row for row in report["files"]) else 0


def _compared(args: Namespace) -> dict[str, Any]:
    from exporter.cli.compare import measuring_text, naming
    from quantize import open_checkpoint
    from runtime_checks.measure.compare import PROMPT, compare_files, describe_files
    from runtime_checks.measure.evaluate import EvalOptions

    options = EvalOptions(args.context, args.chunks, args.weights_only)
    if args.source is None:
        return describe_files(args.paths, options)
    text = measuring_text(args.text)
    with naming(text):
        return compare_files(args.paths, open_checkpoint(args.source), text, options, args.prompt or PROMPT)


def _report(args: Namespace) -> int:
    from runtime_checks.report.data import Paths
    from runtime_checks.report.write import Closeup, write_report

    if args.source is None and (args.calibration or args.layer):
        raise ConfigError("--calibration and --layer show a layer of the source; name it with --source")
    names = ("models", "comparisons", "evaluations", "verifications", "references")
    closeup = None if args.source is None else Closeup(args.source, args.calibration, args.layer)
    titles = write_report(Paths(**{name: getattr(args, name) for name in names}), closeup, args.out, args.force)
    size = f"{args.out.stat().st_size:,} bytes, " if args.out.is_file() else ""
    say(f"{args.out}: {size}{', '.join(titles)}")
    return 0


def _inspect(args: Namespace) -> int:
    from exporter.inspect import check_loads, inspect

    check_whole(args.path, wanted=(Wanted.FILE, Wanted.STORE))
    report = inspect(args.path)
    say(json.dumps(report, indent=1) if args.json else inspect_summary(report, str(args.path)))
    check_loads(args.path)  # after what there is to see
    return 0


def _imatrix(args: Namespace) -> int:
    from quantize import open_checkpoint
    from quantize.statistics.imatrix import make_imatrix

    source = open_checkpoint(args.source)
    coverage = make_imatrix(source, args.out, quantize_config(args, source).data, args.force)
    say(table(str(args.out), calibration_rows(coverage.to_json())))
    return 0


def _bench(args: Namespace) -> int:
    from exporter.cli.bench import bench_table
    from runtime_checks.measure.kernel_bench import BenchOptions, bench_kernel

    asked = {name: getattr(args, name) for name in ("shapes", "threads") if getattr(args, name)}
    with json_output(args) as save:
        rows = bench_kernel(BenchOptions(**asked))
        save(rows)
    say(bench_table(rows))
    return 0


def _bundle(args: Namespace) -> int:
    check_whole(args.path)
    say(bundle(args))
    return 0


def _verify_bundle(args: Namespace) -> int:
    if kind_of(args.path) not in (Kind.BUNDLE, None):
        raise ConfigError(mistaken(args.path, Wanted.BUNDLE))
    code, said = verified_bundle(args)
    say(said)
    return code


def _methods(args: Namespace) -> int:
    report = methods_report()
    say(json.dumps(report, indent=1) if args.json else methods_table(report))
    return 0


def _doctor(args: Namespace) -> int:
    if args.install:
        from quantize.template.converter import install_converter

        say(f"{install_converter()}: installed")
    else:
        say(doctor(requirements()))
    return 0


def _check_architecture(args: Namespace) -> int:
    from quantize.template.converter import find_converter
    from runtime_checks.checks.architecture_check import check_architecture

    with TemporaryDirectory() as work:
        found = check_architecture(args.source, Path(work), find_converter(args.converter), PRE)
    say(json.dumps(found.report(), indent=1) if args.json else architecture_table(found.report()))
    return 1 if any(went.refused or went.missed for went in (found.gguf, found.onnx)) else 0


def _completion(args: Namespace) -> int:
    say(completion(build_parser(), args.shell), end="")
    return 0


def _run(args: Namespace) -> int:
    from exporter.cli.run import run

    return run(args)


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "quantize": _quantize,
    "export": _export,
    "verify": _verify,
    "eval": _eval,
    "compare": _compare,
    "report": _report,
    "inspect": _inspect,
    "run": _run,
    "sensitivity": _sensitivity,
    "imatrix": _imatrix,
    "bench": _bench,
    "bundle": _bundle,
    VERIFY: _verify_bundle,
    "methods": _methods,
    "doctor": _doctor,
    "completion": _completion,
    "convert": convert_source,
    "finetune": finetune_source,
    "check-architecture": _check_architecture,
}

if __name__ == "__main__":
    sys.exit(main())

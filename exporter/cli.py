"""The command ``adadim``: argparse -> one call each. The composition root, the only file that may import everything.

Exit codes: 0 done; 1 ``verify`` (alone, in ``run`` or of a bundle) found a miss, or ``compare`` could not measure a file;
2 bad input, said in one line; 130 interrupted.
What a command needs is imported inside it: ``adadim --help`` is quick, and nothing asks for a library that it does not use.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import verify_bundle
from exporter.cli_bundle import VERIFY, bundle, joined_command
from exporter.cli_completion import completion
from exporter.cli_options import DEFAULT_RUN_TARGETS, build_parser, quantize_config
from exporter.cli_size import has_target_size, model_plan
from exporter.doctor import EXTRAS, doctor, requirements
from exporter.preflight import check_source, source_notes
from exporter.summary import calibration_rows, checks_summary, inspect_summary, store_summary, table
from exporter.targets import TARGETS
from quantize.errors import AdaDimError, ConfigError, printable
from quantize.kinds import Kind, Wanted, kind_of, mistaken
from quantize.outputs import check_file, new_file
from quantize.progress import silence

if TYPE_CHECKING:
    from exporter.cli_export import RunOutputs
    from quantize.checkpoint import Checkpoint
    from quantize.plan import ModelPlan
    from quantize.store import QuantizedStore


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(joined_command(list(sys.argv[1:] if argv is None else argv)))
    if getattr(args, "quiet", False):
        silence()
    try:
        return COMMANDS[args.command](args)
    except AdaDimError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        return _fail(f"{package} is not installed; pip install 'adadim-edge[{EXTRAS[package]}]'")
    except OSError as error:
        where = error.filename or getattr(args, "out", None) or getattr(args, "json", None) or args.command
        return _fail(f"{where}: {error.strerror or error}; check the path, its permissions and the free space")
    except KeyboardInterrupt:
        print("adadim: interrupted", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    print(f"adadim: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _quantize(args: Namespace) -> int:
    from quantize import open_checkpoint
    from quantize.pipeline import planned_store, quantize_planned
    from quantize.store import check_store_output

    if args.dry_run and not has_target_size(args):
        raise ConfigError("--dry-run: shows the plan for a file's size; give --target-size or --target-bpw")
    if args.out is not None:
        check_store_output(args.out, args.force)
    source = open_checkpoint(args.source)
    check_source(source, args.target, tokenizer_pre="")  # `export` may name it
    _print_notes(source, args.target)
    plan = model_plan(args, quantize_config(args), source, args.target)
    if args.dry_run:
        with planned_store(source, plan) as store:
            print(store_summary(store, f"{args.source}, planned"))
    else:
        print(store_summary(quantize_planned(source, args.out, plan, args.force)))
    return 0


def _print_notes(source: Checkpoint, target: str) -> None:
    for note in source_notes(source, target):
        print(f"adadim: warning: {printable(note)}", file=sys.stderr)


def _sensitivity(args: Namespace) -> int:
    from quantize import open_checkpoint
    from quantize.sensitivity import measure_sensitivity

    check_file(args.out, args.force)
    source = open_checkpoint(args.source)
    check_source(source, args.target, tokenizer_pre="")
    sensitivity = measure_sensitivity(source, quantize_config(args), TARGETS[args.target])
    with new_file(args.out, args.force) as file:
        file.write(sensitivity.to_json())
    print(f"{args.out}: {sum(map(len, sensitivity.options.values())):,} options of {len(sensitivity.options)} tensors")
    return 0


def _export(args: Namespace) -> int:
    from exporter.cli_export import export

    print(export(args))
    return 0


def _verify(args: Namespace) -> int:
    from quantize import open_checkpoint
    from quantize.store import QuantizedStore

    store = None if args.store is None else QuantizedStore(args.store)
    report = _run_checks(args.path, open_checkpoint(args.source), store)
    if args.json is not None:
        _write_json(args.json, report)
    return 0 if report["ok"] else 1


def _run_checks(path: Path, source: Checkpoint, store: QuantizedStore | None) -> dict[str, Any]:
    """Verify and say how it went; returns the report with its fixed keys."""
    from runtime_checks.verify import verify

    checks = verify(path, source, store)
    report = {"ok": bool(checks) and all(check.ok for check in checks), "checks": [check.to_json() for check in checks]}
    print(checks_summary(report, str(path)))
    return report


def _eval(args: Namespace) -> int:
    from exporter.cli_compare import measuring_text, naming
    from quantize import open_checkpoint
    from runtime_checks.evaluate import EvalOptions, evaluate

    options = EvalOptions(args.context, args.chunks, args.weights_only)
    text = measuring_text(args.text)
    with naming(text):
        report = evaluate(args.path, open_checkpoint(args.source), text.text, options)
    rows = [(key, f"{value:,.10g}" if isinstance(value, float) else str(value)) for key, value in report.items()]
    print(table(str(args.path), rows))
    if args.json is not None:
        _write_json(args.json, report)
    return 0


def _compare(args: Namespace) -> int:
    from exporter.cli_compare import check_compare, measuring_text, naming
    from quantize import open_checkpoint
    from runtime_checks.compare import PROMPT, compare_files, describe_files
    from runtime_checks.compare_report import compare_page, compare_table
    from runtime_checks.evaluate import EvalOptions

    check_compare(args)
    options = EvalOptions(args.context, args.chunks, args.weights_only)
    if args.source is None:
        report = describe_files(args.paths, options)
    else:
        text = measuring_text(args.text)
        with naming(text):
            report = compare_files(args.paths, open_checkpoint(args.source), text, options, args.prompt or PROMPT)
    print(compare_table(report))
    if args.json is not None:
        _write_json(args.json, report)
    if args.html is not None:
        with new_file(args.html, force=True) as file:
            file.write(compare_page(report))
    return 1 if any("error" in row for row in report["files"]) else 0


def _report(args: Namespace) -> int:
    from runtime_checks.report import Closeup, write_report
    from runtime_checks.report_data import Paths

    if args.source is None and (args.calibration or args.layer):
        raise ConfigError("--calibration and --layer show a layer of the source; name it with --source")
    names = ("models", "comparisons", "evaluations", "verifications", "references")
    closeup = None if args.source is None else Closeup(args.source, args.calibration, args.layer)
    titles = write_report(Paths(**{name: getattr(args, name) for name in names}), closeup, args.out, args.force)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, {', '.join(titles)}")
    return 0


def _inspect(args: Namespace) -> int:
    from exporter.inspect import inspect

    report = inspect(args.path)
    print(json.dumps(report, indent=1) if args.json else inspect_summary(report, str(args.path)))
    return 0


def _imatrix(args: Namespace) -> int:
    from quantize import open_checkpoint
    from quantize.imatrix import make_imatrix

    coverage = make_imatrix(open_checkpoint(args.source), args.out, quantize_config(args), args.force)
    print(table(str(args.out), calibration_rows(coverage.to_json())))
    return 0


def _bench(args: Namespace) -> int:
    from exporter.cli_bench import bench_table
    from runtime_checks.kernel_bench import BenchOptions, bench_kernel

    asked = {name: getattr(args, name) for name in ("shapes", "threads") if getattr(args, name)}
    rows = bench_kernel(BenchOptions(**asked))
    print(bench_table(rows))
    if args.json is not None:
        _write_json(args.json, rows)
    return 0


def _bundle(args: Namespace) -> int:
    print(bundle(args))
    return 0


def _verify_bundle(args: Namespace) -> int:
    if kind_of(args.path) not in (Kind.BUNDLE, None):
        raise ConfigError(mistaken(args.path, Wanted.BUNDLE))
    return verify_bundle.report(args.path, args.digest)


def _doctor(args: Namespace) -> int:
    print(doctor(requirements()))
    return 0


def _completion(args: Namespace) -> int:
    print(completion(build_parser(), args.shell), end="")
    return 0


def _run(args: Namespace) -> int:
    from exporter.cli_export import RunOutputs
    from quantize import open_checkpoint

    outputs = {target: RunOutputs.under(args.out, target) for target in args.target or DEFAULT_RUN_TARGETS}
    for each in outputs.values():
        each.check(args.force)
    source = open_checkpoint(args.source)
    for target in outputs:
        check_source(source, target, args.tokenizer_pre)
        _print_notes(source, target)
    plans = [model_plan(args, quantize_config(args), source, target) for target in outputs]
    verdicts = [_run_target(args, source, plan, outputs[plan.target.name]) for plan in plans]
    return 0 if all(verdicts) else 1


def _run_target(args: Namespace, source: Checkpoint, plan: ModelPlan, outputs: RunOutputs) -> bool:
    from exporter.cli_export import write
    from quantize.pipeline import quantize_planned

    store = quantize_planned(source, outputs.store, plan, args.force)
    print(store_summary(store))
    print(write(args, store, outputs.path, outputs.file_format))
    report = _run_checks(outputs.path, source, store)
    _write_json(outputs.report, report)
    return bool(report["ok"])


def _write_json(path: Path, report: dict[str, Any] | list[dict[str, Any]]) -> None:
    with new_file(path, force=True) as file:
        file.write((json.dumps(report, indent=1) + "\n").encode())


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
    "doctor": _doctor,
    "completion": _completion,
}

if __name__ == "__main__":
    sys.exit(main())

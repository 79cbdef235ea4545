"""``adadim doctor``: what is installed, and what each command and target still needs. Imports nothing of it."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from exporter.cli.summary import Row, table
from exporter.onnx.library import custom_op_path
from quantize.errors import ConfigError, ExportError
from quantize.template.converter import find_converter

PACKAGE = "adadim-edge"
REQUIREMENT = re.compile(r"([\w.-]+?)((?:[<>=!~]=?[\w.*]+,?)*)(?:; extra == ['\"](\w+)['\"])?")
EXTRAS = {  # top-level module -> the extra that brings it
    **dict.fromkeys(("torch", "transformers", "sentencepiece"), "torch"),
    **dict.fromkeys(("onnx", "onnx_ir", "mobius"), "onnx"),
    **dict.fromkeys(("onnxruntime", "onnxruntime_genai", "xllamacpp"), "runtimes"),
    "vl_convert": "report",
}
COMMANDS = {  # what is done -> the extras that it takes
    "quantize --effort fast --method rtn-oc, or by --imatrix": (),
    "quantize, run, sensitivity, imatrix, finetune, convert": ("torch",),
    "export gguf, bundle FILE.gguf, bundle verify, inspect, methods, completion": (),
    "export onnx, bundle DIR": ("onnx",),
    "verify, eval, compare, check-architecture": ("torch", "onnx", "runtimes"),
    "compare --html": ("torch", "onnx", "runtimes", "report"),
    "report": ("onnx", "report"),
    "report --calibration": ("torch", "onnx", "report"),
    "bench kernel": ("onnx", "runtimes"),
}
TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {  # to write a file, to run it here
    "llama.cpp": ((), ("runtimes",)),
    "gguf-adadim": ((), None),
    "onnxruntime": (("onnx",), ("runtimes",)),
    "onnxruntime+adadim": (("onnx",), ("runtimes",)),
    "onnxruntime-w8a8": (("onnx",), ("runtimes",)),
}


@dataclass(frozen=True)
class Requirement:
    """One library of the package's metadata; ``extra`` "" if nothing runs without it."""

    name: str
    wanted: str
    extra: str
    found: str | None

    @property
    def problem(self) -> str | None:
        """Why it will not do."""
        if self.found is None:
            return "missing"
        for sign, number in re.findall(r"(>=|==|<)([\d.]+)", self.wanted):
            have, want = _numbers(self.found), _numbers(number)
            if not {">=": have >= want, "==": have == want, "<": have < want}[sign]:
                return f"{self.found}, but {self.wanted} is needed"
        return None


def installed(name: str) -> str | None:
    """The version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def requirements(lines: Iterable[str] | None = None, find: Callable[[str], str | None] = installed) -> list[Requirement]:
    """What the package asks for, in its own order (default: by its metadata), but for its tests."""
    out = []
    for line in requires(PACKAGE) or () if lines is None else lines:
        match = REQUIREMENT.fullmatch(line)
        if match is not None and match[1] != PACKAGE and match[3] not in ("dev", "docs", "all"):
            out.append(Requirement(match[1], match[2], match[3] or "", find(match[1])))
    return out


def doctor(held: Sequence[Requirement]) -> str:
    """All of it, as a person reads it."""
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    libraries = [(item.name, item.problem or str(item.found)) for item in held]
    commands = [(name, _advice(held, extras) or "ready") for name, extras in COMMANDS.items()]
    targets = [(name, _target(held, write, run)) for name, (write, run) in TARGETS.items()]
    return "\n".join(
        [
            table(f"{PACKAGE} {installed(PACKAGE)}, {machine}", libraries),
            table("commands", commands),
            table("targets", targets),
            table("native library of onnxruntime+adadim", [_native_library()]),
            table("llama.cpp's converter, for models of any architecture", [_converter()]),
        ]
    )


def _target(held: Sequence[Requirement], write: Sequence[str], run: Sequence[str] | None) -> str:
    to_write = _advice(held, write)
    if to_write is not None or run is None:
        return to_write or "ready to be written; no stock program runs it"
    to_run = _advice(held, run)
    return "ready" if to_run is None else f"ready to be written; to run it here: {to_run}"


def _advice(held: Sequence[Requirement], extras: Sequence[str]) -> str | None:
    """None if all is there, or what is not and the command that brings it."""
    lacking = [item for item in held if item.extra in ("", *extras) and item.problem is not None]
    wanted = ",".join(dict.fromkeys(item.extra for item in lacking if item.extra))
    package = f"'{PACKAGE}[{wanted}]'" if wanted else PACKAGE
    return f"needs {', '.join(item.name for item in lacking)}; pip install {package}" if lacking else None


def _native_library() -> Row:
    try:
        return "built", str(custom_op_path())
    except ExportError:
        return "not built", "files run without it, exactly but slowly; in a checkout: tools/apt-packages.sh && make native"


def _converter() -> Row:
    try:
        return "installed", find_converter().name
    except ConfigError as error:
        return "not ready", str(error)


def _numbers(text: str) -> tuple[int, ...]:
    """Of a version, its suffix left out: 2.13.0+cpu is 2, 13, 0."""
    found = re.match(r"[\d.]*\d", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()

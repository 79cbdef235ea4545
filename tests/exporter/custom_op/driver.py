"""driver.cc from Python: models and inputs go out as files, outputs and errors come back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from tests.exporter.custom_op.cases import Case
from tests.native import built
from tools.fetch_runtime_sdk import PACKAGES

THREADS = "2"
CPUINFO = """processor\t: {}
Features\t: fp asimd
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd0c
CPU revision\t: 1

"""
# Mutexes that onnxruntime locks unseen would be reported when its threads wait on them.
SANITIZER_OPTIONS = {
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": f"report_mutex_bugs=0:suppressions={Path(__file__).parent / 'threads.supp'}",
}
HOST_RUNTIME = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))


@dataclass(frozen=True)
class Driver:
    """A build of the driver, the runtime and the library that it loads, and the processor that is emulated.

    ``callers``: so many threads call each session, and all sessions at once.
    """

    preset: str
    runtime: Path
    library: str = "libadadim_ort.so"
    emulator: tuple[str, ...] = ()
    callers: int = 1

    def __call__(self, cases: Sequence[Case], folder: Path, function: bool = False) -> list[np.ndarray | str]:
        """The output of each case, or the error. ``function``: let the portable body do it, without the library."""
        program = built(f"build/custom_op/{self.preset}/driver")
        library = "-" if function else str(program.with_name(self.library)) if "." in self.library else self.library
        lines = [_line(case, folder / str(number), function) for number, case in enumerate(cases)]
        emulator = (*self.emulator, "-L", str(_arm64_root(folder))) if self.preset == "linux-arm64" else self.emulator
        done = subprocess.run(
            [*emulator, str(program), str(self.runtime), library, THREADS, str(self.callers)],
            input="".join(lines),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | SANITIZER_OPTIONS,
        )
        answers = done.stdout.splitlines()
        assert done.returncode == 0 and len(answers) == len(cases), f"case {len(answers)}: {done.stderr[-6000:]}"
        return [
            _answer(answer, case, folder / str(number)) for number, (answer, case) in enumerate(zip(answers, cases, strict=True))
        ]


def _line(case: Case, folder: Path, function: bool) -> str:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(case.model(function))
    words = [str(folder / "model.onnx"), str(folder / "Y")]
    for name, value in case.fed.items():
        value.tofile(folder / name)
        words += [name, str(value.dtype), str(value.ndim), *map(str, value.shape), str(folder / name)]
    return " ".join(words) + "\n"


def _answer(answer: str, case: Case, folder: Path) -> np.ndarray | str:
    kind, _, rest = answer.partition(" ")
    if kind == "error":
        return rest
    return np.fromfile(folder / "Y", next(iter(case.inputs.values())).dtype).reshape([int(size) for size in rest.split()])


def _arm64_root(folder: Path) -> Path:
    """What an emulated arm64 program finds under /: its C library, and processors of its own kind, which onnxruntime looks up."""
    root = folder / "root"
    (root / "proc").mkdir(parents=True)
    (root / "lib").symlink_to("/usr/aarch64-linux-gnu/lib")
    processors = [CPUINFO.format(number) for number in range(os.cpu_count() or 1)]
    (root / "proc" / "cpuinfo").write_text("".join(processors))
    return root


def emulated_arm64(cpu: str) -> Driver:
    runtime = PACKAGES["arm64"].folder / "libonnxruntime.so"
    return Driver("linux-arm64", runtime, emulator=("qemu-aarch64", "-cpu", cpu))


def emulated_x86(cpu: str) -> Driver:
    return Driver("host", HOST_RUNTIME, emulator=("qemu-x86_64", "-cpu", cpu))


HOST = Driver("host", HOST_RUNTIME)
SANITIZED = Driver("sanitize", HOST_RUNTIME, "RegisterCustomOps")
THREADS_SANITIZED = Driver("sanitize-threads", HOST_RUNTIME, "RegisterCustomOps", callers=4)

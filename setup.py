"""What pyproject.toml cannot say: the native library, built where everything for it is there, and left out where not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCE = ROOT / "exporter" / "custom_op"
BUILD = ROOT / "build" / "custom_op" / "host"


def configure() -> str | None:
    """Prepare the build; what cmake says if the compiler, the headers, or cmake itself are missing."""
    if shutil.which("cmake") is None:
        return "cmake is not there"
    done = subprocess.run(["cmake", "--preset", "host"], cwd=SOURCE, check=False, capture_output=True, text=True)
    return " ".join(done.stderr.split()) if done.returncode else None


class BuildLibrary(build_ext):
    """Into the wheel, or into the source tree of an editable installation."""

    def run(self) -> None:
        """Build it with cmake, and install it under its own name."""
        prefix = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).absolute()
        subprocess.run(["cmake", "--build", BUILD], check=True)
        subprocess.run(["cmake", "--install", BUILD, "--prefix", prefix, "--strip"], check=True)

    def get_outputs(self) -> list[str]:
        """What a wheel lists."""
        return [str(Path(self.build_lib) / "exporter" / "custom_op" / "libadadim_ort.so")]


class AnyPython(bdist_wheel):
    """A library that does not know Python is for every version of it, but for this platform only."""

    def get_tag(self) -> tuple[str, str, str]:
        """Such as py3-none-linux_x86_64."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


# A frontend runs this file several times; only the run that builds needs an answer, and says it.
if {"bdist_wheel", "editable_wheel", "build_ext"} & set(sys.argv):
    problem = configure()
    if problem is not None:
        print(f"without the native library for ONNX Runtime (docs/reference/custom-op.md): {problem}", file=sys.stderr)
else:
    problem = "not asked for"
setup(
    ext_modules=[] if problem else [Extension("exporter.custom_op.libadadim_ort", [])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython},
)

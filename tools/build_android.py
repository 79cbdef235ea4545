#!/usr/bin/env python3
"""Compile the Android sample for a JVM, where the tests run what of it needs no Android, into build/apps/android.

::

    *.jar      the sample's classes with tests/apps/jvm/Client.kt; the classes of ONNX Runtime's AAR; Kotlin's and org.json
    R.java     names of the sample's resources; Android's own classes are known by tests/apps/jvm/declarations alone
    native/    the AAR's JNI library, and what lets it run on Linux over this Python's onnxruntime

The compiler comes with `make apps`, Java and org.json by tools/apt-packages.sh, the AAR by tools/fetch_runtime_sdk.py. Without
one of them nothing is built, and that is said; under CI it is an error.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from fetch_runtime_sdk import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "apps" / "android"
SAMPLE = ROOT / "apps" / "android" / "app" / "src" / "main"
ON_A_JVM = ROOT / "tests" / "apps" / "jvm"
COMPILER = ROOT / "apps" / "node_modules" / "kotlin-compiler" / "lib"
JSON = Path("/usr/share/java/com.android.json.jar")
AAR = PACKAGES["sdk"].folder / "android" / "onnxruntime.aar"
ABIS = {"x86_64": "x86_64", "aarch64": "arm64-v8a"}
JNI = "libonnxruntime4j_jni.so"
C = ("gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")


def missing() -> str | None:
    """The first thing that is not there."""
    for command in ("java", "gcc"):
        if shutil.which(command) is None:
            return command
    return next((str(path) for path in (COMPILER, JSON, AAR) if not path.exists()), None)


def build_native(folder: Path) -> None:
    """The JNI library beside the libraries that it asks for by Android's names."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(AAR) as archive:
        (folder / JNI).write_bytes(archive.read(f"jni/{ABIS[platform.machine()]}/{JNI}"))
    script = folder / "versions.map"
    script.write_text("LIBC { };\n")
    source, target = ON_A_JVM / "android_libc.c", folder / "libc.so"
    options = ("-fno-builtin", "-fno-stack-protector", f"-Wl,-soname,libc.so,--version-script={script}")
    subprocess.run([*C, *options, source, "-o", target], check=True)
    for name in ("libm.so", "libdl.so"):
        (folder / name).symlink_to("libc.so")
    find = "import importlib.util as util; print(util.find_spec('onnxruntime').submodule_search_locations[0])"
    found = subprocess.run([sys.executable, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
    library = next(Path(found, "capi").glob("libonnxruntime.so.*"))
    source, target = ON_A_JVM / "android_onnxruntime.c", folder / "libonnxruntime.so"
    subprocess.run([*C, f'-DONNXRUNTIME="{library}"', source, "-o", target], check=True)


def resource_names() -> str:
    """As Android's tools make them of res/."""
    names: dict[str, list[str]] = {"layout": [path.stem for path in sorted(SAMPLE.rglob("res/layout/*.xml"))]}
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(SAMPLE.rglob("res/*/*.xml")))
    names |= {"id": re.findall(r'"@\+id/(\w+)"', text), "string": re.findall(r'<string name="(\w+)"', text)}
    constants = {kind: " ".join(f"public static final int {name} = 0;" for name in named) for kind, named in names.items()}
    classes = "\n".join(f"    public static final class {kind} {{ {lines} }}" for kind, lines in constants.items())
    return f"package ai.adadim.sample;\n\npublic final class R {{\n{classes}\n}}\n"


def build_classes(folder: Path) -> None:
    """The sample's own, and those that they need."""
    with zipfile.ZipFile(AAR) as archive:
        (folder / "onnxruntime.jar").write_bytes(archive.read("classes.jar"))
    shutil.copy(JSON, folder / "json.jar")
    shutil.copy(COMPILER / "kotlin-stdlib.jar", folder / "kotlin-stdlib.jar")
    (folder / "R.java").write_text(resource_names())
    sources = [*sorted(SAMPLE.rglob("*.kt")), *sorted(ON_A_JVM.rglob("*.kt")), *sorted(ON_A_JVM.rglob("*.java"))]
    compiler = ("java", "-cp", f"{COMPILER}/*", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler")
    options = ("-Werror", "-no-reflect", "-jvm-target", "17", "-kotlin-home", COMPILER.parent)
    classes = f"{folder}/onnxruntime.jar:{folder}/json.jar"
    command: list[str | Path] = [
        *compiler,
        *options,
        "-cp",
        classes,
        "-d",
        folder / "sample.jar",
        *sources,
        folder / "R.java",
    ]
    subprocess.run(command, check=True)


def main() -> None:
    """Build all of it anew."""
    lacking = missing()
    if lacking is not None:
        if os.environ.get("CI"):
            sys.exit(f"the Android sample's classes cannot be built: {lacking} is not there (docs/guides/android.md)")
        print(f"going on without the Android sample's classes: {lacking} is not there (docs/guides/android.md)")
        return
    shutil.rmtree(OUT, ignore_errors=True)
    build_native(OUT / "native")
    build_classes(OUT)


if __name__ == "__main__":
    main()

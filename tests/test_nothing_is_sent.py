"""No connection is tried and no device id is kept, by the command or by who imports the packages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantize.telemetry import OFF, OFFLINE
from tests.runtime_checks.made import Made, make
from tests.sent import traced

ROOT = Path(__file__).parent.parent
PACKAGES = ("quantize", "exporter", "runtime_checks")
REPORT = {"onnxruntime", "onnxruntime_genai", "huggingface_hub", "transformers", "mobius"}  # to their makers, or ask a hub
SWITCH = "quantize.telemetry"
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 40
COMMAND = """
import os, sys
from exporter.cli.main import main
gguf, onnx, source, store, text = sys.argv[1:]
for file in (gguf, onnx):
    assert main(["verify", file, "--source", source, *(["--store", store] if file == onnx else [])]) == 0
    assert main(["eval", file, "--source", source, "--text", text, "--chunks", "1"]) == 0
assert main(["compare", gguf, onnx, "--source", source, "--text", text, "--chunks", "1"]) == 0
assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
"""
LIBRARY = """
import sys
from pathlib import Path
from exporter import write_onnx
from quantize import QuantizedStore, open_checkpoint
from quantize.errors import ExportError
from runtime_checks.checks.verify import verify
_, onnx, source, store, text = sys.argv[1:]
store = QuantizedStore(Path(store))
folder = write_onnx(store, Path("out"))
assert all(check.ok for check in verify(folder, open_checkpoint(Path(source)), store))
import exporter.onnx.graph, dataclasses
config = dataclasses.replace(store.config, num_layers="x")
try:
    exporter.onnx.graph.build_decoder(config, True, 64)
except ExportError:
    sys.exit(0)
sys.exit("mobius takes a broken config.json")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Made, Made]:
    folder = tmp_path_factory.mktemp("files")
    return make(folder / "gguf", "llama.cpp"), make(folder / "onnx", "onnx-oc")


@pytest.mark.parametrize("script", [COMMAND, LIBRARY], ids=["the command", "the packages"])
def test_nothing_is_sent_and_nothing_kept(script, files, tmp_path):
    gguf, onnx = files
    (tmp_path / "text.txt").write_text(TEXT)
    paths = gguf.file, onnx.file, onnx.source.path, onnx.store.path, tmp_path / "text.txt"
    found = traced(tmp_path, sys.executable, "-c", script, *paths)
    assert found.done.returncode == 0, found.done.stderr[-2000:]
    assert (found.sent, found.kept) == ([], [])


def test_a_report_would_be_seen(tmp_path):
    """onnxruntime by itself: without this the test above could not fail."""
    found = traced(tmp_path, sys.executable, "-c", "import onnxruntime")
    assert found.done.returncode == 0
    assert [path for path in found.kept if "Microsoft" in path]
    (tmp_path / "again").mkdir()
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    assert len(traced(tmp_path / "again", sys.executable, "-c", code).sent) == 1


@pytest.mark.parametrize(
    "name", [*PACKAGES, "exporter.bundle.verify_bundle", "runtime_checks.reference.decode", "quantize.child"]
)
def test_importing_any_of_it_is_enough(name):
    code = f"import os, {name}; print({{name: os.environ.get(name) for name in {list(OFF)}}})"
    environment = os.environ | dict.fromkeys(OFF, "0")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert ast.literal_eval(done.stdout) == OFF


def test_only_the_command_keeps_others_from_the_hub():
    code = f"import os, quantize, exporter.cli.main, runtime_checks; print([n for n in {list(OFFLINE)} if n in os.environ])"
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n"


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, in its order, and whether that happens when it is imported itself: in no function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    later = {node for function in functions for node in ast.walk(function)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: node.lineno):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        yield from ((name, node not in later) for name in names)


def reporting(path: Path) -> list[str]:
    return [name for name, _ in imported(path) if name.split(".")[0] in REPORT]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_switches_it_off_first(package):
    path = ROOT / package / "__init__.py"
    assert (SWITCH, True) in imported(path) and not reporting(path)


def test_a_tool_imports_ours_before_what_reports():
    tools = [path for path in sorted((ROOT / "tools").glob("*.py")) if reporting(path)]
    assert tools
    for path in tools:
        names = [name.split(".")[0] for name, at_once in imported(path) if at_once]
        assert set(names) & set(PACKAGES), path
        assert not set(names) & REPORT, f"{path}: import it inside a function, after ours"


def test_the_tests_switch_it_off_before_they_import_anything():
    assert (SWITCH, True) in imported(ROOT / "tests" / "conftest.py")
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in ("build", "apps")]
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert {path.relative_to(ROOT).parts[0] for path in files if reporting(path)} == {*PACKAGES, "tools", "tests"}

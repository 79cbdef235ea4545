"""Arrows go one way, runtime_checks -> exporter -> quantize, and what is heavy is imported in one place."""

from __future__ import annotations

from graphlib import CycleError
from pathlib import Path

import pytest
from draw_rooms import PAGE, arrows, drawing, imports, in_order, with_drawing

ROOT = Path(__file__).parent.parent
OURS = ("quantize", "exporter", "runtime_checks")
MAY_IMPORT = {"quantize": {"quantize"}, "exporter": {"quantize", "exporter"}, "runtime_checks": set(OURS)}
COMPOSITION_ROOT = ("exporter/cli/main.py", "exporter/cli/run.py")
REFERENCE = "runtime_checks/reference/"
RUNS_TORCH_MODELS = (
    "quantize/source/",
    "quantize/template/serve.py",
    "quantize/template/onnx_adapter.py",
)  # two in processes of their own
FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_packages_are_found():
    assert {relative(path).split("/")[0] for path in FILES} == set(OURS)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_arrows(path):
    package = relative(path).split("/")[0]
    allowed = set(OURS) if relative(path) in COMPOSITION_ROOT else MAY_IMPORT[package]
    ours = {name.split(".")[0] for name in imports(path)} & set(OURS)
    assert ours <= allowed


@pytest.mark.parametrize("path", [path for path in FILES if relative(path).startswith(REFERENCE)], ids=relative)
def test_the_reference_stands_alone(path):
    ours = {name for name in imports(path) if name.split(".")[0] in OURS}
    assert not {name for name in ours if not name.startswith("runtime_checks.reference.")}


@pytest.mark.parametrize("path", [path for path in FILES if relative(path).startswith("quantize/")], ids=relative)
def test_only_source_runs_torch(path):
    heavy = {name.split(".")[0] for name in imports(path)} & {"torch", "transformers"}
    assert not heavy or relative(path).startswith(RUNS_TORCH_MODELS)


@pytest.mark.parametrize("path", [path for path in FILES if relative(path).startswith("exporter/")], ids=relative)
def test_the_exporter_needs_no_torch(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"torch", "transformers"}


def test_rooms_lead_in_no_circle():
    order, found = in_order(arrows()), arrows()
    assert len(order) > 30
    for room, others in found.items():
        assert all(order.index(other) < order.index(room) for other in others)


def test_a_circle_is_seen():
    with pytest.raises(CycleError):
        in_order({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_the_picture_is_of_these_imports():
    """`tools/draw_rooms.py` draws it anew."""
    page = PAGE.read_text(encoding="utf-8")
    assert with_drawing(page, drawing(arrows())) == page

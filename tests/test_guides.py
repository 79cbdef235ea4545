"""What README, the guides and the reference say to type works as it stands there, on a tiny model of another family."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kept import once, shared_folder
from tests.tiny import TEXT, make_tiny_model

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.M | re.S)
FIRST_STEPS = DOCS / "guides" / "first-steps.md"  # of the real SmolLM2
PAGES = [page for page in sorted(DOCS.glob("guides/*.md")) if page != FIRST_STEPS and BLOCK.search(page.read_text())]
PAGES += [page for page in sorted(DOCS.glob("reference/*.md")) if "\n```sh\n" in page.read_text()]


def run_blocks(page: Path, folder: Path) -> str:
    """Every block of ``page`` in ``folder``, each in a process of its own that ends at a line that fails; what they print."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    printed = []
    for language, lines in BLOCK.findall(page.read_text()):
        command = ["bash", "-eo", "pipefail", "-c", lines] if language == "sh" else [sys.executable, "-W", "error", "-c", lines]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page.name}: {lines}\n{done.stdout}{done.stderr}"
        printed.append(done.stdout)
    return "".join(printed)


@pytest.fixture(scope="session")
def after_readme(tmp_path_factory) -> Path:
    """Where README's commands were typed."""
    return once(shared_folder(tmp_path_factory) / "after_readme", type_readme)


def type_readme(folder: Path) -> None:
    make_tiny_model(folder / "model", "qwen3", layers=1, head_dim=16, vocab=400)
    (folder / "held-out.txt").write_text(TEXT * 6)
    (folder / "tools").symlink_to(ROOT / "tools")
    (folder / "printed").write_text(run_blocks(ROOT / "README.md", folder))


def test_readme(after_readme):
    printed = (after_readme / "printed").read_text()
    assert len(re.findall(r"^out/\S+: ok, \d+ of \d+ checks hold$", printed, re.M)) == 2
    assert (after_readme / "compare.html").stat().st_size > 10_000
    assert (after_readme / "bundle" / "SHA256SUMS").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page(page, after_readme, tmp_path):
    for name in ("model", "out"):
        shutil.copytree(after_readme / name, tmp_path / name)
    shutil.copy(after_readme / "held-out.txt", tmp_path)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    run_blocks(page, tmp_path)


def test_that_the_pages_are_there():
    assert {"android", "choose", "fit-a-size", "ios", "node", "python", "too-big", "web", "why-is-this-file-worse"} <= {
        page.stem for page in PAGES
    }


@pytest.mark.slow
def test_the_first_steps(tmp_path):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "build").mkdir()
    cache = ROOT / "build" / "smollm2"
    cache.mkdir(parents=True, exist_ok=True)
    (tmp_path / "build" / "smollm2").symlink_to(cache)
    printed = run_blocks(FIRST_STEPS, tmp_path)
    assert "first/model.gguf: ok" in printed
    assert printed.endswith("first/bundle: ok\n")
    assert (tmp_path / "first" / "compare.html").stat().st_size > 10_000

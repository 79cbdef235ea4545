"""The site is built without a warning, its links lead somewhere, and its pages load nothing from another host."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\ssrc=\"([^\"]*)\"|<link\b[^>]*\shref=\"([^\"]*)\"|url\(\s*[\"']?([^\"')]*)"
)
LINK = re.compile(r"<a\b[^>]*\shref=\"([^\"]*)\"")
ANCHOR = re.compile(r"\sid=\"([^\"]*)\"")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs/site", ".", out]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_the_site(site):
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html"))}
    assert len(pages) > 12
    anchors = {page: set(ANCHOR.findall(text)) for page, text in pages.items()}
    for page, text in pages.items():
        loaded = [name for names in LOADED.findall(text) for name in names if name]
        assert not [name for name in loaded if re.match(r"(https?:)?//", name)], page
        for link in LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or target.suffix != ".html" or anchor in anchors[target], f"{page.name}: {link}"
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert not re.search(r"url\(\s*[\"']?(https?:)?//", styles)
    for name in ("quantize.quantize_checkpoint", "exporter.gguf_file.write_gguf", "runtime_checks.compare.compare_files"):
        assert any(name in found for found in anchors.values()), name

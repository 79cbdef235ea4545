"""The diffs that the developer's pages show are of the code as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "develop").glob("*.md"))
DIFF = re.compile(r"```diff\n(.*?)```", re.S)


def test_there_is_a_page_for_each_kind():
    assert [page.stem for page in PAGES] == ["architecture", "format", "method", "target"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_line_is_in_its_file(page):
    shown, code = 0, ""
    for line in "".join(DIFF.findall(page.read_text(encoding="utf-8"))).splitlines():
        if line.startswith("+++ "):
            code = (ROOT / line.removeprefix("+++ ")).read_text(encoding="utf-8")
            continue
        assert line[0] == "+" and line[1:] in code.splitlines(), line
        shown += 1
    assert shown > 1

"""A Markdown page as its reader takes it in: paragraphs, sentences, and the command lines in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

FENCED = re.compile(r"^(```\w*)\n(.*?)^```$", re.M | re.S)
SHELL = ("```", "```sh", "```console")  # whose lines may be commands
CODE = re.compile(r"`([^`\n]+)`")


def paragraphs(page: str) -> list[str]:
    """Prose, each item of a list by itself: no code, headings, tables, pictures, nor where links lead."""
    page = re.sub(r"<!--.*?-->", "", FENCED.sub("\n", page), flags=re.S)
    blocks = (block.strip() for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", page))
    said = (re.sub(r"^(?:[-*]|\d+\.) ", "", block) for block in blocks if block and not block.startswith(("#", "|", "![")))
    return [re.sub(r"\]\([^)]*\)", "]", " ".join(block.split())) for block in said]


def sentences(page: str) -> list[str]:
    return [sentence for block in paragraphs(page) for sentence in re.split(r"(?<=[.?!])(?:\*\*)? ", block)]


def words(text: str) -> int:
    return len(text.split())


def command_lines(page: str) -> Iterator[list[str]]:
    """The words of every line that calls ``adadim``, in blocks and in code spans; a placeholder in capitals stays one."""
    spans = [match[1] for match in CODE.finditer(FENCED.sub("\n", page))]
    blocks = [lines.replace("\\\n", " ") for kind, lines in FENCED.findall(page) if kind in SHELL]
    for line in [*spans, *"\n".join(blocks).splitlines()]:
        called = re.match(r"(?:\$ |[/.\w]+ -v )?(adadim .*)", line.strip())
        if called:
            yield shlex.split(called[1].replace("…", ""), comments=True)[1:]

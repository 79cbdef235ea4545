"""One HTML file that needs no network: sections of text, tables and charts, in light and dark, for eyes, keys and ears.

What is shown are strings of files that anybody may have made, so the template escapes all but the pictures, whose maker
(``charts``) escapes its own.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from typing import ClassVar, TypeAlias

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


class Number(str):
    """A cell that is set as a number: to the right, in digits of one width."""


Cell: TypeAlias = str | Number


@dataclass(frozen=True)
class Text:
    """A paragraph. ``small``: of what a reader may pass over."""

    text: str
    small: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its heading. ``folded``: shown when asked for, as a chart's numbers are."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """An SVG of ``charts``. ``shape``: "wide" or "narrow" for a window like that, "panel" for one of several beside it."""

    svg: str
    shape: str
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    """Pictures, what they say in words, and the same as a table."""

    title: str
    summary: str
    pictures: Sequence[Picture]
    table: Table
    legend: Sequence[tuple[str, str]] = ()  # a colour of page.css and what it stands for
    headed: bool = True  # or its section's heading is enough
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Samples:
    """Texts side by side, each under its name with a remark."""

    texts: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "samples"


@dataclass(frozen=True)
class Card:
    """One thing: its name, a verdict in a few words ("good", "bad" or "" as ``mood`` colours it), statements, and a badge."""

    name: str
    verdict: str
    mood: str
    statements: Sequence[tuple[str, str]]
    badge: str = ""


@dataclass(frozen=True)
class Facts:
    """Cards side by side."""

    cards: Sequence[Card]
    kind: ClassVar[str] = "facts"


Block: TypeAlias = Text | Table | Chart | Samples | Facts


@dataclass(frozen=True)
class Section:
    """A heading, ``name`` in the address, and what stands under it."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True)
class Answer:
    """What a page says first: ``head`` in bold, ``text`` after a colon, and commands that would answer more.

    ``mood`` colours it as a card's verdict; ``chosen`` is the name of the file that it speaks for, if it does.
    """

    head: str
    text: str
    mood: str = ""
    commands: Sequence[str] = ()
    chosen: str | None = None


def page(title: str, answer: Answer | None, sections: Sequence[Section]) -> bytes:
    """The file: UTF-8, the same for the same arguments."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests["numeric"] = lambda cell: isinstance(cell, Number)
    environment.filters |= {"picture": Markup, "next": next}
    script, style = (_template(name) for name in ("page.js", "page.css"))
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.from_string(_template("page.html"))
    return template.render(
        title=title,
        answer=answer,
        sections=sections,
        ids=count(1),
        script=Markup(script),
        style=Markup(style),
        script_digest=digest,
    ).encode("utf-8", "replace")  # names of files may hold what is no text


def _template(name: str) -> str:
    return files("runtime_checks.report").joinpath("templates", name).read_text(encoding="utf-8")

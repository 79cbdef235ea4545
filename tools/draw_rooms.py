#!/usr/bin/env python3
"""The rooms of the house and the arrows between them, as the imports have it: drawn into ARCHITECTURE.md as Mermaid.

A room is a folder of one of the three packages, or a module beside the folders. An arrow that leads where others lead already is
left out, and so are the modules beside the folders: everybody uses them.

usage: draw_rooms.py        # rewrites the picture
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("runtime_checks", "exporter", "quantize")  # from above to below
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "```mermaid\n", "```\n"
Arrows = Mapping[str, set[str]]


def arrows() -> dict[str, set[str]]:
    """room -> the rooms that it imports from, as "quantize.grids"; what a package itself re-exports is no room."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            room = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
            if room not in PACKAGES and room != f"{package}.__init__":
                found.setdefault(room, set()).update(_room(name) for name in imports(path))
    return {room: {other for other in others if other in found and other != room} for room, others in found.items()}


def in_order(found: Arrows) -> list[str]:
    """Rooms from below to above. Raises graphlib.CycleError where arrows lead in a circle."""
    return list(TopologicalSorter(found).static_order())


def drawing(found: Arrows) -> str:
    """Mermaid, each package a box of its folders."""
    folders = {room for room in found if (ROOT / room.replace(".", "/")).is_dir()}
    lines = ["flowchart TD"]
    for package in PACKAGES:
        inside = sorted(room for room in folders if room.startswith(f"{package}."))
        lines += [
            f"  subgraph {package}",
            *(f"    {room.replace('.', '_')}[{room.partition('.')[2]}]" for room in inside),
            "  end",
        ]
    for room in sorted(folders):
        near = found[room] & folders
        beyond = {far for other in near for far in _reached(found, other)}
        lines += [f"  {room.replace('.', '_')} --> {other.replace('.', '_')}" for other in sorted(near - beyond)]
    return "\n".join(lines) + "\n"


def with_drawing(page: str, picture: str) -> str:
    """The page, its one Mermaid block replaced."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + picture + END + rest.partition(END)[2]


def imports(path: Path) -> Iterator[str]:
    """Dotted names of every module that a file imports, wherever in it, and of what it takes from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _reached(found: Arrows, room: str) -> set[str]:
    """All rooms that a room's arrows lead to, over others too."""
    out, ahead = set[str](), [room]
    while ahead:
        new = found.get(ahead.pop(), set()) - out
        out |= new
        ahead += new
    return out


if __name__ == "__main__":
    PAGE.write_text(with_drawing(PAGE.read_text(encoding="utf-8"), drawing(arrows())), encoding="utf-8")

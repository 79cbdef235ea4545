"""Tiny bundles, native libraries made by hand, and the ways to tamper with a bundle."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

ARM64, X86_64, ARM32 = 183, 62, 40
SHARED = 3
IOS = 2


def elf(
    machine: int = ARM64,
    needed: tuple[str, ...] = ("libc.so", "libm.so"),
    names: tuple[str, ...] = ("RegisterCustomOps",),
    alignment: int = 1 << 14,
    kind: int = SHARED,
    address: int = 0,
) -> bytes:
    """header 64 | two segments of 56, the whole file and its dynamic section | dynamic section | strings"""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in (*needed, *names))
    start = 64 + 2 * 56
    entries = [(1, strings.index(b"\0" + name.encode() + b"\0") + 1) for name in needed]
    entries += [(5, address + start + 16 * (len(needed) + 3)), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    total = start + len(dynamic) + len(strings)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, address, 0, total, total, alignment)
    return header + load + struct.pack("<IIQQQQQQ", 2, 6, start, start, start, len(dynamic), len(dynamic), 8) + dynamic + strings


def archive(machine: int = 0x0100000C, platform: int = IOS, name: bytes = b"_RegisterCustomOps\0") -> bytes:
    """A static library: a table of symbols, as ranlib makes it, and one object whose one command says its platform."""
    command = struct.pack("<IIIIII", 0x32, 24, platform, 0, 0, 0)
    content = struct.pack("<IIIIIIII", 0xFEEDFACF, machine, 0, 1, 1, len(command), 0, 0) + command + name
    return b"!<arch>\n" + _member(b"#1/12", b"__.SYMDEF\0\0\0" + name) + _member(b"kernel.o/", content)


def _member(name: bytes, content: bytes) -> bytes:
    header = (
        name.ljust(16) + b"0".ljust(12) + b"0".ljust(6) + b"0".ljust(6) + b"644".ljust(8) + str(len(content)).encode().ljust(10)
    )
    return header + b"`\n" + content + b"\n" * (len(content) % 2)


def reseal(folder: Path) -> None:
    """A SHA256SUMS that fits what is there now."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256((folder / path).read_bytes()).hexdigest()}  {path}\n" for path in paths if path != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("".join(lines))


def edit_manifest(folder: Path, edit: Callable[[dict], object]) -> None:
    """Change the manifest and seal it again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reseal(folder)


def edit_sums(folder: Path, edit: Callable[[list[str]], list[str]]) -> None:
    """Change the lines of SHA256SUMS."""
    path = folder / "SHA256SUMS"
    path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))

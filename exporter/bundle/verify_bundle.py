#!/usr/bin/env python3
"""Check a model bundle of AdaDim Edge: every name, byte and library. Needs Python 3.9 or later, and nothing else.

    python3 verify_bundle.py [DIR] [--digest HEX]

DIR: the bundle (default: where this file lies). HEX: the sha256 of its SHA256SUMS, from somebody you trust; with it nothing
in it can be other than it was. One line for each problem, exit code 1 if there is any. Nothing is executed or unpacked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FORMAT, VERSION, SUMS, MANIFEST = "adadim-bundle", 1, "SHA256SUMS", "manifest.json"
NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
PLAIN, SHA256 = re.compile(f"{NAME}(/{NAME}){{0,15}}"), re.compile("[0-9a-f]{64}")
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
KEYS: dict[str, Any] = {
    **dict.fromkeys(("name", "platform", "model", "bundled_by"), str),
    **dict.fromkeys(("runtime", "generation", "quantization", "licence", "source", "provenance"), dict),
    "libraries": list,
    "files": list,
    "evaluation": (dict, type(None)),
}
LARGEST_TEXT = 1 << 26  # of SHA256SUMS and manifest.json: more is not read; PAGE: Android 15 maps 16 KiB
LIBRARY_ENTRY, CHUNK, SHOWN, PAGE, FILE = b"RegisterCustomOps", 1 << 20, 200, 1 << 14, {"path": str, "bytes": int, "sha256": str}
PLATFORMS = {"android": ("arm64-v8a", "x86_64"), "ios": ("arm64",), "web": ()}  # and the ABIs of native libraries
ELF_MACHINES = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a"}
ANDROID_SYSTEM = {"libandroid.so", "libc.so", "libdl.so", "liblog.so", "libm.so", "libz.so"}
PT_LOAD, PT_DYNAMIC, DT_NEEDED, DT_STRTAB, DT_STRSZ = 1, 2, 1, 5, 10
MACHO_64, MACHO_ARM64, LC_BUILD_VERSION = 0xFEEDFACF, 0x0100000C, 0x32
APPLE_PLATFORMS = {1: "macOS", 2: "iOS", 6: "Mac Catalyst", 7: "the iOS simulator"}


class Unusable(Exception):
    """A problem after which nothing more can be said."""


def verify(folder: Path, digest: str | None = None) -> list[str]:
    """Every problem of the bundle in ``folder``, each in one line; none if it is whole."""
    problems: list[str] = []
    try:
        problems.extend(_file_problems(folder, digest))  # keeps those that came before an Unusable
        problems.extend(() if problems else _content_problems(folder, _read_manifest(folder)))
    except Unusable as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{error.filename or folder}: cannot be read ({error.strerror})")
    return ["".join(c if c.isprintable() else ascii(c)[1:-1] for c in problem) for problem in problems]


def _file_problems(folder: Path, digest: str | None) -> Iterator[str]:
    """What is there against SHA256SUMS and the manifest's list."""
    walked = list(_walk(folder))
    yield from (f"{path}: {problem}" for path, _, problem in walked if problem is not None)
    sizes = {path: size for path, size, problem in walked if problem is None}
    sums = _read_sums(folder, digest)
    found = {path: _sha256([folder / path]) for path in sizes if path != SUMS}
    yield from _strangers(sums, found)
    damaged = sorted(path for path in sums.keys() & found if sums[path] != found[path])
    whole = MANIFEST in found and MANIFEST not in damaged
    stated = _stated(_read_manifest(folder)) if whole else {}
    for path in damaged:
        size, expected = sizes[path], stated.get(path, (sizes[path], ""))[0]
        length = f"{size:,} bytes instead of {expected:,}: {'truncated' if size < expected else 'too long'}"
        yield f"{path}: {length if size != expected else f'its sha256 is {found[path]}, not {sums[path]}'}"
    if whole:
        yield from _disagreements(stated, sums, {path: size for path, size in sizes.items() if path not in damaged})


def _walk(folder: Path, inside: str = "") -> Iterator[tuple[str, int, str | None]]:
    """Path with slashes, size, and what is wrong with such a thing being there at all."""
    if not inside and (folder.is_symlink() or not folder.is_dir()):
        raise Unusable(f"{folder}: is no folder; give the bundle's")
    entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name)
    if inside and not entries:
        yield inside, 0, "is an empty folder"
    for entry in entries:
        path, status = inside + entry.name, entry.stat(follow_symlinks=False)
        if not PLAIN.fullmatch(path):
            yield path, 0, "is no plain name (letters, digits, '.', '_' and '-')"
        elif stat.S_ISDIR(status.st_mode):
            yield from _walk(folder, path + "/")
        else:
            problem = "is a link" if stat.S_ISLNK(status.st_mode) else "is no plain file"
            yield path, status.st_size, None if stat.S_ISREG(status.st_mode) else problem


def _sha256(paths: Iterable[Path]) -> str:
    """Of one file after another."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
    return total.hexdigest()


def _read_sums(folder: Path, digest: str | None) -> dict[str, str]:
    """Path -> sha256. Raises Unusable unless the text is exactly as it is written."""
    data = _read_text(folder / SUMS)
    if digest is not None and hashlib.sha256(data).hexdigest() != digest.lower():
        raise Unusable(
            f"{SUMS}: its sha256 is {hashlib.sha256(data).hexdigest()}, not {digest.lower()}: not the bundle asked for"
        )
    lines = data.decode("ascii", "replace").split("\n")
    sums: dict[str, str] = {}
    for number, line in enumerate(lines[:-1], 1):
        match = LINE.fullmatch(line)
        if match is None or not PLAIN.fullmatch(match[2]) or match[2] == SUMS or match[2] in sums:
            raise Unusable(f"{SUMS}: line {number} is not a sha256, two spaces and a plain name that is there once")
        sums[match[2]] = match[1]
    if lines[-1] or list(sums) != sorted(sums):
        raise Unusable(f"{SUMS}: its lines are not in order, or the last one is cut off")
    return sums


def _read_text(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise Unusable(f"{path.name}: missing")
    if path.stat().st_size > LARGEST_TEXT:
        raise Unusable(f"{path.name}: {path.stat().st_size:,} bytes, at most {LARGEST_TEXT:,} are read")
    return path.read_bytes()


def _strangers(sums: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    """Files that are too many or too few; one of each with the same bytes was renamed."""
    missing, extra = set(sums) - set(found), set(found) - set(sums)
    for path in sorted(extra):
        was = next((name for name in sorted(missing) if sums[name] == found[path]), None)
        missing.discard(was or "")
        yield f"{path}: extra, {SUMS} does not list it" if was is None else f"{path}: renamed, it should be {was}"
    yield from (f"{path}: missing" for path in sorted(missing))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _read_manifest(folder: Path) -> Any:  # noqa: ANN401 - JSON
    try:
        manifest = json.loads(_read_text(folder / MANIFEST), object_pairs_hook=_unique, parse_constant=int)
        version = manifest["version"] if manifest["format"] == FORMAT else None
    except (ValueError, LookupError, TypeError, RecursionError):
        version = None
    if type(version) is not int or not 0 < version < 1 << 31:
        raise Unusable(f"{MANIFEST}: is no manifest of {FORMAT}")
    if version > VERSION:
        raise Unusable(f"{MANIFEST}: version {version} is from the future, {VERSION} is known here; get a newer verify_bundle.py")
    return manifest


def _typed(held: Any, kinds: dict[str, Any], where: str) -> Any:  # noqa: ANN401
    """An object of the manifest, its values of these types. Raises Unusable."""
    for key, kind in kinds.items():
        value: Any = held.get(key) if isinstance(held, dict) else None
        fits = isinstance(value, kind) and not isinstance(value, bool) and (not isinstance(value, int) or 0 <= value < 1 << 62)
        if not fits or (key == "path" and not PLAIN.fullmatch(value)) or (key == "sha256" and not SHA256.fullmatch(value)):
            raise Unusable(f"{MANIFEST}: lacks what every manifest has ({where}{key})")
    return held


def _stated(manifest: Any) -> dict[str, tuple[int, str]]:  # noqa: ANN401
    """Path -> bytes and sha256 of every file that lies in the bundle by the manifest. Raises Unusable."""
    _typed(manifest, KEYS, "")
    files = {_typed(file, FILE, "a file's ")["path"] for file in manifest["files"]}
    lists = [_typed(file, {"parts": list}, "a file's ")["parts"] if "parts" in file else [file] for file in manifest["files"]]
    stored = [_typed(part, FILE, "a part's ") for parts in lists for part in parts]
    stated = {item["path"]: (item["bytes"], item["sha256"]) for item in stored}
    used = [_typed(item, {"abi": str, "path": str}, "a library's ")["path"] for item in manifest["libraries"]]
    used = [path for path in used if path not in stated] + [path for path in [manifest["model"]] if path not in files]
    if used or len(stated) != len(stored) or len(files) != len(lists):
        raise Unusable(f"{MANIFEST}: {used[0][:200] if used else 'a file'} is not once in its list of files")
    if manifest["platform"] not in PLATFORMS:
        raise Unusable(f"{MANIFEST}: platform {manifest['platform'][:99]!r} is none of {', '.join(PLATFORMS)}")
    return stated


def _disagreements(stated: dict[str, tuple[int, str]], sums: dict[str, str], sizes: dict[str, int]) -> Iterator[str]:
    """Where the two lists differ: somebody changed one and not the other."""
    for path in sorted((set(stated) ^ set(sums)) - {MANIFEST}):
        yield f"{path}: only in {MANIFEST if path in stated else SUMS}, not in {SUMS if path in stated else MANIFEST}"
    for path in sorted(set(stated) & set(sums)):
        size, digest = stated[path]
        if digest != sums[path]:
            yield f"{path}: {MANIFEST} and {SUMS} state different sha256"
        elif sizes.get(path, size) != size:
            yield f"{path}: {MANIFEST} states {size:,} bytes, {sizes[path]:,} are there"


def _content_problems(folder: Path, manifest: Any) -> Iterator[str]:  # noqa: ANN401
    """Of a bundle whose files are as listed: what parts join to, and the libraries."""
    for file in manifest["files"]:
        parts = file.get("parts", [file])
        digest, size = _sha256(folder / part["path"] for part in parts), sum(part["bytes"] for part in parts)
        if (digest, size) != (file["sha256"], file["bytes"]):
            yield f"{file['path']}: its parts join to {size:,} bytes with sha256 {digest}, not to the file stated"
    for library in manifest["libraries"]:
        data = (folder / library["path"]).read_bytes()
        if problem := library_problem(data, manifest["platform"], library["abi"]):
            yield f"{library['path']}: {problem}"


def library_problem(data: bytes, platform: str, abi: str) -> str | None:
    """None, or why these bytes are no native library for that platform and ABI."""
    if abi not in PLATFORMS[platform]:
        return f"{platform} takes no library for {abi[:99]!r}; it takes {' and '.join(PLATFORMS[platform]) or 'none'}"
    try:
        return _elf_problem(data, abi) if platform == "android" else _archive_problem(data)
    except (struct.error, ValueError, StopIteration):
        return "is damaged: its headers point outside it"


def _elf_problem(data: bytes, abi: str) -> str | None:
    if data[:4] != b"\x7fELF":
        return "is no ELF library, which Android needs"
    kind, machine = struct.unpack_from("<HH", data, 16)
    if data[4:6] != b"\x02\x01" or ELF_MACHINES.get(machine) != abi:
        return f"is built for {ELF_MACHINES.get(machine, f'ELF machine {machine}')}, not for {abi}"
    if kind != 3:
        return "is no shared library"
    start, size, count = (*struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54))
    segments = [struct.unpack_from("<IIQQQQQQ", data, start + index * size) for index in range(count)]
    loaded = [segment for segment in segments if segment[0] == PT_LOAD]
    needed, strings = _elf_needs(data, loaded, next(segment for segment in segments if segment[0] == PT_DYNAMIC))
    if b"GLIBC_" in strings or any(name.endswith(".so.6") or name.startswith("ld-linux") for name in needed):
        return f"is linked against glibc ({', '.join(needed)}), which Android has not; build it with the NDK"
    if foreign := next((name for name in needed if name not in ANDROID_SYSTEM), None):
        return f"needs {foreign}, which no Android brings; link it statically"
    for _, _, offset, address, _, _, _, alignment in loaded:
        if alignment % PAGE or (address - offset) % PAGE or not alignment:
            return f"has a segment at {address:#x} aligned to {alignment:,}; Android 15 needs {PAGE:,}: -z max-page-size={PAGE}"
    return None if LIBRARY_ENTRY in strings.split(b"\0") else f"exports no {LIBRARY_ENTRY.decode()}"


def _elf_needs(data: bytes, loaded: list[tuple[int, ...]], dynamic: tuple[int, ...]) -> tuple[list[str], bytes]:
    """Names of the libraries that it needs, and its table of strings."""
    entries = list(struct.iter_unpack("<QQ", data[dynamic[2] : dynamic[2] + dynamic[5] // 16 * 16]))
    address, size = (next(value for tag, value in entries if tag == wanted) for wanted in (DT_STRTAB, DT_STRSZ))
    start = next(address - segment[3] + segment[2] for segment in loaded if 0 <= address - segment[3] < segment[5])
    strings = data[start : start + size]
    needed = [strings[at : strings.index(b"\0", at)].decode("ascii", "replace") for tag, at in entries if tag == DT_NEEDED]
    return needed, strings


def _archive_problem(data: bytes) -> str | None:
    """A static library: "!<arch>\\n", then members of a header of 60 bytes and their content, padded to even sizes."""
    if data[:8] != b"!<arch>\n":
        return "is no static library (.a) of one machine, which iOS needs"
    position, objects = 8, 0
    while position + 60 <= len(data):
        size = max(0, int(data[position + 48 : position + 58]))
        name, content = data[position : position + 16], data[position + 60 : position + 60 + size]
        if name.startswith(b"#1/"):  # a long name comes before the content
            content = content[int(name[3:]) :]
        position += 60 + size + size % 2
        if content[:4] == struct.pack("<I", MACHO_64):
            objects += 1
            if problem := _object_problem(content):
                return problem
    return None if objects and LIBRARY_ENTRY in data else f"holds no Mach-O object with {LIBRARY_ENTRY.decode()}"


def _object_problem(data: bytes) -> str | None:
    machine, _, _, commands = struct.unpack_from("<IIII", data, 4)
    if machine != MACHO_ARM64:
        return f"is built for Mach-O machine {machine:#x}, not for arm64"
    position = 32
    for _ in range(commands):
        command, size, platform = struct.unpack_from("<III", data, position)
        if command == LC_BUILD_VERSION and APPLE_PLATFORMS.get(platform) != "iOS":
            return f"is built for {APPLE_PLATFORMS.get(platform, f'Apple platform {platform}')}, not for iOS"
        position += max(8, size)
    return None


def report(folder: Path, digest: str | None) -> int:
    """Print what ``verify`` finds; the exit code."""
    problems = verify(folder, digest)
    shown = problems[:SHOWN] + [f"... and {len(problems) - SHOWN:,} more"] * (len(problems) > SHOWN)
    print("\n".join([*shown, f"{folder}: {f'NOT ok, {len(problems)} problems' if problems else 'ok'}"]))
    return 1 if problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Check a model bundle of AdaDim Edge.")
    parser.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--digest", metavar="HEX", help="the sha256 that its SHA256SUMS must have")
    raise SystemExit(report(**vars(parser.parse_args())))

"""More ways to change a bundle than test_verify_bundle.py's: what every client has to refuse as verify_bundle.py does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.exporter.bundles import edit_manifest, reseal
from tests.exporter.test_verify_bundle import LIBRARY, manifest_with, of_data, of_text, sums_with

DEEP = "/".join(["a"] * 17)  # one folder more than a plain path has


def of_file(**entries: object) -> Callable[[Path], None]:
    """Change what the manifest says of the file in parts."""
    return of_data(lambda file: file.update(entries))


def of_part(**entries: object) -> Callable[[Path], None]:
    return of_data(lambda file: file["parts"][0].update(entries))


def of_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_bytes(change(path.read_bytes()))
        reseal(folder)

    return tamper


def of_object(key: str, **entries: object) -> Callable[[Path], None]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest[key].update(entries))


def add_the_first_file_again(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["files"].append({**manifest["files"][0], "parts": []}))


def add_far_down(folder: Path) -> None:
    (folder / DEEP).mkdir(parents=True)
    (folder / DEEP / "x").write_bytes(b"x")


def add_hidden_folder(folder: Path) -> None:
    (folder / "model" / ".hidden").mkdir()
    for name in ("x", "y"):
        (folder / "model" / ".hidden" / name).write_bytes(b"x")


MORE: dict[str, Callable[[Path], object]] = {
    "a size that no double holds": of_part(bytes=(1 << 53) + 1),
    "a sum of a path without end": sums_with(lambda lines: ["0" * 64 + f"  {DEEP}\n", *lines]),
    "a sum of a path as long as may be": sums_with(lambda lines: [*lines, "0" * 64 + f"  z{DEEP[2:]}\n"]),
    "a sum of a long name": sums_with(lambda lines: ["0" * 64 + f"  {'a' * 101}\n", *lines]),
    "a sum with carriage returns": sums_with(lambda lines: [line.replace("\n", "\r\n") for line in lines]),
    "sums with a mark": lambda b: (b / "SHA256SUMS").write_bytes(b"\xef\xbb\xbf" + (b / "SHA256SUMS").read_bytes()),
    "a file of a path without end": of_file(path=DEEP),
    "a file of an absolute path": of_file(path="/etc/passwd"),
    "a file of a path with a backslash": of_file(path="..\\x"),
    "a file of a path with a line break": of_file(path="x\n"),
    "a file of a hidden path": of_file(path="model/.x"),
    "a file of an empty path": of_file(path=""),
    "a part of a path without end": of_part(path=DEEP),
    "a size without end": of_file(bytes=1 << 62),
    "a size of far too many digits": of_part(bytes=10**400),
    "a size of none": of_file(bytes=None),
    "a size of a part that is a fraction": of_part(bytes=0.5),
    "a size of a part below nothing": of_part(bytes=-1),
    "a sum in capitals": of_file(sha256="A" * 64),
    "a sum of 65 digits": of_part(sha256="0" * 65),
    "a sum that is a list": of_part(sha256=["0" * 64]),
    "parts of none": of_file(parts=None),
    "parts that are a folder": of_file(parts={}),
    "parts that are words": of_file(parts=["x"]),
    "a part twice": of_data(lambda file: file["parts"].append(file["parts"][0])),
    "a file twice": add_the_first_file_again,
    "files of lists": manifest_with(files=[[]]),
    "files that are none": manifest_with(files=[None]),
    "a library without an ABI": manifest_with(libraries=[{"path": LIBRARY}]),
    "a library that climbs": manifest_with(libraries=[{"abi": "arm64-v8a", "path": "../x.so"}]),
    "a library that is a word": manifest_with(libraries=["x"]),
    "libraries that are none": manifest_with(libraries=None),
    "an evaluation that is a list": manifest_with(evaluation=[]),
    "no source": manifest_with(source=None),
    "a provenance that is a word": manifest_with(provenance="x"),
    "bundled by a number": manifest_with(bundled_by=1),
    "a model that is a list": manifest_with(model=[]),
    "a model of a million letters": manifest_with(model="x" * 10**6),
    "a model of control characters": manifest_with(model="\x1b[2J\n\u202e\u2028\U000e0001\ud800"),
    "a model of wide characters": manifest_with(model="\U0001f600" * 300),
    "a platform of control characters": manifest_with(platform="\x1b[31m"),
    "a platform that is none": manifest_with(platform=None),
    "a version too large for a number": manifest_with(version=1 << 31),
    "a version that is true": manifest_with(version=True),
    "a version of nothing": manifest_with(version=0),
    "a manifest that is a list": lambda b: of_text(b, "[]"),
    "a manifest that is a word": lambda b: of_text(b, '"adadim-bundle"'),
    "a manifest and more": of_bytes(lambda data: data + b"{}"),
    "a manifest of bytes that are no text": of_bytes(lambda data: data.replace(b'"name": "', b'"name": "\xff', 1)),
    "a file far down": add_far_down,
    "a hidden folder": add_hidden_folder,
}

# What verify_bundle.py does not look into, and the clients read: what has to be wrong -> the end of the line.
READ_BESIDES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no runtime's name": (of_object("runtime", name=None), "(runtime's name)"),
    "a context below nothing": (of_object("generation", context=-1), "(generation's context)"),
    "a context without end": (of_object("generation", context=1 << 31), "(generation's context)"),
    "a context that is a word": (of_object("generation", context="7"), "(generation's context)"),
    "no ends": (of_object("generation", eos_token_ids=None), "(generation's eos_token_ids)"),
    "an end that is a word": (of_object("generation", eos_token_ids=["7"]), "(generation's eos_token_ids)"),
    "an end that is half a token": (of_object("generation", eos_token_ids=[0, 0.5]), "(generation's eos_token_ids)"),
    "an end without end": (of_object("generation", eos_token_ids=[1 << 31]), "(generation's eos_token_ids)"),
}

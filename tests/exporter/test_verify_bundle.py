"""A bundle that somebody changed: 100 single bytes and every way to change its structure, each named in one line."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.bundle.folder import BundleOptions, sums_digest, verify_bundle, write_bundle
from exporter.bundle.verify_bundle import verify
from tests.exporter.bundles import ARM64, X86_64, edit_manifest, edit_sums, elf, reseal
from tests.runtime_checks.made import make

SEED, SINGLE_BYTES = 5, 100
DATA, LIBRARY = "model/model.onnx.data", "libraries/arm64-v8a/libadadim_ort.so"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    made = make(folder, "onnx-adadim")
    (folder / "lib.so").write_bytes(elf(ARM64))
    options = BundleOptions("android", part_size=1 << 15, libraries={"arm64-v8a": folder / "lib.so"})
    write_bundle(made.file, folder / "bundle", options)
    return folder / "bundle"


@pytest.fixture
def bundle(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(DATA + ".*"))


def test_it_is_whole_to_begin_with(bundle):
    assert verify(bundle) == verify(bundle, sums_digest(bundle)) == []
    assert len(parts(bundle)) >= 3


def test_every_changed_byte_is_found_and_its_file_named(bundle):
    draw = random.Random(SEED)
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    for index in range(SINGLE_BYTES):
        path = paths[index % len(paths)]
        data = bytearray(path.read_bytes())
        place = draw.randrange(len(data))
        before, data[place] = data[place], data[place] ^ draw.randrange(1, 256)
        path.write_bytes(data)
        name, problems = path.relative_to(bundle).as_posix(), verify(bundle)
        assert problems, (name, place)
        if name != "SHA256SUMS":  # there a changed byte shows as a file's other sum or name, or as a line that is none
            assert [problem.split(":")[0] for problem in problems] == [name], problems
        assert len(verify(bundle, "0" * 64)) == 1
        data[place] = before
        path.write_bytes(data)
    assert verify(bundle) == []


def swap(one: Path, other: Path) -> None:
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent.parent / path.name)
    path.symlink_to(Path("..") / ".." / path.name)


def replace_folder_by_link(folder: Path) -> None:
    (folder / "licences").rename(folder.parent / "licences")
    (folder / "licences").symlink_to(folder.parent / "licences")


def library_for(machine: int, **how: object) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        data = elf(machine, **how)
        (folder / LIBRARY).write_bytes(data)

        def edit(manifest: dict) -> None:
            entry = next(file for file in manifest["files"] if file["path"] == LIBRARY)
            entry |= {"bytes": len(data), "sha256": verify_bundle._sha256([folder / LIBRARY])}

        edit_manifest(folder, edit)

    return tamper


def manifest_with(**entries: object) -> Callable[[Path], None]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest.update(entries))


def of_data(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change what the manifest says of the file in parts."""
    return lambda folder: edit_manifest(folder, lambda m: edit(next(file for file in m["files"] if file["path"] == DATA)))


def sums_with(edit: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    return lambda folder: edit_sums(folder, edit)


def of_text(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    reseal(folder)


NO_MANIFEST = "manifest.json: is no manifest of adadim-bundle"
BAD_LINE = "SHA256SUMS: line {} is not a sha256, two spaces and a plain name that is there once"
STRUCTURAL = {  # what is done -> the beginnings of all lines that are printed
    "truncated": (lambda b: os.truncate(parts(b)[0], 1000), [f"{DATA}.00001-of-{{n}}: 1,000 bytes instead of 32,768: truncated"]),
    "emptied": (lambda b: os.truncate(b / "model" / "tokenizer.json", 0), ["model/tokenizer.json: 0 bytes instead of"]),
    "lengthened": (
        lambda b: lengthen(b / "MODEL_CARD.md"),
        ["MODEL_CARD.md: {card+1} bytes instead of {card}: too long"],
    ),
    "removed": (lambda b: (b / "model" / "tokenizer.json").unlink(), ["model/tokenizer.json: missing"]),
    "a part removed": (lambda b: parts(b)[1].unlink(), [f"{DATA}.00002-of-{{n}}: missing"]),
    "all licences removed": (lambda b: shutil.rmtree(b / "licences"), ["licences/adadim-edge.txt: missing"]),
    "extra": (lambda b: (b / "model" / "more.bin").write_bytes(b"x"), ["model/more.bin: extra, SHA256SUMS does not list it"]),
    "hidden": (lambda b: (b / ".hidden").write_bytes(b"x"), [".hidden: is no plain name"]),
    "a name of two lines": (lambda b: (b / "a\nb").write_bytes(b"x"), ["a\\nb: is no plain name"]),
    "an empty folder": (lambda b: (b / "model" / "empty").mkdir(), ["model/empty/: is an empty folder"]),
    "renamed": (
        lambda b: (b / "model" / "tokenizer.json").rename(b / "model" / "Tokenizer.json"),
        ["model/Tokenizer.json: renamed, it should be model/tokenizer.json"],
    ),
    "parts exchanged": (
        lambda b: swap(parts(b)[0], parts(b)[1]),
        [f"{DATA}.00001-of-{{n}}: its sha256 is", f"{DATA}.00002-of-{{n}}: its sha256 is"],
    ),
    "a link": (
        lambda b: replace_by_link(b / "model" / "tokenizer.json"),
        ["model/tokenizer.json: is a link", "model/tokenizer.json: missing"],
    ),
    "a linked folder": (replace_folder_by_link, ["licences: is a link", "licences/adadim-edge.txt: missing"]),
    "a pipe": (lambda b: os.mkfifo(b / "pipe"), ["pipe: is no plain file"]),
    "no sums": (lambda b: (b / "SHA256SUMS").unlink(), ["SHA256SUMS: missing"]),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), ["manifest.json: missing"]),
    "no manifest, sealed": (lambda b: [(b / "manifest.json").unlink(), reseal(b)], ["manifest.json: missing"]),
    "a sum left out": (sums_with(lambda lines: lines[1:]), ["MODEL_CARD.md: extra", "MODEL_CARD.md: only in manifest.json"]),
    "sums in another order": (sums_with(lambda lines: lines[::-1]), ["SHA256SUMS: its lines are not in order"]),
    "a sum twice": (sums_with(lambda lines: [lines[0], *lines]), [BAD_LINE.format(2)]),
    "a name that climbs": (sums_with(lambda lines: ["0" * 64 + "  ../x\n", *lines]), [BAD_LINE.format(1)]),
    "an absolute name": (sums_with(lambda lines: ["0" * 64 + "  /x\n", *lines]), [BAD_LINE.format(1)]),
    "sums cut off": (lambda b: os.truncate(b / "SHA256SUMS", 300), ["SHA256SUMS: its lines are not in order, or the last"]),
    "the future": (manifest_with(version=2), ["manifest.json: version 2 is from the future, 1 is known here"]),
    "no version": (manifest_with(version="1"), ["manifest.json: is no manifest of adadim-bundle"]),
    "another format": (manifest_with(format="zip"), ["manifest.json: is no manifest of adadim-bundle"]),
    "no JSON": (lambda b: of_text(b, "{"), ["manifest.json: is no manifest of adadim-bundle"]),
    "a deep manifest": (lambda b: of_text(b, "[" * 10**5), ["manifest.json: is no manifest of adadim-bundle"]),
    "no files": (manifest_with(files=None), ["manifest.json: lacks what every manifest has"]),
    "a library that is not listed": (
        manifest_with(libraries=[{"abi": "arm64-v8a", "path": "libraries/x.so"}]),
        ["manifest.json: libraries/x.so is not once in its list of files"],
    ),
    "a key twice": (lambda b: of_text(b, '{"format": "zip", "format": "adadim-bundle"}'), [NO_MANIFEST]),
    "an infinity": (lambda b: of_text(b, '{"format": "adadim-bundle", "version": 1, "x": Infinity}'), [NO_MANIFEST]),
    "a version without end": (lambda b: of_text(b, '{"format": "adadim-bundle", "version": 1' + "0" * 4000 + "}"), [NO_MANIFEST]),
    "a name that is a number": (manifest_with(name=3), ["manifest.json: lacks what every manifest has (name)"]),
    "no generation": (manifest_with(generation=[]), ["manifest.json: lacks what every manifest has (generation)"]),
    "a file without a name": (manifest_with(files=[{}]), ["manifest.json: lacks what every manifest has (a file's path)"]),
    "a file that is a word": (manifest_with(files=["x"]), ["manifest.json: lacks what every manifest has (a file's path)"]),
    "a sum that is none": (
        of_data(lambda f: f.update(sha256="x" * 64)),
        ["manifest.json: lacks what every manifest has (a file's s"],
    ),
    "a size below nothing": (
        of_data(lambda f: f.update(bytes=-1)),
        ["manifest.json: lacks what every manifest has (a file's bytes)"],
    ),
    "a size of a fraction": (
        of_data(lambda f: f.update(bytes=1.0)),
        ["manifest.json: lacks what every manifest has (a file's bytes)"],
    ),
    "a size that is true": (
        of_data(lambda f: f.update(bytes=True)),
        ["manifest.json: lacks what every manifest has (a file's bytes)"],
    ),
    "parts that climb": (
        of_data(lambda f: f["parts"][0].update(path="../x")),
        ["manifest.json: lacks what every manifest has (a part's path)"],
    ),
    "a platform of a million letters": (manifest_with(platform="x" * 10**6), ["manifest.json: platform 'xxx"]),
    "folders without end": (
        lambda b: (b / "/".join(["a"] * 400)).mkdir(parents=True),
        ["/".join(["a"] * 17) + ": is no plain name"],
    ),
    "sizes that are words": (
        of_data(lambda f: f["parts"][0].update(bytes="7")),
        ["manifest.json: lacks what every manifest has"],
    ),
    "a platform of nobody": (
        manifest_with(platform="windows"),
        ["manifest.json: platform 'windows' is none of android, ios, web"],
    ),
    "a model that is not there": (manifest_with(model="model/x"), ["manifest.json: model/x is not once in its list of files"]),
    "another platform": (manifest_with(platform="web"), [f"{LIBRARY}: web takes no library for 'arm64-v8a'"]),
    "an ABI of nobody": (
        manifest_with(libraries=[{"abi": "mips", "path": LIBRARY}]),
        [f"{LIBRARY}: android takes no library for 'mips'"],
    ),
    "an ABI of a million letters": (
        manifest_with(libraries=[{"abi": "x" * 10**6, "path": LIBRARY}]),
        [f"{LIBRARY}: android takes no library for 'xxx"],
    ),
    "a library from elsewhere": (
        manifest_with(libraries=[{"abi": "arm64-v8a", "path": "/lib/libc.so.6"}]),
        ["manifest.json: lacks what every manifest has (a library's path)"],
    ),
    "another size": (of_data(lambda f: f["parts"][0].update(bytes=7)), [f"{DATA}.00001-of-{{n}}: manifest.json states 7 bytes"]),
    "another sum": (
        of_data(lambda f: f["parts"][0].update(sha256="0" * 64)),
        [f"{DATA}.00001-of-{{n}}: manifest.json and SHA256SUMS state different sha256"],
    ),
    "a part left out": (of_data(lambda f: f["parts"].pop()), [f"{DATA}.{{n}}-of-{{n}}: only in SHA256SUMS"]),
    "parts in another order": (of_data(lambda f: f["parts"].reverse()), [f"{DATA}: its parts join to"]),
    "another whole": (of_data(lambda f: f.update(sha256="0" * 64)), [f"{DATA}: its parts join to"]),
    "the wrong ABI": (library_for(X86_64), [f"{LIBRARY}: is built for x86_64, not for arm64-v8a"]),
    "glibc": (library_for(ARM64, needed=("libc.so.6",)), [f"{LIBRARY}: is linked against glibc (libc.so.6)"]),
}


@pytest.mark.parametrize("case", STRUCTURAL)
def test_every_other_change_is_named(case, bundle):
    tamper, expected = STRUCTURAL[case]
    digest, count, card = sums_digest(bundle), len(parts(bundle)), (bundle / "MODEL_CARD.md").stat().st_size
    tamper(bundle)
    expected = [
        line.replace("{n}", f"{count:05d}").replace("{card+1}", f"{card + 1:,}").replace("{card}", f"{card:,}")
        for line in expected
    ]
    problems = verify(bundle)
    assert len(problems) == len(expected), problems
    assert all(problem.startswith(line) for problem, line in zip(problems, expected, strict=True)), problems
    assert all(len(problem.splitlines()) == 1 and len(problem) < 1000 for problem in problems)
    assert verify(bundle, digest)


def test_the_digest_catches_who_seals_anew(bundle):
    digest = sums_digest(bundle)
    (bundle / "MODEL_CARD.md").write_text("Better than it is.")

    def edit(manifest: dict) -> None:
        entry = next(file for file in manifest["files"] if file["path"] == "MODEL_CARD.md")
        entry |= {"bytes": 18, "sha256": verify_bundle._sha256([bundle / "MODEL_CARD.md"])}

    edit_manifest(bundle, edit)
    assert verify(bundle) == []
    assert verify(bundle, digest) == [f"SHA256SUMS: its sha256 is {sums_digest(bundle)}, not {digest}: not the bundle asked for"]


def test_a_manifest_too_large_to_read_is_not_read(bundle, monkeypatch):
    monkeypatch.setattr(verify_bundle, "LARGEST_TEXT", 3000)
    problems = verify(bundle)
    assert len(problems) == 1
    assert problems[0].startswith("manifest.json: ") and problems[0].endswith("bytes, at most 3,000 are read")


def test_a_crowd_of_strangers_is_counted(bundle, capsys):
    for index in range(500):
        (bundle / f"stray{index:03d}").write_bytes(b"")
    assert verify_bundle.report(bundle, None) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 202 and lines[-2:] == ["... and 300 more", f"{bundle}: NOT ok, 500 problems"]


def test_nothing_in_it_is_executed(bundle, tmp_path):
    trace = tmp_path / "executed"
    (bundle / "verify_bundle.py").write_text(f"open({str(trace)!r}, 'w')")
    (bundle / "json.py").write_text(f"open({str(trace)!r}, 'w')")
    assert len(verify(bundle)) == 2
    assert not trace.exists()


def test_no_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("link", "file", "none"):
        assert verify(tmp_path / name) == [f"{tmp_path / name}: is no folder; give the bundle's"]

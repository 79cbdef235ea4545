"""What lies at a path, and what to do where a command was given something else than it takes: errors name the next command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from quantize.foreign import Foreign, foreign_file, foreign_folder
from quantize.hub import to_download


class Kind(StrEnum):
    """What our commands read and write, as a person is told it is."""

    MODEL = "a Hugging Face model"
    GGUF = "a GGUF file"
    ONNX = "an ONNX folder"
    STORE = "a store"
    BUNDLE = "a bundle"
    ZIP = "a zip archive"


class Wanted(StrEnum):
    """What a command takes."""

    SOURCE = "a Hugging Face directory or a GGUF file"
    STORE = "a store"
    FILE = "a GGUF file or an ONNX folder"
    BUNDLE = "a bundle"


ACCEPTED = {
    Wanted.SOURCE: (Kind.MODEL, Kind.GGUF),
    Wanted.STORE: (Kind.STORE,),
    Wanted.FILE: (Kind.GGUF, Kind.ONNX),
    Wanted.BUNDLE: (Kind.BUNDLE,),
}
MAKE = {  # a thing of the kind that is wanted
    Wanted.SOURCE: "name the folder with its config.json and safetensors, or a GGUF",
    Wanted.STORE: "make one: adadim quantize MODEL --out STORE",
    Wanted.FILE: "write one: adadim export gguf STORE --out model.gguf",
    Wanted.BUNDLE: "make one: adadim bundle FILE.gguf --platform android --out BUNDLE",
}
NEXT = {  # given this, wanted that: what leads there; {} is the path as a shell takes it
    (
        Kind.STORE,
        Wanted.SOURCE,
    ): "it is quantized already; write its file: adadim export gguf {} --out model.gguf, or export onnx",
    (Kind.ONNX, Wanted.SOURCE): "name the model that it was made from; what it holds: adadim inspect {}",
    (Kind.BUNDLE, Wanted.SOURCE): "name the model that it was made from; whether it is whole: adadim bundle verify {}",
    (Kind.ZIP, Wanted.SOURCE): "unpack it: unzip {} -d FOLDER",
    (Kind.MODEL, Wanted.STORE): "make one of it: adadim quantize {} --out STORE",
    (Kind.GGUF, Wanted.STORE): "make one of it: adadim quantize {} --out STORE",
    (Kind.ONNX, Wanted.STORE): "it is written already; check it: adadim verify {} --source MODEL",
    (Kind.BUNDLE, Wanted.STORE): "it is written already; check it: adadim bundle verify {}",
    (Kind.ZIP, Wanted.STORE): "unpack it: unzip {} -d FOLDER",
    (Kind.MODEL, Wanted.FILE): "make both of it: adadim run {} --out OUT",
    (Kind.STORE, Wanted.FILE): "write its file: adadim export gguf {} --out model.gguf, or export onnx",
    (Kind.BUNDLE, Wanted.FILE): "name the file that it was made from; whether it is whole: adadim bundle verify {}",
    (Kind.ZIP, Wanted.FILE): "unpack it: unzip {} -d FOLDER",
    (Kind.MODEL, Wanted.BUNDLE): "first make files of it: adadim run {} --out OUT",
    (Kind.STORE, Wanted.BUNDLE): "first write its file: adadim export gguf {} --out model.gguf, or export onnx",
    (Kind.GGUF, Wanted.BUNDLE): "make one of it: adadim bundle {} --platform android --out BUNDLE",
    (Kind.ONNX, Wanted.BUNDLE): "make one of it: adadim bundle {} --platform android --out BUNDLE",
    (Kind.ZIP, Wanted.BUNDLE): "unpack it: unzip {} -d BUNDLE; then: adadim bundle verify BUNDLE",
}
STORE_MARK = "plan.json"
MARKS = {  # the first file that is there tells; a bundle has a model in it, and a broken one may lack some of these
    "SHA256SUMS": Kind.BUNDLE,
    "manifest.json": Kind.BUNDLE,
    STORE_MARK: Kind.STORE,
    "config.json": Kind.MODEL,
    "model.onnx": Kind.ONNX,
}
MAGICS = {b"GGUF": Kind.GGUF, b"PK\x03\x04": Kind.ZIP}


def readable(name: str | Path) -> str:
    """A file's name as text that every file of ours can hold: bytes that are no UTF-8, and control characters, are escaped."""
    try:
        data = str(name).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a name that no file system gave
        data = str(name).encode("utf-8", "backslashreplace")
    text = data.decode("utf-8", "backslashreplace")
    return "".join(repr(char)[1:-1] if ord(char) < ord(" ") or char == "\x7f" else char for char in text)


def is_store(path: Path) -> bool:
    """Whether ``adadim quantize`` wrote this folder; whether it is whole is another question."""
    return (path / STORE_MARK).is_file()


def is_template(path: Path) -> bool:
    """Whether ``adadim convert`` wrote this ONNX folder, as a source; whether it is whole is another question."""
    return (path / "model.onnx").is_file() and (path / "assets" / "config.json").is_file()


def kind_of(path: Path) -> Kind | None:
    """By what is in a folder, or how a file begins; None for anything else. Raises OSError."""
    if path.is_dir():
        kind = next((kind for name, kind in MARKS.items() if (path / name).is_file()), None)
        onnx = kind is Kind.MODEL and (path / "model.onnx").is_file() and not any(path.glob("*.safetensors"))
        return Kind.ONNX if onnx else kind  # some tools put the config.json of the source beside it
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return MAGICS.get(file.read(4))


def foreign(path: Path) -> Foreign | None:
    """What another tool's file or folder is; None for ours, for models and files as they are wanted, and for what is unknown."""
    try:
        if path.is_file():
            return foreign_file(path)
        own = path.is_dir() and kind_of(path)
        weights = own is Kind.MODEL and any(path.glob("*.safetensors"))
        return foreign_folder(path) if path.is_dir() and own in (None, Kind.MODEL) and not weights else None
    except OSError:
        return None


def folder_meant(path: Path, *wanted: Wanted) -> str | None:
    """What to say where ``path`` is a file inside of a folder that is ``wanted`` as a whole, as DIR/model.onnx; else None."""
    try:
        if not path.is_file() or kind_of(path) is not None or path.suffix == ".gguf":
            return None
        folder = path.absolute().parent
        kind = kind_of(folder)
    except OSError:
        return None
    if not any(kind in ACCEPTED[each] for each in wanted):
        return None
    given = path.parent if str(path.parent) != "." else folder
    return f"{path}: is a file of {kind}; name the folder: {shlex.quote(str(given))}"


def mistaken(path: Path, wanted: Wanted) -> str:
    """What to say where ``path`` is no ``wanted``: what it is, and the command that leads from there to what was meant."""
    kind, other = kind_of(path), foreign(path)
    meant = folder_meant(path, wanted)
    if meant is None and (kind is None or other is not None) and (other is None or wanted is Wanted.FILE):
        inside = next((below for below in _below(path) if kind_of(below) in ACCEPTED[wanted]), None)
        meant = None if inside is None else f"{path}: is a folder that holds {wanted}; name that: {shlex.quote(str(inside))}"
    if meant is not None:
        return meant
    if other is not None:
        return f"{path}: is {other.told}, not {wanted}; {other.next(path, wanted is Wanted.SOURCE)}"
    if kind is not None and kind not in ACCEPTED[wanted]:
        return f"{path}: is {kind}, not {wanted}; {NEXT[kind, wanted].format(shlex.quote(str(path)))}"
    if path.exists():
        return f"{path}: is not {wanted}; {MAKE[wanted]}"
    return f"{path}: not there; {to_download(path, certain=wanted is not Wanted.SOURCE) or MAKE[wanted]}"


def _below(path: Path) -> Iterator[Path]:
    """In a folder, as `adadim run` fills one, and in its folders."""
    for pattern in ("*", "*/*"):
        yield from sorted(path.glob(pattern))

"""llama.cpp's converter from Hugging Face folders to GGUF: where it lies, whether it is the one we know, how it gets there."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from quantize.errors import ConfigError, asked, shown
from quantize.kinds import readable

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"  # whose source distribution holds llama.cpp's conversion/ and gguf-py/
SDIST = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # sha256
MODULES = "b0b7921ecc86dcf0f1cd58caa233ce4048ad11a80e71801400ab4042de69c6e9"  # ``digest_of`` what is taken from it
ROOMS = "conversion", "gguf-py/gguf"
KEPT = (*ROOMS, "LICENSE")
TO_INSTALL = "adadim doctor --install converter"


@dataclass(frozen=True)
class Converter:
    """``path``: folders that its modules are imported from. ``name``: what a file says that it was made by."""

    path: tuple[Path, ...]
    name: str


def home() -> Path:
    """Where it is installed: with this Python, apart from its packages, for it brings a ``gguf`` of its own."""
    return Path(sys.prefix) / "share" / "adadim-edge" / f"converter-{VERSION}"


def find_converter(checkout: Path | None = None) -> Converter:
    """The installed one, if all its files are as they were; or that of a llama.cpp ``checkout``, as it is. Raises ConfigError."""
    folder = home() if checkout is None else checkout
    path = folder, folder / "gguf-py"
    if checkout is not None:
        if not (checkout / "conversion" / "base.py").is_file() or not (checkout / "gguf-py" / "gguf").is_dir():
            raise ConfigError(
                f"{checkout}: no checkout of llama.cpp that has conversion/ and gguf-py/; name one, or drop "
                f"{asked('converter')}: {TO_INSTALL} brings the one that is known here"
            )
        return Converter(path, f"llama.cpp checkout {readable(checkout.resolve().name)} ({digest_of(checkout)[:12]})")
    if not folder.is_dir():
        raise ConfigError(f"llama.cpp's converter is not installed; bring it with: {TO_INSTALL}")
    if digest_of(folder) != MODULES:
        raise ConfigError(f"{folder}: is not the converter of {PACKAGE} {VERSION} as published; bring it again: {TO_INSTALL}")
    return Converter(path, f"llama.cpp's converter ({PACKAGE} {VERSION})")


def digest_of(folder: Path) -> str:
    """Hex digits of all modules in ``folder``, by name and content."""
    found = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (folder / room).rglob("*.py")):
        found.update(f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def install_converter() -> Path:
    """Fetch it by pip, by its hash, from where this Python gets its packages. Raises ConfigError."""
    folder = home()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as made:
            target = Path(made) / "target"
            _unpack(_fetched(Path(made)), target)
            if digest_of(target) != MODULES:
                raise ConfigError(f"{PACKAGE} {VERSION}: holds other modules than are known of it; name a checkout of llama.cpp")
            if folder.is_dir():
                folder.rename(Path(made) / "before")  # and away with it
            target.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); use a virtual environment of your own") from error
    return folder


def _fetched(into: Path) -> Path:
    """The source distribution."""
    wanted = into / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SDIST}\n")
    options = ("--no-deps", "--require-hashes", "--no-binary", PACKAGE, "-d", str(into), "-r", str(wanted))
    command = [sys.executable, "-m", "pip", "download", "-q", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(into.glob("*.tar.gz"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        said = shown(lines[-1] if lines else f"exit code {done.returncode}")
        raise ConfigError(f"{PACKAGE} {VERSION}: pip does not bring it ({said}); name a checkout of llama.cpp instead")
    return found[0]


def _unpack(archive: Path, target: Path) -> None:
    """What is kept of it, in the layout of a checkout."""
    with tarfile.open(archive) as tar:
        for member in tar:
            inner = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and any(inner == kept or inner.startswith(f"{kept}/") for kept in KEPT):
                member.name = inner
                tar.extract(member, target, filter="data")

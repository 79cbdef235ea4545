"""Every fault that a user can mend, as one tree; the command line prints the message as one line and exits with 2.

AdaDimError
├── CheckpointError    the source model is missing, truncated, malformed, not finite or of an unknown architecture
├── ConfigError        options or a recipe that contradict one another, or that the target cannot hold
├── PlanError          a tensor whose shape no allowed grid fits
├── CalibrationError   a text or an importance matrix that is missing, damaged, too short or another model's
├── StoreError         a store that is missing, incomplete or damaged
├── ExportError        a file that cannot be written as asked
├── FileFormatError    an exported file that cannot be read as what it claims to be
└── OutputError        an output that exists already, is not writable, or a full disk

A message says what is wrong, where (file, tensor, numbers) and what to do. Our own bugs are assertions, never these.
Options in it are marked (``asked``): a Python caller reads ``group_size=64``, the command line spells ``--group-size 64``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from reprlib import Repr

SHOWN = 300  # characters of one value in a message
LINE = 1500  # of a whole message; what is too long loses its middle, because the mend stands at the end
_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = SHOWN


BEGIN, BETWEEN, END = "\ue000", "\ue001", "\ue002"  # around an option; nothing from outside has them, which ``printable`` escapes
MARKED = re.compile(f"{BEGIN}([\\w.]+)(?:{BETWEEN}([^{END}]*){BETWEEN}([^{END}]*))?{END}")
NOTHING = object()
Spell = Callable[[str, str | None, str | None], str]  # (option, its value as a word and as Python writes it, if there is one)


def asked(option: str, value: object = NOTHING, word: str | None = None) -> str:
    """An option in a message, by its Python name, maybe with a value; ``word``: that on the command line, if it differs."""
    if value is NOTHING:
        return f"{BEGIN}{option}{END}"
    text = "" if value is True else printable(str(value), SHOWN)
    return f"{BEGIN}{option}{BETWEEN}{text if word is None else word}{BETWEEN}{printable(repr(value), SHOWN)}{END}"


def spelled(text: str, spell: Spell) -> str:
    """``text`` with its options as ``spell`` writes them."""
    return MARKED.sub(lambda found: spell(found[1], found[2], found[3]), text)


@contextmanager
def spelling(spell: Spell) -> Iterator[None]:
    """In the block errors, as text, have their options as ``spell`` writes them, wherever they are made a text."""
    before = _spelling.set(spell)
    try:
        yield
    finally:
        _spelling.reset(before)


def as_python(option: str, word: str | None, value: str | None) -> str:
    """``group_size=64``."""
    return option if value is None else f"{option}={value}"


_spelling: ContextVar[Spell] = ContextVar("spelling", default=as_python)


def printable(text: str, most: int = LINE) -> str:
    """``text`` as one line of at most ``most`` characters: control, bidi and unpaired surrogate characters are escaped."""
    if len(text) > most:  # before anything is done with what may have millions
        text = f"{text[: most * 2 // 3]} … {text[-(most // 3) :]}"
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def shown(value: object) -> str:
    """A value from outside for a message, as ``repr`` writes it, or a text or an exception's text; at most SHOWN characters."""
    text = str(value) if isinstance(value, str | BaseException) else _BRIEF.repr(value)
    return printable(text, SHOWN)


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of many names for a message, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(printable(name, SHOWN // most) for name in names[:most]) + more


class AdaDimError(Exception):
    """Base of every error that is the user's to mend; as text it is one clean line, whatever its message was made of."""

    def __str__(self) -> str:
        return self.told(_spelling.get())

    def told(self, spell: Spell) -> str:
        """The line with its options as ``spell`` writes them."""
        return printable(spelled(super().__str__(), spell))


class CheckpointError(AdaDimError):
    """The source model cannot be used."""


class NoGraphError(CheckpointError):
    """A model of which no tool's graph computes what torch does; other formats may hold it."""


class ConfigError(AdaDimError):
    """Options contradict one another or the target."""


class PlanError(AdaDimError):
    """A tensor fits none of the allowed grids."""


class CalibrationError(AdaDimError):
    """A text, or an importance matrix, cannot be used for calibration or evaluation."""


class StoreError(AdaDimError):
    """A store is missing, incomplete or damaged."""


class ExportError(AdaDimError):
    """A store cannot be written in the format asked for."""


class FileFormatError(AdaDimError):
    """An exported file is not what it claims to be."""


class OutputError(AdaDimError):
    """An output exists already or cannot be written."""

"""How the command line spells what the library calls by its Python name."""

from __future__ import annotations

# Fields of a config whose options are not called like them.
RENAMED = {"grid.name": "grid", "data.text": "calibration", "data.tokens": "calibration_tokens"}


def option_of(field: str) -> str:
    """The Python name of the option that gives a config's ``field``, as "grid.bits"."""
    return RENAMED.get(field, field.rpartition(".")[2])


def as_option(option: str, word: str | None, value: str | None) -> str:
    """``--group-size 64``; a flag has no value."""
    name = f"--{option_of(option).replace('_', '-')}"
    return f"{name} {word}" if word else name

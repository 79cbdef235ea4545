"""How the command line spells what the library calls by its Python name."""

from __future__ import annotations


def as_option(option: str, word: str | None, value: str | None) -> str:
    """``--group-size 64``; a flag has no value."""
    name = f"--{option.replace('_', '-')}"
    return f"{name} {word}" if word else name

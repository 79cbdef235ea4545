"""How the command line spells what the library calls by its Python name."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from quantize.checkpoint import Checkpoint
from quantize.config import QuantizeConfig
from quantize.effort import effort_for, with_method

Spec = TypeVar("Spec", bound=Any)  # a frozen dataclass

# Fields of a config whose options are not called like them.
RENAMED = {"grid.name": "grid", "data.text": "calibration", "data.tokens": "calibration_tokens"}


def option_of(field: str) -> str:
    """The Python name of the option that gives a config's ``field``, as "grid.bits"."""
    return RENAMED.get(field, field.rpartition(".")[2])


def as_option(option: str, word: str | None, value: str | None) -> str:
    """``--group-size 64``; a flag has no value."""
    name = f"--{option_of(option).replace('_', '-')}"
    return f"{name} {word}" if word else name


def quantize_config(args: Namespace, source: Checkpoint | None = None) -> QuantizeConfig:
    """A command's options as a config; what is not asked for is the effort's for that source. Raises ConfigError."""
    config, method = effort_for(getattr(args, "effort", "default"), source), getattr(args, "method", None)
    return _with_options(config if method is None else with_method(config, method), args)


def _with_options(spec: Spec, args: Namespace, within: str = "") -> Spec:
    """``spec`` with what ``args`` have for its fields, and for those of specs in it."""
    asked = {}
    for item in fields(spec):
        value, name = getattr(spec, item.name), f"{within}{item.name}"
        said = getattr(args, option_of(name), None)
        if is_dataclass(value):
            asked[item.name] = _with_options(value, args, f"{name}.")
        elif said is not None:
            asked[item.name] = said
    return replace(spec, **asked)

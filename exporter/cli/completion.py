"""``adadim completion``: what a shell has to know to complete command lines of ``adadim``, made from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from exporter.cli.bundle import VERIFY
from exporter.cli.parser import OneLineParser, Subparsers, command
from exporter.cli.values import file_path

SHELLS = ("bash", "zsh", "tcsh", "fish")


def add_completion(commands: Subparsers) -> None:
    """To the parser of ``adadim``."""
    example = "adadim completion bash > ~/.local/share/bash-completion/completions/adadim   # then open a new shell"
    parser = command(commands, "completion", "print a script that completes commands, options and files in a shell", example)
    parser.add_argument("shell", choices=SHELLS, help="the script's first lines say where each shell looks for it")


def completion(parser: OneLineParser, shell: str) -> str:
    """The script; ``parser`` is changed and of no further use."""
    import shtab

    (commands,) = _nested(parser)
    bundle, verify = commands.choices["bundle"], commands.choices.pop(VERIFY)
    commands._choices_actions = [item for item in commands._choices_actions if item.dest != VERIFY]
    _complete_files(parser, shtab.FILE)
    _complete_files(verify, shtab.FILE)
    for action in bundle._get_positional_actions():  # no shell knows a command of two words
        action.complete = _or_verify(shtab.FILE)  # type: ignore[attr-defined]
    for action in verify._actions[1:]:  # all but its --help
        bundle._add_action(action)
    script = str(shtab.complete(parser, shell))
    return script.replace('"(*):', '"*:')  # shtab lets zsh complete the first of several files, and nothing after it


def _nested(parser: argparse.ArgumentParser) -> list[Subparsers]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _complete_files(parser: argparse.ArgumentParser, files: Mapping[str, object]) -> None:
    """Wherever a path is wanted, in this parser and those below it."""
    for action in parser._actions:
        if action.type is file_path or str(action.metavar).startswith("FILE"):
            action.complete = files  # type: ignore[attr-defined]
    for commands in _nested(parser):
        for nested in commands.choices.values():
            _complete_files(nested, files)


def _or_verify(files: Mapping[str, object]) -> dict[str, object]:
    bash = f'_adadim_bundle() {{ {files["bash"]} "$1"; compgen -W verify -- "$1"; }}'
    return {
        "bash": "_adadim_bundle",
        "zsh": f"{{compadd verify; {files['zsh']}}}",
        "fish": f"{files['fish']} verify",
        "tcsh": files["tcsh"],
        "preamble": {"bash": bash},
    }

"""What the parsers of all commands share: one line for an error, an example, the options that every writing command has."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable
from typing import Any, NoReturn, TypeAlias

from exporter.cli_process import complain, say

Subparsers: TypeAlias = "argparse._SubParsersAction[OneLineParser]"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, not under a page of usage, and what may have been meant."""

    def parse_known_args(self, *args: Any, **options: Any) -> tuple[Any, list[str]]:  # noqa: ANN401 - as argparse has it
        """What is left over is an error of the command that it was given to: no other knows the options that it may mean."""
        namespace, rest = super().parse_known_args(*args, **options)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{_meant(rest[0], self._option_string_actions)}")
        return namespace, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _meant(str(value), action.choices or ())
            raise

    def _print_message(self, message: str, file: Any = None) -> None:  # noqa: ANN401
        """What cannot be printed is not lost without a word, as argparse has it."""
        if file is sys.stderr and file is not None:
            complain(message)
        else:
            say(message, end="")

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _meant(word: str, known: Iterable[object]) -> str:
    """For the end of a message."""
    near = difflib.get_close_matches(word, map(str, known), n=1)
    return f"; perhaps {near[0]} is meant" if near else ""


def command(commands: Subparsers, name: str, summary: str, example: str) -> OneLineParser:
    """A command with its summary and an example of its use."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_common(parser: OneLineParser) -> None:
    """--force and --quiet."""
    add_force(parser)
    add_quiet(parser)


def add_force(parser: OneLineParser) -> None:
    """--force."""
    parser.add_argument("--force", action="store_true", help="replace an existing output (default: refuse)")


def add_quiet(parser: OneLineParser) -> None:
    """--quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress bars (default: shown on stderr)")

"""What the parsers of all commands share: one line for an error, an example, the options that every writing command has."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn, TypeAlias

from exporter.cli.advice import Words, command_meant, command_words, meant, number_meant
from exporter.cli.process import complain, say

Subparsers: TypeAlias = "argparse._SubParsersAction[OneLineParser]"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, not under a page of usage, and what may have been meant.

    ``start`` is said where there are no arguments at all. No option can be cut short: what --s means changes with every new one.
    """

    def __init__(self, *, start: str = "", **options: Any) -> None:  # noqa: ANN401 - as argparse has it
        super().__init__(allow_abbrev=False, **options)
        self._start = start

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # noqa: ANN401
        """What is left over is an error of the command that it was given to: no other knows the options that it may mean."""
        words = self._known_words(sys.argv[1:] if args is None else list(args))
        namespace, rest = super().parse_known_args(words, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant(rest[0], self._option_string_actions)}")
        return namespace, rest

    def _known_words(self, words: list[str]) -> list[str]:
        """As this parser knows them. Exits for what is another tool's, which has a line of its own."""
        if not words and self._start:
            self._print_message(self._start)
            self.exit()
        known = [name for action in self._actions if isinstance(action, argparse._SubParsersAction) for name in action.choices]
        if known and words and words[0][:1] != "-":
            words = command_words(words, known)
            said = command_meant(words, known)
        else:  # what follows a command is for its own parser
            upto = 2 if known else len(words)
            read, said = Words(self.prog, self._actions).read(words[:upto])
            words = read + words[upto:]
        if said is not None:
            self.error(said)
        return words

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:  # noqa: ANN401
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if action.type is int or "--bits" in action.option_strings:
                error.message += number_meant(arg_string)
            raise

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += meant(str(value), action.choices or ())
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

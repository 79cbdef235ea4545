"""What the parsers of all commands share: one line for an error, an example, the options that every writing command has."""

from __future__ import annotations

import argparse
from typing import NoReturn, TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[OneLineParser]"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, not under a page of usage."""

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
    parser.add_argument("--force", action="store_true", help="replace an existing output (default: refuse)")
    add_quiet(parser)


def add_quiet(parser: OneLineParser) -> None:
    """--quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress bars (default: shown on stderr)")

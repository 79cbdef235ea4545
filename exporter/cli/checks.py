"""``adadim verify``, ``adadim inspect`` and ``adadim doctor``: their options."""

from __future__ import annotations

from exporter.cli.parser import Subparsers, add_common, command
from exporter.cli.values import file_path


def add_verify(commands: Subparsers) -> None:
    """``adadim verify``."""
    example = "adadim verify model.gguf --source ./SmolLM2-135M --store ./store"
    parser = command(commands, "verify", "check a written file in its runtime; exit code 1 on any miss", example)
    parser.add_argument("path", metavar="FILE.gguf|DIR", type=file_path, help="what `adadim export` wrote")
    parser.add_argument("--source", type=file_path, required=True, help="the model it was made from")
    parser.add_argument("--store", type=file_path, help="also compare every code and scale with this store (default: none)")
    parser.add_argument("--json", type=file_path, metavar="FILE", help="write every check here (default: none)")
    add_common(parser)


def add_inspect(commands: Subparsers) -> None:
    """``adadim inspect``."""
    parser = command(commands, "inspect", "show what a file or a store holds, from its headers", "adadim inspect model.gguf")
    parser.add_argument("path", metavar="FILE.gguf|DIR|STORE", type=file_path, help="what to look at")
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")


def add_doctor(commands: Subparsers) -> None:
    """``adadim doctor``."""
    parser = command(commands, "doctor", "show what is installed, and what each command and target still needs", "adadim doctor")
    parser.add_argument("--install", choices=("converter",), help="fetch llama.cpp's converter, by pip (default: only look)")

"""Options of what is calibrated on, and of what is done with it."""

from __future__ import annotations

import argparse

from exporter.cli.values import file_path, file_size, text_path, whole
from exporter.targets import STATIC_TARGET
from quantize.config import BUILTIN, GENERATED, TOKEN_WEIGHTS, QuantizeConfig
from quantize.methods.around import SELECTIONS

DEFAULTS = QuantizeConfig()


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """What statistics come from, and what they choose."""
    add_text_options(group)
    group.add_argument(
        "--imatrix",
        type=file_path,
        metavar="FILE",
        help="llama.cpp's importance matrix, for RTN without running the source (default: none)",
    )
    group.add_argument(
        "--selection",
        choices=SELECTIONS,
        help="AdaDim's loss: of the attention's or MLP's output, or by the layer's statistics (default: the effort's)",
    )
    group.add_argument(
        "--token-weight", choices=TOKEN_WEIGHTS, help="by what errors cost, or by their size (default: the effort's)"
    )
    group.add_argument(
        "--block-steps",
        type=whole,
        metavar="N",
        help="of learning a decoder block's rounding by its output (default: the effort's)",
    )
    group.add_argument(
        "--tune-steps",
        type=whole,
        metavar="N",
        help="of tuning scales and norms by the model's output (default: the effort's)",
    )
    add_max_slowdown(group)


def add_max_slowdown(group: argparse._ArgumentGroup) -> None:
    """Of axes that take longer to decode, and of inputs that are rounded in blocks."""
    group.add_argument(
        "--max-slowdown",
        type=float,
        metavar="X",
        default=DEFAULTS.max_slowdown,
        help="how many times as long as the quickest choice a layer may take: all per-OC, on "
        f"{STATIC_TARGET} every input static (default: %(default)s)",
    )


def add_text_options(group: argparse._ArgumentGroup, words: str = "", fewer: str = "") -> None:
    """A text, how much of it, and what measuring may take; ``words`` and ``fewer``: what else there is."""
    group.add_argument(
        "--calibration",
        type=text_path,
        metavar=f"FILE|{BUILTIN}|{GENERATED}{words}",
        help=f"UTF-8 text, or one that the model writes (default: {BUILTIN}; of norm-tweaking {GENERATED})",
    )
    group.add_argument("--calibration-tokens", type=int, metavar="N", help=f"(default: the effort's{fewer})")
    group.add_argument(
        "--max-memory",
        type=file_size,
        metavar="SIZE",
        help="most memory that measuring may take, as 4GB; the bytes written are the same (default: all of this machine's)",
    )
    group.add_argument("--seed", type=int, metavar="N", default=DEFAULTS.data.seed, help="(default: %(default)s)")

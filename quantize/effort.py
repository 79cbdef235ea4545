"""How hard to try: what ``--effort`` stands for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """What a level of effort stands for; each field can be asked for by itself.

    ``token_weight`` "gradient" and ``tune_steps`` need the whole source in memory, in float32: once, and about four times.
    """

    method: str
    selection: str
    token_weight: str
    calibration_tokens: int
    block_steps: int
    tune_steps: int


EFFORTS = {
    "fast": Effort("search-ada", "hessian", "unit", 8192, 0, 0),
    "default": Effort("gptq-ada", "hessian", "gradient", 16384, 0, 0),
    "best": Effort("gptq-ada", "hessian", "gradient", 32768, 30, 32),
}
DEFAULT = EFFORTS["default"]

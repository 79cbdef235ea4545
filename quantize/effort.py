"""How hard to try: what ``--effort`` stands for."""

from __future__ import annotations

from quantize.config import DataSpec, QuantizeConfig
from quantize.methods import Around

EFFORTS = {
    "fast": QuantizeConfig("search-ada", data=DataSpec(tokens=8192, token_weight="unit")),
    "default": QuantizeConfig(),
    "best": QuantizeConfig(data=DataSpec(tokens=32768), around=Around(block_steps=30, tune_steps=32)),
}

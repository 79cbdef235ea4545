"""genai_config.json of any tool, as far as it is believed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from quantize.errors import FileFormatError
from quantize.outside import MIB, Door, Size, TokenId
from quantize.template.onnx_genai import GENAI_FILE

DOOR = Door(FileFormatError, "is not as `adadim export onnx` writes it, export it again", MIB)


HEAD_DOOR = Door(FileFormatError, "so it does not say the head size, nor does the graph; export it again", MIB)


class DecoderJson(msgspec.Struct):
    """``filename`` is the graph's, beside it."""

    filename: str
    num_hidden_layers: Size
    num_key_value_heads: Size
    head_size: Size
    session_options: dict[str, Any]


class ModelJson(msgspec.Struct):
    """Ids may be missing where the tokenizer has none."""

    decoder: DecoderJson
    context_length: Size
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None

    @property
    def eos_token_ids(self) -> list[int]:
        """One, several or none, sorted."""
        ends = self.eos_token_id
        return sorted(ends) if isinstance(ends, list) else [] if ends is None else [ends]


class GenaiJson(msgspec.Struct):
    """The file."""

    model: ModelJson
    search: dict[str, Any]


class _HeadSize(msgspec.Struct):
    head_size: Size


class _Decoder(msgspec.Struct):
    decoder: _HeadSize


class _Model(msgspec.Struct):
    model: _Decoder


def read_genai(folder: Path) -> tuple[GenaiJson, dict[str, Any]]:
    """What is believed, and the whole as it stands there. Raises FileFormatError."""
    raw = DOOR.load(folder / GENAI_FILE, dict[str, Any])
    return DOOR.convert(raw, folder / GENAI_FILE, GenaiJson), raw


def read_head_size(folder: Path) -> int:
    """Of a folder of any tool: graphs of genai's builder name it and do not count it. Raises FileFormatError."""
    return HEAD_DOOR.load(folder / GENAI_FILE, _Model).model.decoder.head_size

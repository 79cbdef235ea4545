"""What each maker's graph of a small twin came to, remembered: a try takes 10 to 20 seconds, and says the same every time.

::

    HOME/DIGEST.json        {"sizes": of the model, "said": {maker: why not, or ""}, "seal": the file's own digest}

DIGEST is of all that a verdict follows from. A file is written whole or not at all; one that is damaged, or none of ours, is as
none, and so is one that cannot be written.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantize.checkpoint.shards import FILE, files_digest
from quantize.errors import LINE, CheckpointError, OutputError
from quantize.outside import MIB, Count, Door
from quantize.store.outputs import new_file
from quantize.store.seal import OPEN, closed, holds
from quantize.template import converter
from quantize.template.process import Answer

DOOR = Door(CheckpointError, "it is made anew", MIB)
OURS = Path(__file__).parent, Path(__file__).parents[1] / "onnx"  # what asks and judges
PACKAGES = ("mobius-onnx", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "torch", "transformers")
NAMES = ("_name_or_path", "name_or_path")  # keys of config.json from which nothing follows
BESIDE = ("tokenizer", "special_tokens", "chat_template")  # files that a twin has, too
BEFORE = b'"seal": "'
Word = Annotated[str, msgspec.Meta(max_length=LINE)]


class Sizes(Answer):
    """Of the model, and ``twin_layers`` of its twin; as the adapter's action "twin" answers."""

    hidden_size: Count = 0
    num_hidden_layers: Count = 0
    num_attention_heads: Count = 0
    twin_layers: Count = 0
    model_type: Word = ""
    max_position: Count = 0
    experts: Count = 0


class _Held(msgspec.Struct, forbid_unknown_fields=True):
    sizes: Sizes
    said: Annotated[dict[Word, Word], msgspec.Meta(max_length=16)]
    seal: Word


class Verdicts:
    """Of the models of one config. ``said``: by maker why its graph is none, "" for one that computes what the twin does."""

    def __init__(self, folder: Path, forget: bool = False) -> None:
        """``folder`` of config.json; ``forget``: what was said before counts no more. Raises CheckpointError."""
        self.path = home() / f"{_digest(folder)}.json"
        held = None if forget else _read(self.path)
        self.sizes = Sizes() if held is None else held.sizes
        self.said = {} if held is None else held.said

    def note(self, by: str, said: str) -> None:
        """Remember it, with ``sizes``, which are known by now."""
        self.said[by] = said
        held = msgspec.to_builtins(_Held(self.sizes, self.said, OPEN))
        with suppress(OutputError), new_file(self.path, force=True) as file:
            file.write(closed(json.dumps(held, sort_keys=True).encode(), BEFORE))


def home() -> Path:
    """Where they lie: beside llama.cpp's converter."""
    return converter.home().with_name("graphs")


def _read(path: Path) -> _Held | None:
    try:
        data = DOOR.read(path)
        held = DOOR.json(data, path, _Held)
    except CheckpointError:
        return None
    return held if holds(data, held.seal) else None


def _digest(folder: Path) -> str:
    """Hex digits of the config, of what lies beside it in a twin, and of all that makes graphs and judges them."""
    made_by = dict[str, str]()
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            made_by[package] = version(package)
    said = {
        "config": _nameless(FILE.load(folder / "config.json", dict[str, Any])),
        "beside": files_digest(path for path in folder.iterdir() if path.is_file() and path.name.startswith(BESIDE)),
        "code": files_digest(path for room in OURS for path in room.glob("*.py")),
        "made_by": made_by,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _nameless(raw: Any) -> Any:  # noqa: ANN401 - JSON
    return {key: _nameless(value) for key, value in raw.items() if key not in NAMES} if isinstance(raw, dict) else raw

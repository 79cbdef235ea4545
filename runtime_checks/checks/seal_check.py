"""The digests that a file holds of itself (docs/reference/verify.md), computed anew from its bytes.

They see a changed byte where nothing else is there to compare with. Whoever changes a file on purpose can seal it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx

from runtime_checks.measure.results import Check, noted, within
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.onnx_runner import load_graph
from runtime_checks.runtimes.weights import open_gguf

SEAL = "adadim.sha256."
OPEN = b"0" * 64
TOKENIZER_FILES = ("chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
EXACT = 0.0  # digests are equal or they are not


def check_seal(path: Path) -> list[Check]:
    """Every seal of a GGUF or an ONNX folder; a note for a file without. Raises FileFormatError for a damaged file."""
    held, digests = _DIGESTS[open_exported(path).writer](path)
    if not held:
        return [
            noted(
                "seal",
                path.name,
                0.0,
                "it holds none: a byte that changed after it was written is seen by the other checks alone",
            )
        ]
    return [
        within(f"sha256 of the {part} = the file's seal", path.name, float(held.get(part) != digest), EXACT)
        for part, digest in digests.items()
    ]


def _gguf_digests(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """By part: what the file says, and what its bytes give; of a split one the parts of all files, one after the other."""
    file = open_gguf(path)
    held, headers, digest = _seals(file.metadata), list[bytes](), hashlib.sha256()
    for part in file.parts:
        data = np.memmap(part.path, np.uint8, "r")
        headers.append(data[: part.start].tobytes())
        digest.update(data[part.start :].data)
    return held, {"data": digest.hexdigest(), "header": _sealed(b"".join(headers), held.get("header"))}


def _onnx_digests(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """See ``_gguf_digests``: all data files, one after the other; the tokenizer's are listed as sha256sum writes them, in the
    order of their names."""
    graph = load_graph(folder)
    held = _seals({entry.key: entry.value for entry in graph.metadata_props})
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in TOKENIZER_FILES if (folder / name).is_file()]
    model = (folder / "model.onnx").read_bytes()
    return held, {
        "data": _sha256(*(folder / name for name in _locations(graph))),
        "files": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "graph": _sealed(model, held.get("graph")),
    }


def _locations(graph: onnx.ModelProto) -> Iterable[str]:
    """Files of external data, in the order in which initializers name them."""
    entries = (entry for tensor in graph.graph.initializer for entry in tensor.external_data)
    return dict.fromkeys(entry.value for entry in entries if entry.key == "location")


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _seals(metadata: Mapping[str, object]) -> dict[str, str]:
    return {key.removeprefix(SEAL): str(value) for key, value in metadata.items() if key.startswith(SEAL)}


def _sealed(data: bytes, digits: str | None) -> str:
    """The digest of bytes that hold their own, which counts as zeros."""
    if digits is not None and len(digits) == len(OPEN):
        data = data.replace(digits.encode("utf-8", "surrogateescape"), OPEN)
    return hashlib.sha256(data).hexdigest()


_DIGESTS = {"gguf": _gguf_digests, "onnx": _onnx_digests}

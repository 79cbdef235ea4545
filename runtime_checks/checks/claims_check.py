"""What a file says of how it was made (``adadim.*``), against the store that it was written from and against its own tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from quantize.block_turn import FoundTurn
from quantize.errors import FileFormatError
from quantize.grids import grid_to_json
from quantize.model_config import weight_name
from quantize.store.schema import FoundTurnJson, TurnJson, check_turns
from quantize.store.tensors import QuantizedStore
from quantize.turn import Rotation
from quantize.types import Axis
from runtime_checks.checks.turn_check import turn_difference
from runtime_checks.measure.results import Check, within
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.onnx_runner import load_graph
from runtime_checks.runtimes.weights import TRANSPOSED, open_gguf, open_onnx

PREFIX = "adadim."
EXACT = 0.0  # a claim is the store's or it is not
GGUF_FORMAT_VERSION = 1
HEADER_KEYS = ("row_order", "source", "transforms", "notes")  # of an ONNX model, as the store's header has them
OF_THE_FILE = ("version", "accuracy_level", "format_version", "tensors")  # in a file, and compared with that file


def check_claims(path: Path, store: QuantizedStore | None) -> list[Check]:
    """Every ``adadim.*`` key but seals: with ``store`` it is what the store says, and no other is there.

    Without, only what the file's own bytes tell is compared. Raises FileFormatError for a damaged file.
    """
    claimed, expect = _FORMATS[open_exported(path).writer]
    claims, checks = claimed(path, store)
    if store is None:
        return checks
    expected = expect(store)
    keys = [key for key in {**claims, **expected} if key in expected or key not in OF_THE_FILE]
    return [*checks, *(_check("store's", key, claims.get(key), expected.get(key)) for key in keys)]


def _check(whose: str, key: str, held: object, expected: object) -> Check:
    same = type(held) is type(expected) and held == expected  # 1 is not true
    return within(f"metadata = {whose}", f"{PREFIX}{key}", float(not same), EXACT)


def _claims(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    return {key: value for key, value in found.items() if not key.startswith("sha256.")}


def _gguf(path: Path, _store: QuantizedStore | None) -> tuple[dict[str, Any], list[Check]]:
    """All claims, and those that the file's tensors decide."""
    file = open_gguf(path)
    claims, transposed = _claims(file.metadata), any(name.endswith(TRANSPOSED) for name in file.tensors)
    key = "format_version"
    return claims, [_check("what the tensors are", key, claims.get(key), GGUF_FORMAT_VERSION if transposed else None)]


def _onnx(folder: Path, store: QuantizedStore | None) -> tuple[dict[str, Any], list[Check]]:
    """See ``_gguf``; what is JSON is parsed."""
    model = load_graph(folder)
    claims = _claims({entry.key: entry.value for entry in model.metadata_props})
    for key in ("config", "source", "calibration", "transforms", "notes", "tensors"):
        if key in claims:
            claims[key] = _json(claims[key], f"{folder / 'model.onnx'}: {PREFIX}{key}")
    version = _check("what the file says", "version", claims.get("version"), model.producer_version)
    return claims, [version, *_check_tensors(claims.get("tensors"), folder, store)]


def _check_tensors(claimed: Any, folder: Path, store: QuantizedStore | None) -> list[Check]:  # noqa: ANN401 - JSON
    """``adadim.tensors``: each weight matrix of the graph once, with its form and shape, and with the store's grid and axis."""
    held, halved, key = open_onnx(folder), open_exported(folder).halved, "tensors"
    entries = claimed if isinstance(claimed, list) and all(isinstance(item, dict) for item in claimed) else []
    said = {str(item.get("name")): item for item in entries}
    names = [name for name, tensor in held.items() if len(tensor.shape) > 1]
    checks = [_check("what the tensors are", key, (len(entries), sorted(said)), (len(names), sorted(names)))]
    for name in sorted(said.keys() & names):
        item, tensor = said[name], held[name]
        shape = {"form": tensor.form, "shape": list(tensor.shape)}
        checks.append(_check("what the tensors are", f"{key}: {name}", {part: item.get(part) for part in shape}, shape))
        if "turn" in item or "found_turn" in item or tensor.read_turn is not None:
            said_turn = _turn(item, tensor.shape)
            error = math.inf if said_turn is None else turn_difference(tensor.turn(), said_turn)
            checks.append(within("metadata = the turn's signs", f"{PREFIX}{key}: {name}", error, EXACT))
        if store is not None and name in store.records:
            rest = {part: value for part, value in item.items() if part not in ("name", *shape)}
            narrowed = halved and tensor.form != "split"
            checks.append(_check("store's", f"{key}: {name}", rest, _expected_tensor(store, name, narrowed)))
    return checks


class _Turns(msgspec.Struct):
    """What may be claimed of a weight's input."""

    turn: TurnJson | None
    found_turn: FoundTurnJson | None


def _expected_tensor(store: QuantizedStore, name: str, narrowed: bool) -> dict[str, Any]:
    """``narrowed``: scales are float16, whatever the store has."""
    record = store.records[name]
    inputs = {"inputs": record.inputs} if record.inputs and weight_name(name) == name else {}
    if record.grid is None:
        return {"grid": record.dtype, "axis": str(Axis.PER_OC), **inputs}
    grid = grid_to_json(record.grid)
    scales = {"scale_dtype": "float16"} if narrowed and "scale_dtype" in grid else {}
    turn = {} if record.turn is None else {"turn": record.turn.to_json()}
    if record.found_turn is not None:
        turn = {"found_turn": {"size": record.found_turn.size}}
    activation = {} if record.activation is None else {"activation": record.activation.name}
    return {**grid, **scales, "axis": str(record.axis), **turn, **activation, **inputs}


def _turn(item: Mapping[str, Any], shape: tuple[int, ...]) -> Rotation | FoundTurn | None:
    """What is claimed, None for what is no turn of such a weight's input."""
    try:
        turn = msgspec.convert({key: item.get(key) for key in ("turn", "found_turn")}, _Turns, strict=True)
        check_turns(turn.turn, turn.found_turn, shape, Axis.PER_OC)
    except (msgspec.ValidationError, ValueError):
        return None
    said = turn.turn or turn.found_turn
    return None if said is None else said.make()


def _json(text: str, where: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where} in its metadata is no JSON ({error}); export it again") from error


def _expected_gguf(store: QuantizedStore) -> dict[str, Any]:
    """The keys of docs/reference/gguf-adadim.md; what the store does not know is not in the file."""
    config, calibration, source, imatrix = (store.header.get(key) or {} for key in ("config", "calibration", "source", "imatrix"))
    texts = {
        "version": store.header.get("version"),
        "target": store.target,
        **{key: config.get(key) for key in ("method", "selection", "token_weight")},
        "transforms": json.dumps(store.header.get("transforms") or {}),
        **{f"source.{key}": source.get(key) for key in ("name", "sha256")},
        "calibration.name": calibration.get("text"),
        "calibration.sha256": calibration.get("sha256"),
        **{f"imatrix.{key}": imatrix.get(key) for key in ("name", "sha256")},
    }
    numbers = {key: config.get(key) for key in ("seed", "block_steps", "tune_steps")}
    numbers["calibration.tokens"] = calibration.get("tokens")
    told = {key: str(value) for key, value in texts.items() if value is not None}
    return told | {key: int(value) for key, value in numbers.items() if value is not None}


def _expected_onnx(store: QuantizedStore) -> dict[str, Any]:
    header = store.header
    calibration = header.get("calibration")
    if calibration:  # what only the statistics tell is not in the file
        calibration = {key: value for key, value in calibration.items() if key != "rank_poor"}
    config = header.get("config") or {}
    out = {key: header[key] for key in HEADER_KEYS if key in header}
    out |= {key: value for key, value in {"config": config, "calibration": calibration}.items() if key in header}
    return out | {"target": store.target, "tune_steps": str(config.get("tune_steps", 0))}


_FORMATS = {"gguf": (_gguf, _expected_gguf), "onnx": (_onnx, _expected_onnx)}

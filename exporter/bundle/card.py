"""MODEL_CARD.md: a bundle's manifest for people. Facts only; what nobody stated is said to be unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantize.gguf.names import to_source_name
from quantize.model_config import is_linear, weight_name

UNKNOWN = "not stated"
EVALUATED = {  # key of `adadim eval --json` -> what it is called
    "ppl": "perplexity",
    "source_ppl": "perplexity of the source",
    "kld": "KL divergence to the source, nats a token",
    "kld_p99": "its 99th percentile",
    "top1": "share of tokens where both have the same favourite",
    "tokens": "tokens scored",
    "tokens_per_s": "tokens/s on the machine that measured",
    "runtime": "measured in",
}


def model_card(manifest: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, from the manifest and its list of files."""
    runtime, generation = manifest["runtime"], manifest["generation"]
    size = sum(file["bytes"] for file in files)
    return "\n".join(
        [
            f"# {_cell(manifest['name'])}, quantized, for {manifest['platform']}",
            "",
            "Written by `adadim bundle` from what the model file and its evaluation state. Nothing here is a promise.",
            *_table(
                "What it is",
                {
                    "runtime": f"{runtime['name']} {runtime['minimum_version']} or later ({runtime['package']})",
                    "opens": manifest["model"],
                    "size": f"{size:,} bytes in all",
                    "context": f"{generation['context']:,} tokens, whose cache takes {generation['kv_cache_bytes']:,} bytes",
                    "native library": ", ".join(item["abi"] for item in manifest["libraries"]) or "none",
                },
            ),
            *_before(runtime["name"]),
            *_table("How it is quantized", _quantized(manifest["quantization"])),
            *_table("How good it is", _quality(manifest)),
            *_table("Where it comes from", _origin(manifest)),
            *_table("Licences", _licences(manifest)),
            "",
            "## How to check it",
            "",
            "`python3 verify_bundle.py --digest HEX`, HEX being the sha256 of SHA256SUMS as its maker gave it to you.",
            "",
        ]
    )


def _before(runtime: str) -> Iterable[str]:
    """What a program has to set before it opens the model."""
    if runtime == "onnxruntime":
        yield from (
            "",
            "## Before it is opened",
            "",
            "Set `ORT_DISABLE_TELEMETRY=1` in the environment before onnxruntime is loaded. From 1.29 on it reports every "
            "session to its maker (the model's file name, names in the graph, hashes, a lasting id of the device) on Linux, "
            "macOS, Android and iOS, unless this is set. onnxruntime-web reports nothing.",
        )


def _table(title: str, rows: Mapping[str, Any]) -> Iterable[str]:
    yield from ("", f"## {title}", "", "| | |", "|---|---|")
    yield from (f"| {name} | {_cell(UNKNOWN if value is None else value)} |" for name, value in rows.items())


def _cell(value: Any) -> str:  # noqa: ANN401 - JSON
    """One line of Markdown that shows the text as it is."""
    text = f"{value:,.10g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").split())


def _quantized(quantization: Mapping[str, Any]) -> dict[str, Any]:
    linears, others, parts, beside = list[Mapping[str, Any]](), list[Mapping[str, Any]](), list[Mapping[str, Any]](), 0
    for item in quantization["tensors"]:
        name = to_source_name(item["name"]).removesuffix("_ic")
        if weight_name(name) != name:
            beside += item["shape"][1] if item["axis"] is None else 0
            parts += [item] if item["axis"] is not None else []
        elif len(item["shape"]) == 2:
            (linears if is_linear(name, item["shape"]) else others).append(item)
    return {
        "made for": quantization["target"],
        "weights": f"{quantization['weights']:,}",
        "linear layers": f"{len(linears)}, at {quantization['bits_per_weight']:.3f} bits a weight, scales and all",
        "grids": _counts(_grid(item) for item in [*linears, *parts]),
        "axes of groups": _counts(
            {"per_oc": "per output channel", "per_ic": "per input channel"}.get(item["axis"], "none") for item in linears
        ),
        **({"input channels kept in float16": f"{beside:,}, of all linears together"} if beside else {}),
        "embedding and head": ", ".join(f"{item['name']}: {_grid(item)}" for item in others) or "none",
    }


def _grid(item: Mapping[str, Any]) -> str:
    if item["grid"] != "int":
        return str(item["grid"])
    return f"int{item['bits']} in groups of {item['group_size']}"


def _counts(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(Counter(words).items())) or "none"


def _quality(manifest: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"evaluation": None if manifest["evaluation"] is None else "by `adadim eval`, of a file of this size"}
    rows |= {EVALUATED.get(key, _cell(key)): value for key, value in (manifest["evaluation"] or {}).items()}
    losses = [item["loss"].get(item["axis"]) for item in manifest["quantization"]["tensors"] if "loss" in item]
    known = [loss for loss in losses if loss is not None]
    return rows | ({"losses of rounding": f"{len(known)} tensors, in manifest.json"} if known else {})


def _origin(manifest: Mapping[str, Any]) -> dict[str, Any]:
    source, made = manifest["source"], manifest["provenance"]
    calibration = made["calibration"]
    return {
        "source": source["name"],
        "its sha256": source["sha256"],
        "quantized by": made["adadim_edge"] and f"AdaDim Edge {made['adadim_edge']}",
        "method": made["method"],
        "calibrated on": calibration and f"{calibration['name']}, {calibration['tokens']} tokens, sha256 {calibration['sha256']}",
        "importance matrix": made["imatrix"] or "none",
        "bundled by": f"AdaDim Edge {manifest['bundled_by']}",
    }


def _licences(manifest: Mapping[str, Any]) -> dict[str, Any]:
    licence = manifest["licence"]
    return {
        "the model": licence["name"] or f"{UNKNOWN}: find out before you pass it on",
        "its text": licence["text"],
        "verify_bundle.py, native library": "Apache-2.0, licences/adadim-edge.txt; the library holds Google Highway, the same",
    }

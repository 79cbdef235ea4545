"""A bundle: a model file as an app ships it, with all that it needs and the means to check every byte (docs/reference/bundle.md).

::

    DIR/SHA256SUMS          of every other file; its own sha256 is what an app pins
    DIR/manifest.json       docs/reference/bundle.schema.json
    DIR/MODEL_CARD.md       the same for people
    DIR/verify_bundle.py    checks it all, alone
    DIR/licences/           texts
    DIR/model/              what the runtime reads; what is larger than a part lies in parts
    DIR/libraries/ABI/      the native kernel of MatMulAdaDim
    DIR.zip                 the same, stored
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec

from exporter.bundle import verify_bundle
from exporter.bundle.card import model_card
from exporter.bundle.facts import FOLDER, Facts, read_facts, with_losses
from exporter.bundle.verify_bundle import FORMAT, MANIFEST, SUMS, VERSION, library_problem
from exporter.onnx.genai import MAX_LENGTH
from quantize.errors import ConfigError, ExportError, OutputError, asked
from quantize.outside import MIB, Door, open_regular
from quantize.progress import track
from quantize.store.outputs import Unfinished, check_file, check_folder, new_file
from quantize.store.schema import Bytes, Word
from quantize.template.onnx_genai import GENAI_FILE

PART_SIZE = 24 << 20  # below the 25 MiB that the strictest static hosts take of one file
CARD, CHECKER = "MODEL_CARD.md", "verify_bundle.py"
LIBRARIES = {"android": "libadadim_ort.so", "ios": "libadadim_ort.a"}
PACKAGES = {
    ("onnxruntime", "android"): "com.microsoft.onnxruntime:onnxruntime-android",
    ("onnxruntime", "ios"): "onnxruntime-objc",
    ("onnxruntime", "web"): "onnxruntime-web",
    ("llama.cpp", "android"): "llama.cpp",
    ("llama.cpp", "ios"): "llama.xcframework",
    ("llama.cpp", "web"): "@wllama/wllama",
}
# The oldest that gave what today's give, by trial (docs/reference/bundle.md); older ones load some files and compute them wrong.
MINIMUM = {"onnxruntime": "1.27.0", "llama.cpp": "b6451"}
WITH_EXPERTS = "1.32.0"  # the one whose QMoE was tried; older ones know no accuracy level of it
CHUNK = 1 << 20
EVAL_DOOR = Door(ConfigError, "it is not what `adadim eval --json` writes", MIB)
LIBRARY_DOOR = Door(ExportError, "name a native library", 256 * MIB)
Measure = Annotated[float, msgspec.Meta(ge=0, lt=3.5e38)]


@dataclass(frozen=True)
class BundleOptions:
    """``libraries``: ABI -> the native library built for it. ``evaluation``: what `adadim eval --json` wrote."""

    platform: str
    context: int = MAX_LENGTH
    part_size: int = PART_SIZE
    libraries: Mapping[str, Path] = field(default_factory=dict)
    licence: str | None = None
    licence_text: Path | None = None
    store: Path | None = None
    evaluation: Path | None = None


def write_bundle(path: Path, out: Path, options: BundleOptions, force: bool = False) -> dict[str, Any]:
    """Write ``out`` and ``out``.zip from a GGUF or an ONNX folder; returns the manifest. The same inputs give the same bytes.

    Raises OutputError for an output that exists (without ``force``) or is no bundle, FileFormatError, ConfigError and
    ExportError for what cannot be bundled so.
    """
    archive = out.with_name(out.name + ".zip")
    check_folder(out, force, _foreign)
    check_file(archive, force)
    facts = read_facts(path)
    if facts.halved and options.platform == "ios":
        told = f"computes in float16, and {PACKAGES[facts.runtime, options.platform]} has no such tensors"
        raise ExportError(f"{path}: {told}; export it without {asked('onnx_dtype')}")
    manifest = _manifest(facts, options)
    contents = _contents(facts, options, manifest["generation"]["context"])
    with new_file(archive, force) as file, Unfinished(out, True, force, _foreign) as unfinished:
        _pour(unfinished.path, contents, manifest, options.part_size)
        _zip(unfinished.path, file)
        unfinished.finish()
    return manifest


def sums_digest(folder: Path) -> str:
    """What an app pins: the sha256 of the list of sums."""
    return hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()


def _manifest(facts: Facts, options: BundleOptions) -> dict[str, Any]:
    """All but the list of files."""
    context = min(options.context, facts.context)
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": facts.name,
        "platform": options.platform,
        "runtime": {
            "name": facts.runtime,
            "minimum_version": _minimum(facts),
            "package": PACKAGES[facts.runtime, options.platform],
        },
        "model": facts.model,
        "generation": {**facts.special, "context": context, "kv_cache_bytes": context * facts.kv_bytes, "do_sample": False},
        "libraries": [{"abi": abi, "path": _library_path(options, abi)} for abi in sorted(_libraries(facts, options))],
        "quantization": {
            "target": facts.target,
            **facts.totals,
            "tensors": facts.tensors if options.store is None else with_losses(facts, options.store),
        },
        "evaluation": None if options.evaluation is None else _evaluation(options.evaluation, facts),
        "licence": {
            "name": options.licence or facts.licence,
            "text": None if options.licence_text is None else "licences/model.txt",
        },
        "source": facts.source,
        "provenance": facts.provenance,
        "bundled_by": version("adadim-edge"),
    }


def _libraries(facts: Facts, options: BundleOptions) -> Mapping[str, Path]:
    """Raises ConfigError or ExportError for a library that this bundle has no use for."""
    if options.libraries and facts.target != "onnxruntime+adadim":
        raise ConfigError(
            f"{asked('custom_op')}: the model was made for {facts.target}; only onnxruntime+adadim has a native library"
        )
    for abi, path in options.libraries.items():
        problem = library_problem(LIBRARY_DOOR.read(path), options.platform, abi)
        if problem is not None:
            raise ExportError(f"{path}: {problem}")
    return options.libraries


def _minimum(facts: Facts) -> str:
    """The oldest version of its runtime."""
    stacks = any(len(item["shape"]) > 2 and item["axis"] is not None for item in facts.tensors)
    return WITH_EXPERTS if stacks and facts.runtime == "onnxruntime" else MINIMUM[facts.runtime]


def _library_path(options: BundleOptions, abi: str) -> str:
    return f"libraries/{abi}/{LIBRARIES[options.platform]}"


class Evaluation(msgspec.Struct, omit_defaults=True):
    """What `adadim eval --json` says of a file, in its order."""

    bytes: Bytes
    ppl: Measure | None = None
    source_ppl: Measure | None = None
    kld: Measure | None = None
    kld_p99: Measure | None = None
    top1: Measure | None = None
    tokens: Bytes | None = None
    tokens_per_s: Measure | None = None
    runtime: Word | None = None


def _evaluation(path: Path, facts: Facts) -> dict[str, Any]:
    """Raises ConfigError for what is no report on this very file."""
    report = EVAL_DOOR.load(path, Evaluation)
    if report.bytes != facts.totals["bytes"]:
        raise ConfigError(
            f"{asked('eval', str(path))}: is of a file of {report.bytes:,} bytes, this one has {facts.totals['bytes']:,}"
        )
    told: dict[str, Any] = msgspec.to_builtins(report)
    return {key: value for key, value in told.items() if key != "bytes"}


def _contents(facts: Facts, options: BundleOptions, context: int) -> dict[str, Path | bytes]:
    """Path in the bundle -> where its bytes come from, of all that does not depend on the list of files."""
    own_licence = distribution("adadim-edge").read_text("licenses/LICENSE")
    assert own_licence is not None
    contents = dict(facts.files)
    contents |= {"licences/adadim-edge.txt": own_licence.encode(), CHECKER: Path(verify_bundle.__file__)}
    contents |= {_library_path(options, abi): path for abi, path in options.libraries.items()}
    if options.licence_text is not None:
        contents["licences/model.txt"] = options.licence_text
    genai = contents.get(f"{FOLDER}/{GENAI_FILE}")
    if isinstance(genai, bytes):
        contents[f"{FOLDER}/{GENAI_FILE}"] = _genai_config(genai, context)
    return contents


def _genai_config(data: bytes, context: int) -> bytes:
    """With a cache of ``context`` tokens, and no library: which one it is depends on the ABI, so the app names it."""
    config = json.loads(data)  # of ``Facts``, which has read it
    config["search"]["max_length"] = context
    config["model"]["decoder"]["session_options"].pop("custom_ops_library", None)
    return (json.dumps(config, indent=2) + "\n").encode()


def _pour(folder: Path, contents: Mapping[str, Path | bytes], manifest: dict[str, Any], part_size: int) -> None:
    files = [
        _store(folder, path, contents[path], part_size if path.startswith(f"{FOLDER}/") else None)
        for path in track(sorted(contents), "bundling")
    ]
    files.append(_store(folder, CARD, model_card(manifest, files).encode()))
    manifest["files"] = sorted(files, key=lambda file: str(file["path"]))
    stored = [part for file in manifest["files"] for part in file.get("parts", [file])]
    stored.append(_store(folder, MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode()))
    sums = "".join(f"{item['sha256']}  {item['path']}\n" for item in sorted(stored, key=lambda item: str(item["path"])))
    (folder / SUMS).write_text(sums, encoding="ascii")
    problems = verify_bundle.verify(folder)
    assert not problems, problems


def _store(folder: Path, name: str, content: Path | bytes, part_size: int | None = None) -> dict[str, Any]:
    """Write a file, in parts if it is larger than one; its entry in the manifest."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    part_size = part_size or max(1, size)
    count = max(1, -(-size // part_size))
    whole, parts = hashlib.sha256(), []
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO(content) if isinstance(content, bytes) else open_regular(content) as source:
        for index in range(count):
            part = name if count == 1 else f"{name}.{index + 1:05d}-of-{count:05d}"
            parts.append({"path": part, **_copy(source, folder / part, part_size, whole)})
    entry = {"path": name, "bytes": sum(part["bytes"] for part in parts), "sha256": whole.hexdigest()}
    return entry if count == 1 else entry | {"parts": parts}


def _copy(source: BinaryIO, path: Path, most: int, whole: Any) -> dict[str, Any]:  # noqa: ANN401 - hashlib's hash
    """The next ``most`` bytes; ``whole`` is told of them too."""
    digest, left = hashlib.sha256(), most
    with path.open("xb") as file:
        while chunk := source.read(min(left, CHUNK)):
            file.write(chunk)
            digest.update(chunk)
            whole.update(chunk)
            left -= len(chunk)
    return {"bytes": most - left, "sha256": digest.hexdigest()}


def _zip(folder: Path, file: BinaryIO) -> None:
    """Stored, in the order of names, dated 1980 as ZipInfo is by itself: the same files give the same zip."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(item for item in folder.rglob("*") if item.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            info.create_system, info.external_attr, info.file_size = 3, 0o100644 << 16, path.stat().st_size
            with path.open("rb") as source, archive.open(info, "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)


class _Mark(msgspec.Struct):
    format: str


def _foreign(folder: Path) -> str | None:
    """Why a folder is no bundle, or holds what no bundle does."""
    door = Door(OutputError, "it is no bundle")
    try:
        listed = {line[66:] for line in door.text(door.read(folder / SUMS), SUMS).splitlines()}
        ours = door.load(folder / MANIFEST, _Mark).format == FORMAT
    except OutputError:
        ours = False
    if not ours:
        return f"has no {SUMS} and {MANIFEST} of an earlier bundle"
    names = sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*") if not item.is_dir() or item.is_symlink())
    return next((f"{name} in it is no part of the bundle" for name in names if name not in listed | {SUMS}), None)

"""What a bundle holds: its files, its manifest by the published schema, the same bytes twice, nothing of this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

import exporter.bundle.folder
from exporter.bundle.folder import BundleOptions, sums_digest, write_bundle
from exporter.bundle.verify_bundle import verify
from exporter.cli.main import main
from exporter.inspect import inspect
from quantize.errors import ConfigError, ExportError, FileFormatError, OutputError
from tests.exporter.bundles import archive, elf
from tests.runtime_checks.made import Made, make

ROOT = Path(__file__).parent.parent.parent
SCHEMA = json.loads((ROOT / "docs" / "reference" / "bundle.schema.json").read_text())
PART = 1 << 14
FORMS = ("llama.cpp", "onnx-oc", "onnx-adadim")


@pytest.fixture(scope="module", params=FORMS)
def made(request, tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def adadim(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("adadim"), "onnx-adadim")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("gguf"), "llama.cpp")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def joined(folder: Path, entry: dict) -> bytes:
    return b"".join((folder / part["path"]).read_bytes() for part in entry.get("parts", [entry]))


@pytest.mark.parametrize("platform", ["android", "ios", "web"])
def test_a_bundle_fits_the_schema_and_its_own_checks(made, tmp_path, platform):
    manifest = write_bundle(made.file, tmp_path / "out", BundleOptions(platform, part_size=PART, store=made.store.path))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    held = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert held == manifest
    jsonschema.Draft202012Validator(SCHEMA).validate(held)
    assert verify(tmp_path / "out", sums_digest(tmp_path / "out")) == []
    assert manifest["platform"] == platform
    assert manifest["quantization"]["bytes"] == inspect(made.file)["totals"]["bytes"]
    assert manifest["source"]["sha256"] == made.store.header["source"]["sha256"]
    losses = [tensor["loss"] for tensor in manifest["quantization"]["tensors"] if "loss" in tensor]
    assert len(losses) == sum(record.grid is not None for record in made.store.records.values())


def test_model_files_are_as_they_were_but_in_parts(made, tmp_path):
    manifest = write_bundle(made.file, tmp_path / "out", BundleOptions("web", part_size=PART))
    sources = (
        {"model/model.gguf": made.file}
        if made.file.is_file()
        else {f"model/{path.name}": path for path in made.file.iterdir() if path.name != "genai_config.json"}
    )
    entries = {entry["path"]: entry for entry in manifest["files"]}
    for path, source in sources.items():
        data = joined(tmp_path / "out", entries[path])
        assert data == source.read_bytes()
        assert (entries[path]["bytes"], entries[path]["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert ("parts" in entries[path]) == (len(data) > PART)
        assert all(part["bytes"] <= PART for part in entries[path].get("parts", ()))
    assert manifest["model"] in entries
    assert sorted(sources) == sorted(path for path in entries if path.startswith("model/") and "genai" not in path)


def test_the_same_inputs_give_the_same_bytes_and_the_zip_holds_them(made, tmp_path):
    for name in ("a", "b"):
        write_bundle(made.file, tmp_path / name, BundleOptions("android", part_size=PART))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as held:
        assert {info.filename: held.read(info) for info in held.infolist()} == files(tmp_path / "a")
        assert all(info.compress_type == zipfile.ZIP_STORED and info.external_attr >> 16 == 0o100644 for info in held.infolist())
        assert held.namelist() == sorted(held.namelist())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "a.zip", "b", "b.zip"]


def test_nothing_of_this_machine_is_in_it(made, tmp_path):
    options = BundleOptions("web", part_size=PART, store=made.store.path)
    write_bundle(made.file, tmp_path / "out", options)
    for data in files(tmp_path / "out").values():
        assert str(tmp_path).encode() not in data
        assert str(made.file.parent).encode() not in data


def test_the_checker_inside_runs_alone(made, tmp_path):
    write_bundle(made.file, tmp_path / "out", BundleOptions("web", part_size=PART))
    command = [sys.executable, "-I", "-S", "verify_bundle.py", "--digest", sums_digest(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("out: ok\n")
    (tmp_path / "out" / "MODEL_CARD.md").unlink()
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "MODEL_CARD.md: missing")


def test_a_library_for_each_abi(adadim, tmp_path):
    for name, data in (("arm.so", elf()), ("intel.so", elf(62)), ("ios.a", archive())):
        (tmp_path / name).write_bytes(data)
    libraries = {"x86_64": tmp_path / "intel.so", "arm64-v8a": tmp_path / "arm.so"}
    manifest = write_bundle(adadim.file, tmp_path / "out", BundleOptions("android", part_size=PART, libraries=libraries))
    assert manifest["libraries"] == [{"abi": abi, "path": f"libraries/{abi}/libadadim_ort.so"} for abi in ("arm64-v8a", "x86_64")]
    assert (tmp_path / "out" / "libraries" / "x86_64" / "libadadim_ort.so").read_bytes() == elf(62)
    manifest = write_bundle(adadim.file, tmp_path / "i", BundleOptions("ios", libraries={"arm64": tmp_path / "ios.a"}))
    assert manifest["libraries"] == [{"abi": "arm64", "path": "libraries/arm64/libadadim_ort.a"}]
    jsonschema.Draft202012Validator(SCHEMA).validate(manifest)


def test_the_context_is_a_phones_and_no_library_is_named(adadim, tmp_path):
    source = tmp_path / "onnx"
    source.mkdir()
    for path in adadim.file.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = "libadadim_ort.so"
    (source / "genai_config.json").write_text(json.dumps(config))
    (source / "libadadim_ort.so").write_bytes(b"this machine's")
    manifest = write_bundle(source, tmp_path / "out", BundleOptions("web", context=100))
    inside = json.loads((tmp_path / "out" / "model" / "genai_config.json").read_text())
    assert inside["search"]["max_length"] == manifest["generation"]["context"] == 100
    assert "custom_ops_library" not in inside["model"]["decoder"]["session_options"]
    assert not (tmp_path / "out" / "model" / "libadadim_ort.so").exists()
    assert manifest["generation"]["kv_cache_bytes"] == 100 * 2 * 2 * 2 * 16 * 4  # k and v, 2 layers, 2 heads of 16, float32
    assert (manifest["generation"]["bos_token_id"], manifest["generation"]["eos_token_ids"]) == (1, [2])
    beyond = write_bundle(source, tmp_path / "beyond", BundleOptions("web", context=10**6))
    assert beyond["generation"]["context"] == config["model"]["context_length"] == 512


def test_a_gguf_says_the_same(gguf, tmp_path):
    manifest = write_bundle(gguf.file, tmp_path / "out", BundleOptions("ios", context=100))
    expected = {
        "bos_token_id": 1,
        "eos_token_ids": [2],
        "context": 100,
        "kv_cache_bytes": 100 * 2 * 2 * 2 * 16 * 2,
        "do_sample": False,
    }
    assert manifest["generation"] == expected


def test_the_card_states_facts_and_what_is_unknown(made, tmp_path):
    (tmp_path / "LICENSE").write_text("You may.")
    size = inspect(made.file)["totals"]["bytes"]
    (tmp_path / "eval.json").write_text(json.dumps({"ppl": 14.25, "kld": 0.05, "runtime": "some | runtime", "bytes": size}))
    options = BundleOptions("web", licence="mit", licence_text=tmp_path / "LICENSE", evaluation=tmp_path / "eval.json")
    manifest = write_bundle(made.file, tmp_path / "out", options)
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "| perplexity | 14.25 |" in card and "| measured in | some \\| runtime |" in card
    assert "| the model | mit |" in card and (tmp_path / "out" / "licences" / "model.txt").read_text() == "You may."
    assert manifest["licence"] == {"name": "mit", "text": "licences/model.txt"}
    assert f"| its sha256 | {made.store.header['source']['sha256']} |" in card
    assert ("Set `ORT_DISABLE_TELEMETRY=1` in the environment" in card) == made.file.is_dir()
    write_bundle(made.file, tmp_path / "bare", BundleOptions("web"))
    bare = (tmp_path / "bare" / "MODEL_CARD.md").read_text()
    assert "| evaluation | not stated |" in bare and "| the model | not stated: find out before you pass it on |" in bare
    assert (tmp_path / "bare" / "licences" / "adadim-edge.txt").read_bytes() == (ROOT / "LICENSE").read_bytes()


REFUSED_LIBRARIES = {
    "glibc by name": (elf(needed=("libc.so.6",)), "is linked against glibc (libc.so.6), which Android has not"),
    "glibc by version": (elf(names=("RegisterCustomOps", "GLIBC_2.17")), "is linked against glibc"),
    "another machine": (elf(62), "is built for x86_64, not for arm64-v8a"),
    "a machine of 32 bits": (elf(40), "is built for armeabi-v7a, not for arm64-v8a"),
    "4 KiB pages": (elf(alignment=4096), "has a segment at 0x0 aligned to 4,096; Android 15 needs 16,384"),
    "pages that do not match": (elf(address=4096), "has a segment at 0x1000 aligned to 16,384; Android 15 needs 16,384"),
    "a library of its own": (elf(needed=("libc.so", "libc++_shared.so")), "needs libc++_shared.so, which no Android brings"),
    "another library": (elf(names=("OrtGetApiBase",)), "exports no RegisterCustomOps"),
    "a program": (elf(kind=2), "is no shared library"),
    "cut off": (elf()[:150], "is damaged: its headers point outside it"),
    "empty": (b"", "is no ELF library, which Android needs"),
    "text": (b"#!/bin/sh\n", "is no ELF library, which Android needs"),
}


@pytest.mark.parametrize("case", REFUSED_LIBRARIES)
def test_a_wrong_library_is_refused_by_name(adadim, tmp_path, case):
    data, message = REFUSED_LIBRARIES[case]
    (tmp_path / "lib.so").write_bytes(data)
    options = BundleOptions("android", libraries={"arm64-v8a": tmp_path / "lib.so"})
    with pytest.raises(ExportError) as caught:
        write_bundle(adadim.file, tmp_path / "out", options)
    assert str(caught.value).startswith(f"{tmp_path / 'lib.so'}: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["lib.so"]


REFUSED_ARCHIVES = {
    "another machine": (archive(machine=0x01000007), "is built for Mach-O machine 0x1000007, not for arm64"),
    "a Mac": (archive(platform=1), "is built for macOS, not for iOS"),
    "the simulator": (archive(platform=7), "is built for the iOS simulator, not for iOS"),
    "ELF": (elf(), "is no static library (.a) of one machine, which iOS needs"),
    "nothing in it": (b"!<arch>\n", "holds no Mach-O object with RegisterCustomOps"),
    "without the entry": (archive(name=b"_Other\0"), "holds no Mach-O object with RegisterCustomOps"),
    "no size": (b"!<arch>\n" + b"x" * 60, "is damaged: its headers point outside it"),
}


@pytest.mark.parametrize("case", REFUSED_ARCHIVES)
def test_a_wrong_archive_is_refused_by_name(adadim, tmp_path, case):
    data, message = REFUSED_ARCHIVES[case]
    (tmp_path / "lib.a").write_bytes(data)
    with pytest.raises(ExportError) as caught:
        write_bundle(adadim.file, tmp_path / "out", BundleOptions("ios", libraries={"arm64": tmp_path / "lib.a"}))
    assert str(caught.value) == f"{tmp_path / 'lib.a'}: {message}"


@pytest.mark.parametrize(
    ("platform", "abi", "message"),
    [
        ("web", "wasm32", "web takes no library for 'wasm32'; it takes none"),
        ("android", "armeabi-v7a", "android takes no library for 'armeabi-v7a'; it takes arm64-v8a and x86_64"),
        ("ios", "arm64-v8a", "ios takes no library for 'arm64-v8a'; it takes arm64"),
    ],
)
def test_an_abi_that_the_platform_has_not(adadim, tmp_path, platform, abi, message):
    (tmp_path / "lib.so").write_bytes(elf())
    with pytest.raises(ExportError) as caught:
        write_bundle(adadim.file, tmp_path / "out", BundleOptions(platform, libraries={abi: tmp_path / "lib.so"}))
    assert str(caught.value).endswith(message)


def test_only_what_uses_a_library_gets_one(gguf, tmp_path):
    (tmp_path / "lib.so").write_bytes(elf())
    with pytest.raises(ConfigError, match=r"made for llama\.cpp; only onnxruntime\+adadim has a native library"):
        write_bundle(gguf.file, tmp_path / "out", BundleOptions("android", libraries={"arm64-v8a": tmp_path / "lib.so"}))


def test_another_models_store_and_evaluation_are_refused(gguf, adadim, tmp_path):
    options = BundleOptions("web")
    with pytest.raises(ConfigError, match=r"is not what this file was written from"):
        write_bundle(gguf.file, tmp_path / "out", replace(options, store=adadim.store.path))
    for text, message in (
        ('{"bytes": 7}', r"is of a file of 7 bytes, this one has [\d,]+"),
        ("[]", "is not what `adadim eval --json` writes"),
        ("{", "is not what `adadim eval --json` writes"),
    ):
        (tmp_path / "eval.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            write_bundle(gguf.file, tmp_path / "out", replace(options, evaluation=tmp_path / "eval.json"))


def test_what_cannot_be_bundled(gguf, adadim, tmp_path):
    transposed = make(tmp_path / "transposed", "gguf-adadim").file
    (tmp_path / "text.gguf").write_text("no GGUF")
    (tmp_path / "empty").mkdir()
    cases = {
        transposed: (ExportError, "holds tensors that no runtime reads (gguf-adadim); quantize for llama.cpp"),
        gguf.store.path: (ExportError, "write its file: adadim export gguf"),
        tmp_path / "text.gguf": (FileFormatError, "is not a GGUF file"),
        tmp_path / "empty": (FileFormatError, "is not a GGUF file or an ONNX folder"),
        tmp_path / "nowhere": (FileFormatError, "not there"),
    }
    for path, (kind, message) in cases.items():
        with pytest.raises(kind) as caught:
            write_bundle(path, tmp_path / "out", BundleOptions("web"))
        assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.zip").exists()


def test_only_a_bundle_is_replaced(gguf, tmp_path):
    out, options = tmp_path / "out", BundleOptions("web")
    write_bundle(gguf.file, out, options)
    with pytest.raises(OutputError, match="exists already"):
        write_bundle(gguf.file, out, options)
    write_bundle(gguf.file, out, replace(options, platform="ios"), force=True)
    assert json.loads((out / "manifest.json").read_text())["platform"] == "ios"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt in it is no part of the bundle"):
        write_bundle(gguf.file, out, options, force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match=r"has no SHA256SUMS and manifest\.json of an earlier bundle"):
        write_bundle(gguf.file, tmp_path / "other", options, force=True)


def test_a_full_disk_leaves_what_was_there(gguf, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_bundle(gguf.file, tmp_path / "out", BundleOptions("ios"))
    before = files(tmp_path)
    monkeypatch.setattr(exporter.bundle.folder, "_zip", full)
    for name, force in (("out", True), ("new", False)):
        with pytest.raises(OutputError, match="free some space"):
            write_bundle(gguf.file, tmp_path / name, BundleOptions("web"), force)
        assert files(tmp_path) == before


def test_the_command_line(adadim, tmp_path, capsys):
    (tmp_path / "lib.so").write_bytes(elf())
    out = tmp_path / "out"
    words = ["bundle", str(adadim.file), "--platform", "android", "--out", str(out), "--part-size", "1MB"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert sums_digest(out) in text and "portable body runs" in text and "licence    not stated" in text
    assert main([*words, "--force", "--custom-op", f"arm64-v8a={tmp_path / 'lib.so'}", "--licence", "mit"]) == 0
    text = capsys.readouterr().out
    assert "libraries  arm64-v8a" in text and "licence    mit" in text and "portable" not in text
    assert main(["bundle", "verify", str(out), "--digest", sums_digest(out).upper()]) == 0
    assert capsys.readouterr().out == f"{out}: ok\n"
    assert main(["bundle", "verify", str(out), "--digest", "0" * 64]) == 1
    assert capsys.readouterr().out.splitlines()[0].startswith("SHA256SUMS: its sha256 is ")
    assert main(["bundle", "verify", str(tmp_path / "none")]) == 1
    assert f"{tmp_path / 'none'}: is no folder" in capsys.readouterr().out
    twice = ["--custom-op", "arm64-v8a=a", "--custom-op", "arm64-v8a=b", "--force"]
    assert main([*words, *twice]) == 2
    assert "names an ABI twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part-size", "10kB"], "makes too many files"),
        (["--custom-op", "lib.so"], "is no ABI=FILE"),
        (["--platform", "windows"], "invalid choice: 'windows'"),
    ],
)
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bundle", "model.gguf", "--platform", "web", "--out", "out", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bundle", "verify", "out", "--digest", "abc"])
    assert "is no sha256" in capsys.readouterr().err

"""Every check of a GGUF that lies in several files, and of a file whose source does."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exporter.cli.main import main
from exporter.gguf.file import write_gguf
from quantize import Checkpoint, QuantizedStore, open_checkpoint
from quantize.gguf.files import COUNT, NUMBER, TENSORS, part_paths
from quantize.statistics.calibration import CalibrationText
from runtime_checks.checks.verify import steps_of, verify
from runtime_checks.measure.compare import compare_files
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from runtime_checks.measure.results import Check
from runtime_checks.reference.gguf import decode_gguf, read_gguf
from runtime_checks.runtimes.decoded_gguf import write_decoded
from runtime_checks.runtimes.exported import open_exported
from tests.any_gguf import make_gguf
from tests.stores import rtn_store
from tests.tiny import TEXT, make_tiny_model

SIZES = {40_000: 3, 22_000: 5}  # bytes of a file at most -> how many; of the latter the first has no tensor


class Kit:
    """A store, its source, and what is written of it."""

    def __init__(self, folder: Path) -> None:
        self.source = open_checkpoint(make_tiny_model(folder / "model", tied=False))
        self.store = rtn_store(self.source.path, folder / "store")
        self.whole = write_gguf(self.store, folder / "whole.gguf")
        other = open_checkpoint(make_tiny_model(folder / "other" / "model", tied=False, seed=1))
        self.other = rtn_store(other.path, folder / "other" / "store")


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Kit:
    return Kit(tmp_path_factory.mktemp("kit"))


def misses(checks: list[Check]) -> list[Check]:
    return [check for check in checks if not check.ok]


@pytest.mark.parametrize("size", SIZES)
def test_it_verifies(kit, tmp_path, size):
    first = write_gguf(kit.store, tmp_path / "m.gguf", split_size=size)
    paths = part_paths(tmp_path / "m.gguf", SIZES[size])
    checks = verify(first, kit.source, kit.store)
    assert not misses(checks)
    one = verify(kit.whole, kit.source, kit.store)
    assert {check.name for check in checks} == {check.name for check in one}
    assert [check.tensor for check in checks if check.name.startswith("bytes after")] == [path.name for path in paths]
    assert len(checks) == len(one) + len(paths) - 1


@pytest.mark.parametrize("target, method", [("gguf-adadim", "rtn-ic"), ("llama.cpp", "rtn-oc")])
def test_of_each_target(kit, tmp_path, target, method):
    store = rtn_store(kit.source.path, tmp_path / "store", target, method)
    first = write_gguf(store, tmp_path / "m.gguf", split_size=40_000)
    assert not misses(verify(first, kit.source, store))


def test_what_is_read_is_what_the_one_file_holds(kit, tmp_path):
    first = write_gguf(kit.store, tmp_path / "m.gguf", split_size=40_000)
    one, several = read_gguf(kit.whole), read_gguf(first)
    assert list(one.tensors) == list(several.tensors)
    assert one.metadata.keys() == several.metadata.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(several.tensors[name].data, tensor.data)
    assert open_exported(first).nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    write_decoded(first, tmp_path / "decoded.gguf")
    decoded = read_gguf(tmp_path / "decoded.gguf")
    assert decoded.metadata.keys() == one.metadata.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(decode_gguf(decoded.tensors[name]), decode_gguf(tensor))


def test_it_is_measured(kit, tmp_path):
    first = write_gguf(kit.store, tmp_path / "m.gguf", split_size=40_000)
    options = EvalOptions(64, 1)
    several, one = (evaluate(path, kit.source, TEXT, options) for path in (first, kit.whole))
    assert several["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert all(several[key] == one[key] for key in ("ppl", "kld", "top1", "tokens"))
    weights = [evaluate(path, kit.source, TEXT, EvalOptions(64, 1, weights_only=True)) for path in (first, kit.whole)]
    assert weights[0]["kld"] == weights[1]["kld"]


def test_a_seal_sees_every_byte_of_every_file(kit, tmp_path):
    first = write_gguf(kit.store, tmp_path / "m.gguf", split_size=22_000)
    rng = np.random.default_rng(0)
    assert not misses(seal(first, kit))
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        for at in {4, 8, 40, len(data) - 1, *rng.integers(len(data), size=12).tolist()}:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert missed_or_unreadable(first, kit), (path.name, at)
        path.write_bytes(data)
    assert not misses(seal(first, kit))


def seal(first: Path, kit: Kit) -> list[Check]:
    return steps_of(first)["seal"](first, kit.source, None)


def missed_or_unreadable(first: Path, kit: Kit) -> bool:
    try:
        return bool(misses(seal(first, kit)))
    except Exception as error:  # the step says so instead of comparing
        return type(error).__name__ in ("FileFormatError", "DamagedFileError")


def part(first: Path, number: int) -> Path:
    return part_paths(first.with_name("m.gguf"), 3)[number - 1]


def put(first: Path, number: int, key: str, value: int) -> None:
    """Another number in a part's header."""
    path, name = part(first, number), key.encode()
    data = bytearray(path.read_bytes())
    struct.pack_into("<i" if key == TENSORS else "<H", data, data.index(name) + len(name) + 4, value)
    path.write_bytes(data)


def another(first: Path, kit: Kit) -> None:
    """The second part of another model of the same shapes: nothing in it is wrong by itself."""
    first.with_name("other").mkdir()
    write_gguf(kit.other, first.with_name("other") / "m.gguf", split_size=40_000)
    shutil.copy(first.with_name("other") / part(first, 2).name, part(first, 2))


SEALS = {f"sha256 of the {what} = the file's seal" for what in ("data", "header")}
FAULTS: dict[str, tuple[Callable[[Path, Kit], object], str, str]] = {  # what is done, a check that misses, what is said
    "a part of another model": (another, "sha256 of the data = the file's seal", ""),
    "one is missing": (
        lambda first, _: part(first, 2).unlink(),
        "seal: the file can be read and run",
        "m-00002-of-00003.gguf: not there, and m-00001-of-00003.gguf is split into 3 files; export it again",
    ),
    "half of one": (
        lambda first, _: part(first, 3).write_bytes(part(first, 3).read_bytes()[:9_000]),
        "tensors: the file can be read and run",
        "m-00003-of-00003.gguf: tensor output.weight needs 21760 bytes",
    ),
    "one twice": (
        lambda first, _: shutil.copy(part(first, 2), part(first, 3)),
        "seal: the file can be read and run",
        "m-00003-of-00003.gguf: split.no, count and tensors.count are [1, 3, 21], not [2, 3, 21] as in m-00001-of-00003.gguf",
    ),
    "of another count": (
        lambda first, _: put(first, 2, COUNT, 4),
        "seal: the file can be read and run",
        "m-00002-of-00003.gguf: split.no, count and tensors.count are [1, 4, 21], not [1, 3, 21] as in m-00001-of-00003.gguf",
    ),
    "of more tensors": (
        lambda first, _: [put(first, number, TENSORS, 22) for number in (1, 2, 3)],
        "metadata: the file can be read and run",
        "m-00001-of-00003.gguf: split.tensors.count is 22, its 3 files have 21",
    ),
    "the same tensors": (
        lambda first, _: (shutil.copy(part(first, 2), part(first, 3)), put(first, 3, NUMBER, 2)),
        "claims: the file can be read and run",
        "is in a file before it; export it again",
    ),
    "bytes at an end": (
        lambda first, _: part(first, 2).write_bytes(part(first, 2).read_bytes() + bytes(32)),
        "bytes after the last tensor",
        "",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_whole_is_a_miss(kit, tmp_path, fault):
    change, name, words = FAULTS[fault]
    first = write_gguf(kit.store, tmp_path / "m.gguf", split_size=40_000)
    change(first, kit)
    found = {check.name: check.tensor for check in misses(verify(first, kit.source, kit.store))}
    assert name in found
    assert words in found[name]
    assert SEALS & found.keys() or all(key.endswith("can be read and run") for key in found)


def test_the_command_says_what_is_missing(kit, tmp_path, capsys):
    first = write_gguf(kit.store, tmp_path / "m.gguf", split_size=40_000)
    words = ("--source", str(kit.source.path), "--quiet")
    assert main(["verify", str(first), *words, "--store", str(kit.store.path)]) == 0
    assert f"{first}: ok" in capsys.readouterr().out
    part(first, 2).unlink()
    for command in ("verify", "eval"):
        extra = ("--text", "builtin") if command == "eval" else ()
        assert main([command, str(first), *words, *extra]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"adadim: error: {first}: is split into 3 files, 1 of which are missing; put m-00002-of-00003.gguf beside it\n"
        )


def split_source(path: Path, folder: Path) -> Checkpoint:
    """The GGUF at ``path`` in its own types, in several files."""
    store = rtn_store(path, folder / "source-store", grid="q8_0", bits=8, embedding="q8_0")
    first = write_gguf(store, folder / "source.gguf", split_size=60_000)
    assert first.name.startswith("source-00001-of-0000")
    return open_checkpoint(first)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3moe"])
@pytest.mark.parametrize("split_size", [None, 45_000])
def test_a_file_of_a_split_source(kit, tmp_path, arch, split_size):
    """Of a family that is known by name, and of templates."""
    source = split_source(kit.whole if arch == "llama" else make_gguf(tmp_path / "model.gguf", arch), tmp_path)
    store = rtn_store(source.path, tmp_path / "store")
    out = write_gguf(store, tmp_path / "m.gguf", split_size=split_size)
    assert (out.name == "m.gguf") == (split_size is None)
    assert not misses(verify(out, source, QuantizedStore(store.path)))
    assert evaluate(out, source, TEXT, EvalOptions(64, 1))["kld"] < 0.5


def test_compared_beside_the_one_file(kit, tmp_path):
    first = write_gguf(kit.store, tmp_path / "m.gguf", split_size=40_000)
    report = compare_files([first, kit.whole], kit.source, CalibrationText("text", TEXT * 3, ""), EvalOptions(64, 1))
    several, one = report["files"]
    assert several["kld"] == one["kld"] and several["bytes"] > one["bytes"]

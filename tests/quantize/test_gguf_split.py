"""A GGUF that lies in several files, as gguf-py's own writer splits one, is the same source as the whole."""

from __future__ import annotations

import hashlib
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from exporter.bundle.facts import read_facts
from exporter.cli.main import main
from exporter.gguf.file import write_gguf
from exporter.inspect import check_loads, inspect
from quantize.checkpoint import open_checkpoint
from quantize.errors import CheckpointError, ExportError, FileFormatError
from quantize.gguf.files import COUNT, NUMBER, TENSORS
from quantize.llama_cpp.model import LlamaModel
from runtime_checks.reference.decode import DamagedFileError
from runtime_checks.reference.gguf import decode_gguf, read_gguf, read_metadata
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

KEYS = (NUMBER, COUNT, TENSORS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return write_gguf(rtn_store(make_tiny_model(folder / "model", tied=False), folder / "store"), folder / "whole.gguf")


@pytest.fixture
def first(whole, tmp_path) -> Path:
    """Of four files, the first without tensors."""
    reader = gguf.GGUFReader(whole)
    split = {"split_max_tensors": -(-len(reader.tensors) // 3), "small_first_shard": True}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", **split)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kinds = [*field.types, None]
            writer.add_key_value(field.name, field.contents(), kinds[0], kinds[1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(list(tmp_path.glob("m-*-of-00004.gguf"))) == 4
    return tmp_path / "m-00001-of-00004.gguf"


def test_the_source_is_the_same(whole, first):
    one, several = open_checkpoint(whole), open_checkpoint(first)
    assert several.specs == one.specs and several.config == one.config and several.tied is one.tied
    for name in one.specs:
        np.testing.assert_array_equal(several.read(name), one.read(name))
    assert several.assets().keys() == one.assets().keys()
    assert several.assets()["tokenizer.json"] == one.assets()["tokenizer.json"]
    assert b"split." not in several.assets()["metadata.gguf"]
    joined = b"".join(path.read_bytes() for path in sorted(first.parent.glob("m-*.gguf")))
    assert several.sha256 == hashlib.sha256(joined).hexdigest()


def test_what_is_written_of_it_is_one_file_that_runs(whole, first, tmp_path):
    tokens = list(range(3, 20))
    back = write_gguf(rtn_store(first, tmp_path / "s", grid="q8_0"), tmp_path / "back.gguf")
    assert not [key for key in gguf.GGUFReader(back).fields if key.startswith("split.")]
    with LlamaModel(first) as split, LlamaModel(whole) as one, LlamaModel(back) as again:
        np.testing.assert_array_equal(split.logits(tokens), one.logits(tokens))
        assert again.logits(tokens).shape == one.logits(tokens).shape


def test_it_is_inspected_as_a_whole(whole, first):
    one, several = inspect(whole), inspect(first)
    assert {item["name"]: item for item in several["tensors"]} == {item["name"]: item for item in one["tensors"]}
    assert several["totals"]["bytes"] == sum(path.stat().st_size for path in first.parent.glob("m-*.gguf"))
    check_loads(first)


def test_it_is_not_bundled(first):
    with pytest.raises(ExportError, match="one of several files; join them with llama-gguf-split --merge"):
        read_facts(first)


def part(first: Path, number: int) -> Path:
    return first.with_name(f"m-{number:05d}-of-00004.gguf")


def changed(path: Path, key: str, value: int) -> None:
    data = bytearray(path.read_bytes())
    name = key.encode()
    start = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4
    code = "<i" if key == TENSORS else "<H"
    struct.pack_into(code, data, start, value)
    path.write_bytes(data)


def wrong_type(path: Path, key: str) -> None:
    data = bytearray(path.read_bytes())
    name = key.encode()
    struct.pack_into("<I", data, data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name), 3)
    path.write_bytes(data)


FAULTS = {
    "a file is missing": (
        lambda first: part(first, 3).unlink(),
        "4 files, 1 of which are missing; put m-00003-of-00004.gguf beside it$",
    ),
    "two are": (
        lambda first: [part(first, n).unlink() for n in (2, 4)],
        "4 files, 2 of which are missing; put m-00002-of-00004.gguf beside it$",
    ),
    "half of one": (
        lambda first: part(first, 4).write_bytes(part(first, 4).read_bytes()[:3000]),
        r"its part m-00004-of-00004.gguf cannot be read \(truncated",
    ),
    "one twice": (lambda first: shutil.copy(part(first, 2), part(first, 3)), "its part m-00003.* says that it is file 2 of 4"),
    "the same tensors": (
        lambda first: (shutil.copy(part(first, 2), part(first, 3)), changed(part(first, 3), NUMBER, 2)),
        "is in m-00003-of-00004.gguf and in a file before it",
    ),
    "of another split": (lambda first: changed(part(first, 2), COUNT, 5), "its part m-00002.* says that it is file 2 of 5"),
    "too few tensors": (lambda first: changed(first, TENSORS, 99), r"hold \d+ tensors, where split.tensors.count is 99"),
    "a number of another type": (lambda first: wrong_type(part(first, 2), NUMBER), "split.no is of type i16, not u16"),
    "no GGUF": (lambda first: part(first, 2).write_bytes(b"PK" * 99), "its part m-00002-of-00004.gguf cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_whole_is_refused(first, fault):
    change, words = FAULTS[fault]
    change(first)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(first)
    assert str(caught.value).startswith(f"{first}: ")
    with pytest.raises(FileFormatError, match=words):
        inspect(first)
    with pytest.raises(DamagedFileError, match=r"m-0000\d-of-00004.gguf: .+") as told:
        read_gguf(first)
    assert len(str(told.value).splitlines()) == 1


def test_the_reference_decodes_the_same(whole, first):
    one, several = read_gguf(whole), read_gguf(first)
    assert several.metadata.keys() == one.metadata.keys() == read_metadata(first).keys()
    assert several.tensors.keys() == one.tensors.keys() and len(several.parts) == 4
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(decode_gguf(several.tensors[name]), decode_gguf(tensor))


def test_another_than_the_first_leads_to_it(first, capsys):
    with pytest.raises(CheckpointError, match=r"is file 3 of 4 of a split GGUF; name the first: m-00001-of-00004.gguf$"):
        open_checkpoint(part(first, 3))
    for read in (read_gguf, read_metadata):
        with pytest.raises(DamagedFileError, match=r"m-00003-of-00004.gguf: is file 3 of 4 that belong together, not the first"):
            read(part(first, 3))
    assert main(["verify", str(part(first, 3)), "--source", str(first)]) == 2
    assert "name the first: m-00001-of-00004.gguf" in capsys.readouterr().err


def test_the_others_are_found_by_name(first):
    other = first.rename(first.with_name("model.gguf"))
    with pytest.raises(CheckpointError, match=r"but not called so; let its name end in -00001-of-00004.gguf$"):
        open_checkpoint(other)
    with pytest.raises(DamagedFileError, match=r"model.gguf: .* name does not end in -00001-of-00004.gguf$"):
        read_gguf(other)


def test_a_source_that_is_quantized_already_is_said_to_be(whole, tmp_path, capsys):
    """Once, however many targets there are; a source in floats is not."""
    words = [str(whole), "--out", str(tmp_path / "out"), "--method", "rtn-oc"]
    assert main(["run", *words, "--target", "llama.cpp", "--target", "onnxruntime"]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert note.startswith(f"adadim: warning: {whole}: 100 % of its weights are quantized already (Q4_0, Q8_0); what is lost now")
    assert main(["quantize", str(whole.parent / "model"), "--out", str(tmp_path / "s"), "--method", "rtn-oc"]) == 0
    assert "warning" not in capsys.readouterr().err

"""An ONNX folder that somebody changed: inspect, bundle and the runners refuse it in one line, whatever is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from exporter.bundle.folder import BundleOptions, write_bundle
from exporter.inspect import inspect
from exporter.onnx.genai_reader import read_head_size
from exporter.onnx.library import add_library
from quantize.errors import ConfigError, ExportError, FileFormatError
from runtime_checks.checks.genai_check import check_genai_config
from runtime_checks.checks.onnx_parts import OnnxParts
from runtime_checks.runtimes.decoded import folded_layers, is_tuned
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.onnx_runner import OnnxRunner
from runtime_checks.runtimes.weights import open_onnx
from tests.runtime_checks.made import Made, make

Edit = Callable[[ModelProto], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("reader"), "onnx-oc")


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made.file, tmp_path / "onnx"))


def change(folder: Path, edit: Edit) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def outside(model: ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def entry(key: str, value: str) -> Edit:
    def edit(model: ModelProto) -> None:
        next(item for item in outside(model).external_data if item.key == key).value = value

    return edit


def without(key: str) -> Edit:
    return lambda m: outside(m).external_data.remove(next(item for item in outside(m).external_data if item.key == key))


def node_of(model: ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def attribute(op: str, name: str, value: object) -> Edit:
    def edit(model: ModelProto) -> None:
        node = node_of(model, op)
        node.attribute.remove(next(item for item in node.attribute if item.name == name))
        if value is not None:
            node.attribute.append(helper.make_attribute(name, value))

    return edit


def prop(key: str, value: str) -> Edit:
    def edit(model: ModelProto) -> None:
        next(item for item in model.metadata_props if item.key == key).value = value

    return edit


def loop(model: ModelProto) -> None:
    node = node_of(model, "Reshape")
    node.input[0] = node.output[0]


MODELS: dict[str, tuple[Edit, str]] = {
    "no location": (without("location"), "is no name in the folder"),
    "a location that climbs": (entry("location", "../secret"), r"'\.\./secret' is no name in the folder"),
    "an absolute location": (entry("location", "/etc/passwd"), "'/etc/passwd' is no name in the folder"),
    "a location in memory": (entry("location", "*/_ORT_MEM_ADDR_/*"), "No such file"),
    "a location that is the folder": (entry("location", "."), "is no name in the folder"),
    "an offset of words": (entry("offset", "x"), "has the offset 'x', which is no number"),
    "an offset below nothing": (entry("offset", "-1"), "has the offset '-1'"),
    "digits of another script": (entry("offset", "\u0660"), "which is no number"),
    "a length without end": (entry("length", "9" * 18), "its shape .* needs"),
    "an offset behind the end": (entry("offset", "9" * 17), "which has [0-9,]+ bytes"),
    "dims below nothing": (lambda m: outside(m).dims.__setitem__(0, -1), r"has the shape \[-1"),
    "dims without end": (lambda m: outside(m).dims.__setitem__(0, 2**62), r"has the shape \[4611"),
    "other dims": (lambda m: outside(m).dims.__setitem__(0, 7), r"bytes, its shape \[7, .* needs"),
    "a type of nobody": (lambda m: setattr(outside(m), "data_type", 99), "is of type 99"),
    "no type": (lambda m: setattr(outside(m), "data_type", 0), "is of type 0"),
    "a tensor twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "is there twice"),
    "a tensor without a name": (lambda m: setattr(m.graph.initializer[0], "name", ""), "initializer without a name"),
    "a node twice": (lambda m: m.graph.node.append(m.graph.node[0]), "which is there already"),
    "a node less": (lambda m: m.graph.node.remove(m.graph.node[3]), "which nothing before it makes|made by no node"),
    "a dead reference": (lambda m: node_of(m, "Mul").input.__setitem__(0, "\x1b[31m"), r"reads \\x1b\[31m, which nothing"),
    "a circle": (loop, "which nothing before it makes"),
    "no inputs": (lambda m: m.graph.node[4].ClearField("input"), "inputs"),
    "an input left out": (lambda m: node_of(m, "Mul").input.__setitem__(1, ""), "of Mul has no input 2"),
    "no graph": (lambda m: m.ClearField("graph"), "graph is empty"),
    "no such operator": (lambda m: setattr(node_of(m, "Sigmoid"), "op_type", "Nope"), "ONNX has no operator 'Nope'"),
    "no such domain": (lambda m: setattr(node_of(m, "Sigmoid"), "domain", "x.y"), "of the domain 'x.y'"),
    "bits of a word": (attribute("MatMulNBits", "bits", "4"), "its bits is no integer"),
    "bits of a fraction": (attribute("MatMulNBits", "bits", 4.0), "its bits is no integer"),
    "a cast to nowhere": (attribute("Cast", "to", None), "its attribute to is missing"),
    "a cast to a word": (attribute("Cast", "to", "x"), "its attribute to is no INT"),
    "an ir of nobody": (lambda m: setattr(m, "ir_version", 2**60), "its ir_version is 1152921504606846976"),
    "no ir": (lambda m: setattr(m, "ir_version", 0), "its ir_version is 0"),
    "metadata twice": (lambda m: m.metadata_props.append(m.metadata_props[0]), "key of its metadata .* twice"),
    "tensors that are no JSON": (prop("adadim.tensors", "{"), "adadim.tensors in its metadata: not JSON"),
    "tensors that are an object": (prop("adadim.tensors", "{}"), "Expected array, got object"),
    "tensors of numbers": (prop("adadim.tensors", "[1]"), r"\[0\] is 1: Expected object"),
    "a tensor without a grid": (
        prop("adadim.tensors", '[{"name": "x"}]'),
        r"adadim.tensors in its metadata\[0\]: Object missing",
    ),
    "another target": (prop("adadim.target", "llama.cpp"), "is for target 'llama.cpp', which is none of ONNX's"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_changed_graph_is_one_line(case, folder):
    edit, words = MODELS[case]
    change(folder, edit)
    readers = (inspect, OnnxRunner, OnnxParts, lambda path: open_exported(path).nbytes, open_onnx, folded_layers)
    for index, read in enumerate(
        readers if not case.startswith(("tensors", "a tensor without a grid", "another")) else [inspect]
    ):
        with pytest.raises(FileFormatError, match=words) as raised:
            read(folder)
        assert str(raised.value).isprintable() and len(str(raised.value)) < 1200, index
    with pytest.raises(FileFormatError, match=words):
        write_bundle(folder, folder.parent / "bundle", BundleOptions("web"))
    assert [path.name for path in folder.parent.iterdir()] == ["onnx"]


def test_bytes_that_are_no_text(folder):
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data.replace(b"adadim.target", b"adadim.t\xffrget"))
    for read in (inspect, open_onnx):
        with pytest.raises(FileFormatError, match="a key in it is not UTF-8"):
            read(folder)


def linked(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "blob")
    (folder / name).symlink_to(folder.parent / "blob")


def pipe(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def device(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")


@pytest.mark.parametrize("replace", [linked, pipe, device])
@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json", "genai_config.json"])
def test_what_leads_out_of_the_folder_is_not_packed(folder, replace, name):
    replace(folder, name)
    with pytest.raises(FileFormatError, match=f"{name}"):
        write_bundle(folder, folder.parent / "bundle", BundleOptions("web"))
    if name == "model.onnx.data":
        with pytest.raises(FileFormatError, match=r"is a link|no regular file"):
            OnnxRunner(folder)
    assert not (folder.parent / "bundle").exists()


def test_a_graph_that_is_a_pipe_is_not_waited_for(folder):
    pipe(folder, "model.onnx")
    with pytest.raises(FileFormatError, match="no regular file"):
        inspect(folder)


def foreign(model: ModelProto) -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("K", None, "its K is missing"),
        ("N", 0, "its N is 0"),
        ("block_size", -1, "its block_size is -1"),
        ("bits", 2**40, "bits"),
    ],
)
def test_another_tools_nodes_need_their_sizes(folder, name, value, words):
    change(folder, foreign)
    assert inspect(folder)["tensors"]
    change(folder, attribute("MatMulNBits", name, value))
    with pytest.raises(FileFormatError, match=words):
        inspect(folder)


GENAI = {
    "search that is a number": (lambda g: g.update(search=0), "search is 0: Expected object"),
    "no search": (lambda g: g.pop("search"), "missing required field search"),
    "a head size of words": (lambda g: g["model"]["decoder"].update(head_size="16"), "head_size is '16'"),
    "a context of a fraction": (lambda g: g["model"].update(context_length=512.5), "context_length is 512.5"),
    "layers without end": (
        lambda g: g["model"]["decoder"].update(num_hidden_layers=5_000_000),
        "5000000 layers, model.onnx has 2",
    ),
    "another graph": (lambda g: g["model"]["decoder"].update(filename="../x.onnx"), r"names '\.\./x\.onnx'"),
    "ids below nothing": (lambda g: g["model"].update(eos_token_id=[-1]), r"eos_token_id\[\.\.\.\]|eos_token_id\[0\] is -1"),
    "ids that are true": (lambda g: g["model"].update(bos_token_id=True), "bos_token_id is True"),
    "options that are none": (lambda g: g["model"]["decoder"].update(session_options=None), "session_options is None"),
}


@pytest.mark.parametrize("case", GENAI)
def test_a_changed_genai_config(case, made, folder):
    edit, words = GENAI[case]
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match=words):
        write_bundle(folder, folder.parent / "bundle", BundleOptions("web"))
    if "search" in words:
        with pytest.raises(FileFormatError, match=words):
            check_genai_config(folder, made.source.config)
        with pytest.raises(ExportError, match=words):
            add_library(folder, folder / "model.onnx")
    elif "head_size" in words:
        with pytest.raises(FileFormatError, match=words):
            read_head_size(folder)
        assert not all(check.ok for check in check_genai_config(folder, made.source.config))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("adadim.config", "[]", "config is .*: Expected object"),
        ("adadim.config", '{"seed": 1.5}', "config.seed is 1.5"),
        ("adadim.source", '{"sha256": 3}', "source.sha256 is 3"),
        ("adadim.calibration", "nope", "not JSON"),
        ("adadim.tune_steps", '"x"', "tune_steps is 'x'"),
    ],
)
def test_changed_metadata(folder, key, value, words):
    change(folder, prop(key, value))
    with pytest.raises(FileFormatError, match=words):
        write_bundle(folder, folder.parent / "bundle", BundleOptions("web"))


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("adadim.transforms", "[]", folded_layers),
        ("adadim.transforms", '{"x": 3}', folded_layers),
        ("adadim.tune_steps", "-1", is_tuned),
    ],
)
def test_changed_claims(folder, key, value, read):
    change(folder, prop(key, value))
    with pytest.raises(FileFormatError, match=f"{key} in its metadata"):
        read(folder)


@pytest.mark.parametrize(
    "text",
    [
        '{"bytes": "1"}',
        '{"bytes": 1e999}',
        '{"bytes": 1, "ppl": NaN}',
        '{"bytes": 1, "kld": -1}',
        '{"bytes": 1, "bytes": 1}',
        "[" * 9999,
    ],
)
def test_an_evaluation_that_is_none(folder, text):
    (folder.parent / "eval.json").write_text(text)
    with pytest.raises(ConfigError, match=r"eval\.json: .*it is not what `adadim eval --json` writes"):
        write_bundle(folder, folder.parent / "bundle", BundleOptions("web", evaluation=folder.parent / "eval.json"))

"""The native library beside an exported model: both ways the folder runs in genai, and says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import exporter.onnx.library
from exporter import add_library, custom_op_path
from exporter.cli.main import main
from exporter.onnx.file import write_onnx
from exporter.onnx.library import LIBRARY
from quantize.errors import ExportError, FileFormatError
from runtime_checks.checks.verify import verify
from runtime_checks.runtimes.onnx_runner import OnnxRunner
from tests.native import library
from tests.runtime_checks.made import Made, make

TOKENS = 12
FLOAT_MODEL = 1e-4  # relative: float32 sums in another order through two layers


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp("library"), "onnx-adadim")


@pytest.fixture(scope="module")
def both(made, tmp_path_factory) -> tuple[Path, Path]:
    """The folder without and with the library, activations left as they are: only then do both compute the same."""
    library()
    folders = tuple(tmp_path_factory.mktemp("both") / name for name in ("without", "with"))
    for folder in folders:
        write_onnx(made.store, folder, accuracy_level=0)
    add_library(folders[1])
    return folders


def generate(folder: Path) -> str:
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(folder))
    tokenizer = genai.Tokenizer(model)
    prompt = tokenizer.encode("The quick brown fox")
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + TOKENS, min_length=len(prompt) + TOKENS)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return tokenizer.decode(generator.get_sequence(0))


def session_options(folder: Path) -> dict[str, object]:
    return json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["session_options"]


def test_genai_generates_the_same_text_both_ways(both):
    without, with_library = both
    assert "custom_ops_library" not in session_options(without) and not (without / LIBRARY).exists()
    assert session_options(with_library)["custom_ops_library"] == LIBRARY
    text = generate(without)
    assert generate(with_library) == text
    assert len(text) > len("The quick brown fox")


def test_our_runner_loads_the_library_that_lies_there(both):
    tokens = np.arange(40, 52)
    expected, actual = (OnnxRunner(folder).logits(tokens) for folder in both)
    assert (actual != expected).any()  # two kernels: their sums are rounded in other places
    np.testing.assert_allclose(actual, expected, atol=FLOAT_MODEL * np.abs(expected).max(), rtol=0)


def test_a_library_that_cannot_be_loaded_is_the_folders_fault(made, tmp_path):
    folder = Path(shutil.copytree(made.file, tmp_path / "onnx"))
    (folder / LIBRARY).write_bytes(b"no library")
    with pytest.raises(FileFormatError, match=f"{folder}: onnxruntime refuses it"):
        OnnxRunner(folder)


def test_a_folder_with_its_library_passes_every_check(made, tmp_path):
    folder = Path(shutil.copytree(made.file, tmp_path / "onnx"))
    add_library(folder, library())
    assert not [check for check in verify(folder, made.source, made.store) if not check.ok]


def test_the_command_line_adds_it_and_replaces_it(made, tmp_path):
    built, out = library(), tmp_path / "onnx"
    for more in ([], ["--force"]):
        assert main(["export", "onnx", str(made.store.path), "--out", str(out), "--with-library", "--quiet", *more]) == 0
        assert (out / LIBRARY).read_bytes() == built.read_bytes()
    assert main(["export", "onnx", str(made.store.path), "--out", str(out), "--force", "--quiet"]) == 0
    assert not (out / LIBRARY).exists()


def test_any_library_may_be_added(made, tmp_path):
    folder = Path(shutil.copytree(made.file, tmp_path / "onnx"))
    (tmp_path / "phone.so").write_bytes(b"for a phone")
    before = json.loads((folder / "genai_config.json").read_text())
    add_library(folder, tmp_path / "phone.so")
    assert (folder / LIBRARY).read_bytes() == b"for a phone"
    before["model"]["decoder"]["session_options"]["custom_ops_library"] = LIBRARY
    assert json.loads((folder / "genai_config.json").read_text()) == before


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {}}', None])
def test_a_folder_without_a_right_config_is_left_alone(text, tmp_path):
    if text is not None:
        (tmp_path / "genai_config.json").write_text(text)
    library = tmp_path / "library.so"
    library.write_bytes(b"library")
    with pytest.raises(ExportError, match=r"genai_config\.json: .*is not as `adadim export onnx` writes it, export it again"):
        add_library(tmp_path, library)
    assert not (tmp_path / LIBRARY).exists()


def test_where_no_library_was_built(monkeypatch, made, tmp_path, capsys):
    monkeypatch.setattr(exporter.onnx.library, "LIBRARY", "libnone.so")
    with pytest.raises(ExportError, match=r"custom_op/libnone\.so: not built; .*docs/reference/custom-op\.md"):
        custom_op_path()
    assert main(["export", "onnx", str(made.store.path), "--out", str(tmp_path / "out"), "--with-library"]) == 2
    assert "libnone.so: not built" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_stock_onnxruntime_has_no_use_for_it(tmp_path, capsys):
    stock = make(tmp_path, "onnx-oc")
    assert main(["export", "onnx", str(stock.store.path), "--out", str(tmp_path / "out"), "--with-library"]) == 2
    assert "only onnxruntime+adadim has a library" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

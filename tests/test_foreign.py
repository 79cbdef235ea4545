"""Another tool's file or folder, or a name on the hub, where ours is wanted: one line that says what it is and what to do."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from exporter.cli.main import main
from quantize.foreign import BEGINNINGS, ENDINGS, GGUFS, MARKS, OTHER_TOKENIZERS, WITHOUT_CONFIG, quantized_by
from quantize.template.convert import UNPACKED
from tests.tiny import make_tiny_model

TAKE_A_MODEL = (
    "quantize {} --out o",
    "run {} --out o",
    "sensitivity {} --out o",
    "imatrix {} --out o",
    "eval a.gguf --source {}",
)
TAKE_A_FILE = (
    "verify {} --source m",
    "eval {} --source m",
    "compare {} --source m",
    "inspect {}",
    "bundle {} --platform web --out o",
)
SOURCE, FILE = "not a Hugging Face directory or a GGUF file; ", "not a GGUF file or an ONNX folder; "


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.gguf").write_bytes(b"GGUF")
    return tmp_path


@pytest.fixture
def model() -> Path:
    return make_tiny_model(Path("model"))


def error(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """What is said, in one line."""
    code = main(shlex.split(line))
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), (line, out, err)
    return err.removeprefix("adadim: error: ").strip()


def said_of(capsys: pytest.CaptureFixture[str], name: str, told: str) -> None:
    """Every command says what it is, and both what to do instead of a model and of a file."""
    for commands, wanted in ((TAKE_A_MODEL, SOURCE), (TAKE_A_FILE, FILE)):
        for command in commands:
            said = error(capsys, command.format(name))
            assert said.startswith(f"{name}: is {told}, {wanted}"), command
            assert not {"{", "}"} & {*said}


@pytest.mark.parametrize(("at", "mark"), BEGINNINGS, ids=lambda part: repr(part))
def test_files_by_how_they_begin(capsys, at, mark):
    Path("thing").write_bytes(bytes(at) + mark + bytes(400))
    said_of(capsys, "thing", BEGINNINGS[at, mark].told)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("data", [b"\1\2\3\4", b"PK\3\4"])
def test_files_by_their_ending(capsys, ending, data):
    Path(f"thing{ending}").write_bytes(data)
    said_of(capsys, f"thing{ending}", ENDINGS[ending].told)


def test_a_gguf_is_one_whatever_it_is_called(capsys):
    for name in ("a.bin", "a.onnx", "a.safetensors"):
        Path(name).write_bytes(b"GGUF\3\0\0\0")
        assert "truncated" in error(capsys, f"quantize {name} --out o")
        assert "a damaged GGUF (truncated" in error(capsys, f"inspect {name}")


@pytest.mark.parametrize("mark", [mark for mark in MARKS if mark != "adapter_config.json"])
def test_folders_by_what_is_in_them(capsys, model, mark):
    """With the source's config.json beside it, and without."""
    file = Path("thing", mark.replace("*", "x"))
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    said_of(capsys, "thing", MARKS[mark].told)
    Path("thing/config.json").write_bytes((model / "config.json").read_bytes())
    for commands, part in ((TAKE_A_MODEL, ", and has no safetensors; "), (TAKE_A_FILE, f", {FILE}")):
        for command in commands:
            assert error(capsys, command.format("thing")).startswith(f"thing: is {MARKS[mark].told}{part}")


@pytest.mark.parametrize("mark", WITHOUT_CONFIG)
def test_folders_without_a_config(capsys, mark):
    Path("thing").mkdir()
    Path("thing", mark.replace("*", "x")).write_bytes(b"x")
    said_of(capsys, "thing", WITHOUT_CONFIG[mark].told)


def test_an_adapter(capsys):
    Path("thing").mkdir()
    Path("thing/adapter_config.json").write_text("{}")
    assert "a LoRA adapter (adapter_config.json); merge it" in error(capsys, "run thing --out o")
    assert error(capsys, "inspect thing").startswith(f"thing: is a LoRA adapter, {FILE}merge it")


def test_marks_do_not_hide_a_model(model, capsys):
    """Whoever keeps other tools' files beside the safetensors has a model all the same."""
    for name in ("model_q4.onnx", "tf_model.h5", "model.tflite"):
        (model / name).write_bytes(b"x")
    assert main(["quantize", str(model), "--out", "o", "--method", "rtn-oc", "--quiet"]) == 0
    capsys.readouterr()
    assert "is a Hugging Face model, not a GGUF file" in error(capsys, "inspect model")


def test_an_onnx_folder_with_the_config_of_its_source(capsys, model):
    """As optimum and transformers.js write them."""
    (model / "model.safetensors").rename("model/model.onnx")
    assert f"is an ONNX folder, {SOURCE}name the model that it was made from" in error(capsys, "run model --out o")
    Path("model/onnx").mkdir()
    Path("model/model.onnx").rename("model/onnx/model.onnx")
    assert "name that: model/onnx" in error(capsys, "inspect model")


def write_gguf(path: str, kind: str | None, arch: str) -> None:
    writer = GGUFWriter(path, arch)
    if kind is not None:
        writer.add_type(kind)
    writer.add_tensor("t", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", GGUFS)
@pytest.mark.parametrize("as_type", [True, False])
def test_ggufs_that_are_no_language_model(capsys, name, as_type):
    write_gguf("thing.gguf", name if as_type else None, "llama" if as_type else name)
    for command in (*TAKE_A_MODEL, *TAKE_A_FILE):
        if not command.startswith("inspect"):
            assert error(capsys, command.format("thing.gguf")).startswith(
                f"thing.gguf: is {GGUFS[name].told}, not a language model; "
            )
    assert main(["inspect", "thing.gguf"]) == 0  # what it holds can be seen


QUANTIZED = [
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
    ({"quantization_config": {"quant_algo": "NVFP4"}}, "NVFP4"),
    ({"quantization_config": {"bits": 4}}, ""),
    ({"quantization": {"bits": 4, "group_size": 64}}, "MLX"),
    ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4, "quant_method": "mlx"}}, "mlx"),
]


@pytest.mark.parametrize(("keys", "by"), QUANTIZED)
def test_a_checkpoint_that_is_quantized_already(capsys, model, keys, by):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | keys))
    assert quantized_by(config) is None
    named = f" (by {by})" if by else ""
    for command in TAKE_A_MODEL:
        if not command.startswith("run ") or by not in UNPACKED:  # whose converter says what it thinks of this one
            assert f"this checkpoint is quantized already{named}; use the model" in error(capsys, command.format("model"))


def test_weights_that_are_missing_or_a_pointer(capsys, model):
    weights = model / "model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for command in TAKE_A_MODEL:
        assert "a Git LFS pointer, not the weights; fetch them: git lfs pull" in error(capsys, command.format("model"))
    weights.unlink()
    for command in TAKE_A_MODEL:
        assert "the weights are missing: no model.safetensors" in error(capsys, command.format("model"))


@pytest.mark.parametrize("other", [*OTHER_TOKENIZERS, None])
@pytest.mark.parametrize(
    "command", ["quantize {} --out o", "quantize {} --out o --target onnx", "run {} --out o", "imatrix {} --out o"]
)
def test_a_tokenizer_that_is_missing(capsys, model, other, command):
    (model / "tokenizer.json").unlink()
    if other is not None:
        (model / other).write_bytes(b"x")
    said = error(capsys, command.format("model"))
    assert "tokenizer.json" in said
    mend = (
        "get it from the original model"
        if other is None
        else f"AutoTokenizer.from_pretrained('model').save_pretrained('model') makes it from {other}"
    )
    assert mend in said


HUB = [
    (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct",
    ),
    ("https://huggingface.co/ORG/NAME", "hf download ORG/NAME --local-dir NAME", "NAME"),
    ("https://huggingface.co/ORG/NAME/", "hf download ORG/NAME --local-dir NAME", "NAME"),
    ("http://www.huggingface.co/ORG/NAME/tree/main", "hf download ORG/NAME --local-dir NAME", "NAME"),
    ("https://huggingface.co/ORG/NAME/tree/v2?x=1", "hf download ORG/NAME --revision v2 --local-dir NAME", "NAME"),
    ("https://huggingface.co/ORG/NAME/blob/main/config.json", "hf download ORG/NAME --local-dir NAME", "NAME"),
    (
        "https://huggingface.co/ORG/NAME/resolve/main/q/a.gguf?download=true",
        "hf download ORG/NAME q/a.gguf --local-dir NAME",
        "NAME/q/a.gguf",
    ),
    ("huggingface.co/ORG/NAME", "hf download ORG/NAME --local-dir NAME", "NAME"),
    ("hf.co/ORG/NAME", "hf download ORG/NAME --local-dir NAME", "NAME"),
    ("hf://ORG/NAME", "hf download ORG/NAME --local-dir NAME", "NAME"),
    ("ORG/NAME-GGUF:Q4_K_M", "hf download ORG/NAME-GGUF --include '*Q4_K_M*' --local-dir NAME-GGUF", "NAME-GGUF"),
    ("https://example.com/dir/a.gguf?x=1", "curl -LO 'https://example.com/dir/a.gguf?x=1'", "a.gguf"),
    ("ftp://example.com/a.gguf", "curl -LO ftp://example.com/a.gguf", "a.gguf"),
]


@pytest.mark.parametrize(("word", "command", "name"), HUB)
def test_names_of_the_hub_and_addresses(capsys, word, command, name):
    told = f"nothing is downloaded here; first: {command}; then the same again with {name} in its place"
    for line in TAKE_A_MODEL:
        assert told in error(capsys, line.format(shlex.quote(word)))
    if ":" in word:
        for line in ("inspect {}", "bundle {} --platform web --out o"):
            assert told in error(capsys, line.format(shlex.quote(word)))


def test_a_path_is_no_name_of_the_hub(capsys):
    for word in ("a/b/c", "./none.gguf", "/none", "../none/at/all", "none.safetensors"):
        assert "hf download" not in error(capsys, f"quantize {word} --out o")
    assert "name it as a path: /none/model" in error(capsys, "quantize file:///none/model --out o")


def test_a_zip_of_a_model_is_still_a_zip(capsys):
    with zipfile.ZipFile("thing.zip", "w") as file:
        file.writestr("config.json", "{}")
    assert "is a zip archive" in error(capsys, "run thing.zip --out o")

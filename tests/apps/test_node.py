"""The Node client: greedy tokens of the desktop runtimes from a bundle, and not a step with one that is not whole."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from exporter.bundle.folder import BundleOptions, sums_digest, write_bundle
from exporter.bundle.verify_bundle import verify
from exporter.gguf.file import write_gguf
from exporter.onnx.file import write_onnx
from exporter.targets import TARGETS
from quantize import open_checkpoint
from quantize.llama_cpp.model import LlamaVocab
from quantize.run.pipeline import quantize_checkpoint
from tests.apps.changes import MORE
from tests.apps.desktop import check_greedy
from tests.cases import config_of
from tests.exporter.test_gguf_tokenizer import put_around
from tests.exporter.test_verify_bundle import STRUCTURAL, sums_with
from tests.native import built
from tests.runtime_checks.made import Made, make
from tests.sent import traced
from tests.stores import rtn_store
from tests.tiny import make_tiny_model

PROMPT, COUNT = "The quick brown fox", 32
PART = 1 << 15
AT_LEAST = 16  # tokens that no near tie may spoil
ROOT = Path(__file__).parent.parent.parent
CHANGES = {case: change for case, (change, _) in STRUCTURAL.items()} | MORE
FORMS = ("llama.cpp", "onnx-oc", "onnx-split", "onnx-adadim")
LINES_SAID = {"a link": 1, "a linked folder": 1}  # of verify's: links are found before anything is read


def run(bundle: Path, *options: str, script: Path | None = None) -> subprocess.CompletedProcess[str]:
    script = script or built("apps/node/dist/cli.js")
    command = ["node", script, bundle, "--prompt", PROMPT, "--tokens", str(COUNT), "--threads", "1", *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module", params=FORMS)
def made(request, tmp_path_factory) -> Made:
    return make(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_bundle(make(folder, "onnx-oc").file, folder / "bundle", BundleOptions("web", part_size=PART))
    return folder / "bundle"


@pytest.fixture
def bundle(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def desktop_prompt(file: Path) -> list[int]:
    if file.is_dir():
        return Tokenizer.from_file(str(file / "tokenizer.json")).encode(PROMPT).ids
    with LlamaVocab(file) as vocab:
        return vocab.tokenize(PROMPT, add_special=True)


def test_it_gives_the_desktop_runtimes_greedy_tokens(made, tmp_path):
    write_bundle(made.file, tmp_path / "bundle", BundleOptions("web", part_size=PART))
    done = run(tmp_path / "bundle", "--json", "--digest", sums_digest(tmp_path / "bundle"))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prompt"] == desktop_prompt(made.file)
    assert len(answer["tokens"]) == COUNT
    assert check_greedy(made.file, answer["prompt"], answer["tokens"]) >= AT_LEAST
    streamed = run(tmp_path / "bundle")
    assert streamed.stdout == answer["text"] + "\n"
    assert streamed.stderr.startswith(f"{COUNT} tokens, ")


def test_a_gguf_says_how_a_text_begins(tmp_path):
    """As Gemma's do; without its first token such a model is another."""
    model = make_tiny_model(tmp_path / "model")
    put_around(model, "<|im_start|> $A")
    file = write_gguf(rtn_store(model, tmp_path / "store"), tmp_path / "model.gguf")
    write_bundle(file, tmp_path / "bundle", BundleOptions("web", part_size=PART))
    done = run(tmp_path / "bundle", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prompt"] == desktop_prompt(file) == Tokenizer.from_file(str(model / "tokenizer.json")).encode(PROMPT).ids
    assert answer["prompt"][0] == 1
    assert check_greedy(file, answer["prompt"], answer["tokens"]) >= AT_LEAST


@pytest.mark.parametrize("model_type", ["gemma3_text", "lfm2"])
def test_graphs_of_any_decoder(model_type, kept, tmp_path):
    """Positions that are given, a cache that is not written in place, states of convolutions."""
    source, config = open_checkpoint(kept.onnx(model_type, "float32")), config_of("rtn-oc", bits=8)
    file = write_onnx(quantize_checkpoint(source, tmp_path / "store", config, TARGETS["onnxruntime"]), tmp_path / "onnx")
    write_bundle(file, tmp_path / "bundle", BundleOptions("web", part_size=PART))
    done = run(tmp_path / "bundle", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prompt"] == desktop_prompt(file) and answer["tokens"]
    assert check_greedy(file, answer["prompt"], answer["tokens"]) == len(answer["tokens"])


def test_a_graph_of_float16_in_several_files(tmp_path):
    store = rtn_store(make_tiny_model(tmp_path / "model"), tmp_path / "store", "onnxruntime", bits=8, group_size=32)
    file = write_onnx(store, tmp_path / "onnx", onnx_dtype="float16", split_size=50_000)
    assert (file / "model.onnx.data.1").is_file()
    write_bundle(file, tmp_path / "bundle", BundleOptions("web", part_size=PART))
    done = run(tmp_path / "bundle", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["tokens"] and answer["prompt"] == desktop_prompt(file)
    assert check_greedy(file, answer["prompt"], answer["tokens"]) >= min(AT_LEAST, len(answer["tokens"]))


def test_nothing_is_sent_and_nothing_kept(whole, tmp_path):
    found = traced(tmp_path, "node", built("apps/node/dist/cli.js"), whole, "--tokens", "4")
    assert found.done.returncode == 0, found.done.stderr
    assert (found.sent, found.kept) == ([], [])


@pytest.fixture
def alone(tmp_path) -> Path:
    """The client where no runtime can be found: it must not get so far as to look for one."""
    return Path(shutil.copytree(built("apps/node/dist/cli.js").parent, tmp_path / "alone" / "dist")) / "cli.js"


def test_a_runtime_is_loaded_last(alone, bundle):
    done = run(bundle, script=alone)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'onnxruntime-node'" in done.stderr


NAMED = ("truncated", "renamed", "extra", "a link", "a linked folder", "a pipe", "the future")
NAMED += ("hidden", "a hidden folder", "a name of two lines", "folders without end", "a file far down", "parts that climb")


@pytest.mark.parametrize("case", NAMED)
def test_a_tampered_bundle_is_named_and_nothing_runs(case, alone, bundle):
    digest = sums_digest(bundle)
    CHANGES[case](bundle)
    done, problems = run(bundle, script=alone), verify(bundle)
    assert (done.returncode, done.stdout) == (1, "")
    if case == "the future":  # each checker names itself as what should be newer
        assert done.stderr.startswith("manifest.json: version 2 is from the future, 1 is known here")
    else:
        assert done.stderr.splitlines() == problems[: LINES_SAID.get(case)]
    assert run(bundle, "--digest", digest, script=alone).returncode == 1


def test_another_bundle_than_the_digests(alone, bundle):
    digest = sums_digest(bundle)
    sums_with(lambda lines: lines[1:])(bundle)
    done = run(bundle, "--digest", digest, script=alone)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == verify(bundle, digest)[0] + "\n"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "give one bundle"),
        (("a", "b"), "give one bundle"),
        (("a", "--tokens", "0"), "--tokens 0: give a number from 1 on"),
        (("a", "--digest", "12"), "--digest 12: is no sha256: 64 digits of 0 to 9 and a to f"),
        (("a", "--speed"), "Unknown option '--speed'"),
    ],
)
def test_a_wrong_command_line(options, complaint):
    done = subprocess.run(["node", built("apps/node/dist/cli.js"), *options], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"adadim-node: {complaint}")
    assert len(done.stderr.splitlines()) == 1


def test_a_prompt_that_leaves_no_room(bundle):
    done = run(bundle, "--prompt", "fox " * 2000)
    assert done.returncode == 1
    assert "--prompt: " in done.stderr and done.stderr.endswith("the bundle has a context of 512\n")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["llama.cpp", "onnx-oc"])
def test_smollm2(form, kept, tmp_path):
    file = kept.smollm2(form)
    write_bundle(file, tmp_path / "bundle", BundleOptions("web"))
    done = run(tmp_path / "bundle", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prompt"] == desktop_prompt(file)
    assert len(answer["tokens"]) == COUNT
    assert check_greedy(file, answer["prompt"], answer["tokens"]) > 0

"""Hugging Face folders of any architecture: converted, run by torch and llama.cpp alike, their weights found and weighed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.gguf.file import write_gguf
from exporter.targets import TARGETS
from quantize.checkpoint import open_checkpoint
from quantize.errors import CheckpointError, ConfigError
from quantize.llama_cpp.children import run_logits
from quantize.model_config import EMBEDDING, HEAD
from quantize.run.pipeline import quantize_checkpoint
from quantize.source import ModelStudent, measure_curvature, named
from quantize.source.match import Matcher, Rows
from quantize.source.named import named_model
from quantize.template import converter as pinned
from quantize.template.convert import Converted, convert
from quantize.template.converter import find_converter
from runtime_checks.checks.verify import verify
from tests.any_model import MODELS, make_model, order_of_rows
from tests.cases import config_of
from tests.tiny import make_tiny_model

LLAMA = TARGETS["llama.cpp"]
TOKENS = np.random.default_rng(0).integers(3, 400, (2, 96))
F16_TABLES = 3e-3  # llama.cpp looks gelu up in a table of half floats
EXACT = 3e-5
LESS_EXACT = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "starcoder2", "gpt2", "gpt_neox", "phi"), F16_TABLES),
    "gpt_oss": 3e-2,
}


@pytest.mark.parametrize("model_type", MODELS)
def test_llama_cpp_runs_what_the_converter_writes_as_torch_does(kept, model_type):
    source = kept.gguf(model_type)
    found = named_model(source, TOKENS)
    with torch.no_grad():
        taught = found.causal.logits(found.causal.hidden(torch.from_numpy(TOKENS[:1]))[0]).numpy()
    apart = np.abs(run_logits(source.path, TOKENS[0]) - taught).max()
    assert apart < LESS_EXACT.get(model_type, EXACT) * max(1, np.abs(taught).max())
    quantized = [name for name, spec in source.specs.items() if len(spec.shape) == 2 and not spec.kept]
    assert set(found.rows) == set(quantized) - {EMBEDDING, HEAD}
    assert all(np.array_equal(own.gather(_matrices(found)), source.read(name)) for name, own in found.rows.items())
    assert EMBEDDING in found.whole


def _matrices(found: named.Named) -> dict:
    keys = {key for rows in found.rows.values() for key in rows.keys}
    return {key: found.causal.matrix(key).numpy() for key in keys}


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_found_by_content_or_by_name_is_the_same(kept, model_type):
    """Rows of q and k lie in another order in the template of a llama."""
    theirs = kept.gguf(model_type)
    ours = open_checkpoint(theirs.twin)
    known, found = measure_curvature(ours, TOKENS, 7), measure_curvature(theirs, TOKENS, 7)
    order = {name: order_of_rows(ours.read(name), theirs.read(name)) for name in known.rows}
    assert model_type != "llama" or any((rows != np.arange(len(rows))).any() for rows in order.values())
    assert set(known.rows) == set(found.rows)
    for name, rows in order.items():
        np.testing.assert_array_equal(found.rows[name], known.rows[name][rows])
    for site, weights in known.tokens.items():
        np.testing.assert_allclose(found.tokens[site], weights, rtol=1e-5)
    for name, stats in known.tables.items():
        np.testing.assert_array_equal(found.tables[name].hessian, stats.hessian)
    students = ModelStudent(ours, TOKENS), ModelStudent(theirs, TOKENS)
    rng = np.random.default_rng(1)
    for name, rows in order.items():
        weight = ours.read(name) + rng.standard_normal(ours.specs[name].shape).astype(np.float32) / 32
        students[0].put(name, weight, learns=True)
        students[1].put(name, weight[rows], learns=True)
    every = np.arange(2)
    assert students[0].loss(every) == pytest.approx(students[1].loss(every), rel=1e-5) and students[0].loss(every) > 1e-3
    slopes = [student.gradients(every) for student in students]
    for name, rows in order.items():
        np.testing.assert_allclose(slopes[1][name], slopes[0][name][rows], rtol=1e-3, atol=1e-6)


def test_what_comes_after_the_head_counts(kept):
    """Gemma 2 bends its logits: what an error of the head costs is less where they are large."""
    source = kept.gguf("gemma2")
    found = named_model(source, TOKENS)
    stats = measure_curvature(source, TOKENS, 0).tables[EMBEDDING]
    cap = 30.0
    with torch.no_grad():
        last = found.causal.hidden(torch.from_numpy(TOKENS)).reshape(-1, 64)
        bent = torch.tanh(last @ found.causal.head.T / cap)
        p = (cap * bent).softmax(-1)
        head = ((p * (1 - p)) * (1 - bent**2) ** 2).mean(0) / 2
    rows = stats.row_weight - head.numpy()  # what the look-up costs
    assert rows.min() > -1e-9
    unseen = np.setdiff1d(np.arange(400), TOKENS)
    np.testing.assert_allclose(rows[unseen], rows[unseen][0], rtol=1e-3)


def test_only_tokens_are_looked_up_in_the_embedding(kept):
    """A GPT-2 looks positions up too, in a table as wide."""
    source = kept.gguf("gpt2")
    tokens = 300 + TOKENS % 99
    table = measure_curvature(source, tokens, 0).tables[EMBEDDING]
    found = named_model(source, tokens)
    with torch.no_grad():
        p = (found.causal.hidden(torch.from_numpy(tokens)).reshape(-1, 64) @ found.causal.head.T).softmax(-1)
    looked_up = table.row_weight - ((p * (1 - p)).mean(0) / 2).numpy()
    assert looked_up[:300].max() < 1.01 * looked_up[:300].min()
    assert looked_up[np.unique(tokens)].min() > 1.2 * looked_up[0]


def test_two_tables_in_the_file_are_two_in_torch(tmp_path):
    """Though config.json says that they are one."""
    model = make_model(tmp_path / "model", "smollm3", "float32")
    _change(model, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    convert(model, tmp_path / "model.gguf", find_converter(), "gpt-2")
    source = open_checkpoint(tmp_path / "model.gguf", model)
    assert {EMBEDDING, HEAD} <= set(source.specs)
    assert {EMBEDDING, HEAD} == set(measure_curvature(source, TOKENS, 0).tables)


def test_tensors_in_one_parameter_learn_apart(kept):
    source = kept.gguf("gpt2")
    found = named_model(source, TOKENS, paged=False)
    joined = "model.layers.0.attn_qkv.weight"
    rows = found.rows[joined]
    parts = {name: Rows(rows.keys, rows.which[own], rows.index[own]) for name, own in (("a", slice(64)), ("b", slice(64, 192)))}
    apart = named.Named(found.causal, parts, [], {})
    weight = source.read(joined)
    apart.put("a", weight[:64] + 1, learns=True)
    apart.put("b", weight[64:], learns=False)
    np.testing.assert_array_equal(rows.gather(_matrices(found)), np.concatenate([weight[:64] + 1, weight[64:]]))
    found.causal.hidden(torch.from_numpy(TOKENS[:1])).sum().backward()
    assert apart.take_gradients(["a"])["a"].any() and not found.causal.parameters[rows.keys[0].parameter].grad


def test_a_layer_that_is_there_twice_is_two(tmp_path):
    one = np.random.default_rng(0).standard_normal((4, 8), np.float32)
    finder = Matcher([("one", one), ("two", one)])
    assert [finder.find(one)[0].keys for _ in range(3)] == [("one",), ("two",), ("one",)]


def test_rows_are_found_wherever_they_are():
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, 6, 8), np.float32)
    one[4:] = two[4:] = 0  # alike in both
    finder = Matcher([("one", one), ("two", two)])
    mixed, part = finder.find(np.concatenate([two[3:1:-1], one[:2]]))
    assert part == 1
    np.testing.assert_array_equal(mixed.gather({"one": one, "two": two}), np.concatenate([two[3:1:-1], one[:2]]))
    assert finder.find(two)[0].keys == ("two",)
    assert finder.find(one + 1) == (None, 0.0)
    assert finder.find(np.concatenate([one[:3], one[:1] + 1]))[1] == 0.75


def test_a_store_of_a_template_is_weighed_and_tuned(kept, tmp_path):
    source = kept.gguf("smollm3", "bfloat16")
    config = config_of("gptq-oc", grid="q4_0", token_weight="gradient", calibration_tokens=2048, tune_steps=8)
    store = quantize_checkpoint(source, tmp_path / "store", config, LLAMA)
    tuning = store.header["tuning"]
    assert tuning["after"] < tuning["before"]
    assert all(0 < record.loss[str(record.axis)] < 1 for record in store.records.values() if record.loss)


def test_factors_of_the_rotary_embedding_are_a_tensor_like_any_other(kept, tmp_path):
    source = kept.gguf("apertus", "bfloat16")
    assert "rope_freqs.weight" in source.specs
    store = quantize_checkpoint(source, tmp_path / "store", config_of("rtn-oc", grid="q4_0"), LLAMA)
    checks = verify(write_gguf(store, tmp_path / "out.gguf"), source, store)
    assert not [check for check in checks if not check.ok]


def test_another_model_is_no_twin(kept, tmp_path):
    source = kept.gguf("smollm3")
    other = kept.model("olmo2", "float32")
    with pytest.raises(CheckpointError, match=r"model: torch does not predict what llama.cpp does of .*nats a token apart.*unit"):
        measure_curvature(open_checkpoint(source.path, other), TOKENS, 0)
    shutil.copytree(source.twin, tmp_path / "near")
    _change(tmp_path / "near", lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3].mul_(1.001))
    with pytest.raises(CheckpointError, match=r"no weight like model.layers.1.mlp.up_proj.weight \(99% of its rows\)"):
        measure_curvature(open_checkpoint(source.path, tmp_path / "near"), TOKENS, 0)
    (tmp_path / "near" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"near: does not run in torch \(.*go without gradients"):
        measure_curvature(open_checkpoint(source.path, tmp_path / "near"), TOKENS, 0)


def test_another_vocabulary_is_no_twin(kept, tmp_path):
    source = kept.gguf("smollm3")
    other = make_model(tmp_path / "other", "olmo2", "float32", vocab_size=408)
    with pytest.raises(CheckpointError, match=r"predicts 408 tokens in torch, and .*model.gguf 400 in llama.cpp"):
        measure_curvature(open_checkpoint(source.path, other), TOKENS, 0)


def test_a_twin_is_checked_at_the_door(folder, tmp_path):
    convert(folder, tmp_path / "m{ftype}.gguf", find_converter(), "gpt-2")
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    source = open_checkpoint(tmp_path / "m{ftype}.gguf", pickled)
    with pytest.raises(CheckpointError, match="pickled: does not run in torch"):
        measure_curvature(source, TOKENS, 0)
    (pickled / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="LoRA adapter"):
        open_checkpoint(tmp_path / "m{ftype}.gguf", pickled)
    with pytest.raises(ConfigError, match="is run by torch itself; drop torch"):
        open_checkpoint(make_tiny_model(tmp_path / "known"), folder)


def _change(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def folder(kept) -> Path:
    return kept.model("smollm3")


def test_it_says_what_it_was_made_of(folder, tmp_path):
    made = convert(folder, tmp_path / "a.gguf", find_converter(), "gpt-2")
    assert isinstance(made, Converted) and (made.outtype, dict(made.left_out)) == ("BF16", {})
    convert(folder, tmp_path / "b.gguf", find_converter(), "gpt-2")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert open_checkpoint(tmp_path / "a.gguf").read(EMBEDDING).shape == (400, 64)


OWN = """
import sys
from quantize.template.serve import no_code_of_others
if sys.argv[2] == "off": no_code_of_others()
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


@pytest.mark.parametrize("code", ["on", "off"])
def test_its_own_code_never_runs(folder, tmp_path, code):
    """Though some modules of the converter ask for it."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    _json(copy / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    done = subprocess.run([sys.executable, "-c", OWN, copy, code], capture_output=True, text=True, check=False)
    assert (tmp_path / "ran").exists() == (code == "on")
    assert ("brings code of its own, which is never run" in done.stderr) == (code == "off")


def _unknown(folder: Path) -> None:
    _json(folder / "config.json", architectures=["NoSuchForCausalLM"])


def _json(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


BAD = {
    "architecture": (
        _unknown,
        r"converter does not take it \(NotImplementedError: Architecture 'NoSuchForCausalLM' not supported",
    ),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "only pickled weights, which are never loaded",
    ),
    "truncated": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-64]), "truncated"),
    "awq": (
        lambda f: _json(f / "config.json", quantization_config={"quant_method": "awq"}),
        "quantized by awq, which the converter",
    ),
    "tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "converter does not take it"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "LoRA adapter"),
    "tensors": (lambda f: _change(f, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), "of no use: llama.cpp refuses it"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_folder_is_one_line_and_nothing_written(folder, tmp_path, kind):
    change, words = BAD[kind]
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy)
    with pytest.raises(CheckpointError, match=words) as caught:
        convert(copy, tmp_path / "out" / "model.gguf", find_converter(), "gpt-2")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_an_unknown_pre_tokenizer_is_to_be_named(folder, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"pre-tokenizer is none that llama.cpp is known to have; name it with tokenizer_pre"
    ):
        convert(folder, tmp_path / "model.gguf", find_converter())


def test_the_converter_is_the_one_that_is_known(tmp_path, monkeypatch):
    assert find_converter().name == f"llama.cpp's converter ({pinned.PACKAGE} {pinned.VERSION})"
    copy = shutil.copytree(pinned.home(), tmp_path / "copy")
    assert find_converter(copy).name == f"llama.cpp checkout copy ({pinned.MODULES[:12]})"
    (copy / "conversion" / "base.py").write_text("print('other')")
    monkeypatch.setattr(pinned, "home", lambda: copy)
    with pytest.raises(
        ConfigError, match=r"copy: is not the converter of llama-cpp-python .* as published; bring it again: adadim"
    ):
        find_converter()
    shutil.rmtree(copy)
    with pytest.raises(ConfigError, match="not installed; bring it with: adadim doctor --install converter"):
        find_converter()
    with pytest.raises(ConfigError, match=r"no checkout of llama.cpp that has conversion/ and gguf-py/"):
        find_converter(tmp_path)

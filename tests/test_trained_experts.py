"""A mixture of experts that was trained, all the way in both formats: each expert is rounded by what it sees itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from exporter.cli.main import main
from quantize.checkpoint import open_checkpoint
from quantize.statistics.calibration import held_out_text
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from tests.apps.desktop import check_greedy
from tests.trained import VOCAB, train

FILES = {"llama.cpp": ("source.gguf", "model.gguf"), "onnxruntime": ("source.onnx", "onnx")}  # by target
FEW = {"llama.cpp": "experts saw fewer than", "onnxruntime": "mlp.experts."}  # how an expert is listed
PERPLEXITY = 100  # 50 was measured; a random model has one of about VOCAB
TIMES_NEARER = {"llama.cpp": 3, "onnxruntime": 2}  # than nearest rounding; 4.5 and 2.9 were measured
PROMPT, COUNT, AT_LEAST = "The following sections describe the", 24, 16  # tokens that no near tie may spoil


def run(*args: object) -> int:
    return main([str(arg) for arg in (*args, "--quiet")])


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some 220 s of one core, which a busy machine shares
def test_experts_in_both_formats(tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "out"
    assert train(model) < PERPLEXITY < VOCAB / 5
    assert run("run", model, "--out", out, "--tokenizer-pre", "smollm") == 0
    assert capsys.readouterr().out.count("checks hold") == len(FILES)
    prompt, answer = said_by_torch(model)
    for target, (source, file) in FILES.items():
        made, nearest = out / target, tmp_path / "nearest" / target
        assert any(FEW[target] in line for line in listed(made))
        assert check_greedy(made / file, prompt, answer) >= AT_LEAST
        assert run("run", out / source, "--target", target, "--method", "rtn-oc", "--out", tmp_path / "nearest") == 0
        ours, theirs = (report(each / file, out / source) for each in (made, nearest))
        assert ours["bytes"] < 1.02 * theirs["bytes"]  # nodes of split linears, and names of methods
        assert TIMES_NEARER[target] * ours["kld"] < theirs["kld"]


def said_by_torch(model: Path) -> tuple[list[int], list[int]]:
    """A prompt, and how the source goes on, greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(model)(PROMPT)["input_ids"]
    source = AutoModelForCausalLM.from_pretrained(model)
    answer = source.generate(torch.tensor([prompt]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False)
    return prompt, answer[0, len(prompt) :].tolist()


def listed(made: Path) -> list[str]:
    return json.loads((made / "store" / "plan.json").read_text())["calibration"]["rank_poor"]


def report(path: Path, source: Path) -> dict:
    return evaluate(path, open_checkpoint(source), held_out_text(), EvalOptions(context=256, chunks=16))

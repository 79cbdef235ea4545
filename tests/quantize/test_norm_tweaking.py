"""Norm Tweaking: outputs come nearer to the source's statistics, and no block loses on sequences that no step saw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporter.cli.main import main
from exporter.cli.summary import store_summary
from exporter.targets import TARGETS
from exporter.writers import writer_of
from quantize import build_plan, open_checkpoint, quantize_checkpoint
from quantize.config import GENERATED
from quantize.errors import ConfigError
from quantize.methods import METHODS
from quantize.run import task
from quantize.steps.descent import JUDGES
from quantize.steps.tweak_norms import TweakNorms
from quantize.types import TensorSpec
from runtime_checks.checks.verify import verify
from tests.cases import config_of
from tests.stores import stored_weight
from tests.tiny import make_tiny_model

TOKENS = 16 * 512
LAYERS = 2
TEXT = {"calibration": "builtin"}
OWN = {"calibration": None}  # not said


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("norms") / "model", hidden=64, ffn=96, layers=LAYERS)


def config(**options):
    return config_of("norm-tweaking", **{"bits": 4, "group_size": 64, "calibration_tokens": TOKENS, **TEXT, **options})


class Watched:
    """TweakNorms, and what a block's student says before and after it."""

    name, needs = TweakNorms.name, TweakNorms.needs

    def __init__(self, step):
        self.step, self.found = step, []

    def __call__(self, block, names, kit):
        student = kit.run.student
        judges, learned = np.arange(JUDGES) * student.sequences // JUDGES, np.arange(student.sequences)
        for name, value in block.tensors.items():
            student.put(name, kit.orders.to_source(name, value), learns=False)
        matching = student.matching()
        assert matching.distance(learned) == 0

        def told(block):
            for name, value in block.tensors.items():
                rounded = block.rounded.get(name)
                value = value if rounded is None else block.stored(name, rounded.tensor).dense()
                student.put(name, kit.orders.to_source(name, value), learns=False)
            return student.loss(judges), matching.distance(np.setdiff1d(learned, judges))

        before = told(block)
        after = self.step(block, names, kit)
        self.found.append((before, told(after), after))
        return after


def watched(monkeypatch, rate):
    """As METHODS has it, at another rate."""
    method = METHODS["norm-tweaking"]
    step = Watched(replace(method.steps[-1], rate=rate))
    monkeypatch.setitem(task.METHODS, "norm-tweaking", replace(method, steps=(*method.steps[:-1], step)))
    return step


def test_statistics_come_nearer_and_judges_never_lose(model, tmp_path, monkeypatch):
    step = watched(monkeypatch, METHODS["norm-tweaking"].steps[-1].rate)
    source = open_checkpoint(model)
    store = quantize_checkpoint(source, tmp_path / "s", config(), TARGETS["onnxruntime"])
    assert len(step.found) == LAYERS
    assert all(after[0] <= before[0] for before, after, _ in step.found)
    helped = [(before, after) for before, after, block in step.found if "applied" in block.report]
    assert helped
    assert all(after[0] < before[0] and after[1] < before[1] for before, after in helped)
    moved = [index for index, (_, _, block) in enumerate(step.found) if "applied" in block.report]
    assert step.name not in store.header["transforms"]  # the watched one is no TweakNorms
    norm = f"model.layers.{moved[0]}.input_layernorm.weight"
    assert not np.array_equal(stored_weight(store, norm), source.read(norm))


def test_steps_that_lose_are_taken_back(model, tmp_path, monkeypatch):
    step = watched(monkeypatch, 10.0)
    source = open_checkpoint(model)
    store = quantize_checkpoint(source, tmp_path / "s", config(), TARGETS["onnxruntime"])
    assert all(after == before for before, after, _ in step.found)
    norm = "model.layers.1.input_layernorm.weight"
    assert np.array_equal(stored_weight(store, norm), source.read(norm))


@pytest.mark.parametrize("target", ["llama.cpp", "onnxruntime"])
def test_a_file_verifies_and_says_which_blocks_were_tweaked(model, tmp_path, target):
    source = open_checkpoint(model)
    options = {"group_size": None} if target == "llama.cpp" else {}
    store = quantize_checkpoint(source, tmp_path / "s", config(**options), TARGETS[target])
    assert set(store.header["transforms"]) == {"norm-tweaking"} and "1" in store.header["transforms"]["norm-tweaking"]
    checks = verify(writer_of(target).write(store, tmp_path / "file"), source, store)
    assert checks and all(check.ok for check in checks)


def test_too_short_a_text_is_refused(model, tmp_path, capsys):
    args = ("quantize", model, "--out", tmp_path / "s", "--method", "norm-tweaking", "--calibration-tokens", 512 * JUDGES)
    assert main([*map(str, args), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "8 sequences, but norm-tweaking needs 8 to judge by and one to learn from; raise --calibration-tokens" in said


SPECS = {name: TensorSpec(name, "F32", (64, 64)) for name in ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight")}


@pytest.mark.parametrize("options", [{"transforms": ("norm-gains",)}, {"float_columns": 2}])
def test_what_moves_the_same_is_refused_before_any_data(options):
    with pytest.raises(ConfigError, match=r"method='norm-tweaking': moves .* drop one"):
        build_plan(SPECS, config(**options), TARGETS["onnxruntime"])


def test_the_source_writes_the_text_by_default(model, tmp_path, capsys):
    """The store, its header and the summary say so; another seed draws another text, and a text that is named is taken."""
    assert (config(**OWN).data.text, config().data.text) == (GENERATED, "builtin")
    source = open_checkpoint(model)
    store = quantize_checkpoint(source, tmp_path / "s", config(**OWN), TARGETS["onnxruntime"])
    assert store.header["calibration"]["text"] == "written by the source"
    assert "calibrated on 8,192 tokens that the source wrote itself, drawn by seed 0" in store.header["notes"]
    norms = store.header["norms"]
    assert all(len(norms[key][when]) == LAYERS for key in ("distance", "loss") for when in ("before", "after"))
    assert all(after <= before for before, after in zip(norms["loss"]["before"], norms["loss"]["after"], strict=True))
    assert sum(norms["distance"]["after"]) < sum(norms["distance"]["before"])
    assert "statistics' distance times 0." in store_summary(store)
    again = quantize_checkpoint(source, tmp_path / "again", config(**OWN), TARGETS["onnxruntime"])
    assert again.header == store.header
    other = quantize_checkpoint(source, tmp_path / "other", config(seed=1, **OWN), TARGETS["onnxruntime"])
    assert other.header["calibration"]["sha256"] != store.header["calibration"]["sha256"]

"""``adadim methods`` says of every method what it is, and what it says of targets is what planning does."""

from __future__ import annotations

import json

import pytest

from exporter.cli.main import main
from exporter.cli.methods import methods_report
from exporter.targets import TARGETS
from quantize import build_plan
from quantize.errors import ConfigError
from quantize.methods import METHODS, WORDS, Method
from quantize.methods.added import ADDED
from quantize.steps.round import Round
from quantize.transforms import NAMES
from quantize.types import Need, TensorSpec
from tests.cases import config_of

SPECS = {name: TensorSpec(name, "F32", (256, 256)) for name in ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight")}


def test_all_are_listed(capsys):
    assert main(["methods", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == methods_report()
    assert [row["name"] for row in said["methods"]] == list(WORDS)
    assert all(row["kind"] and row["paper"] and row["needs"] for rows in said.values() for row in rows)
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out
    assert all(f"  {row['name']} " in lines for rows in said.values() for row in rows)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("word", WORDS)
def test_a_target_is_listed_where_planning_takes_the_method(word, target):
    row = next(row for row in methods_report()["methods"] if row["name"] == word)
    try:
        plans = build_plan(SPECS, config_of(word), TARGETS[target])
        held = all(plan.candidates for plan in plans)
    except ConfigError:
        held = False
    assert (target in row["targets"]) is held


def test_what_a_method_needs_is_the_most_that_a_step_needs():
    assert {name: method.needs for name, method in METHODS.items()} == {
        "rtn": Need.WEIGHTS,
        "finequant": Need.WEIGHTS,
        "higgs": Need.WEIGHTS,
        "search": Need.IMPORTANCE,
        "gptq": Need.HESSIAN,
        "quik": Need.HESSIAN,
        "cmpq": Need.HESSIAN,
        "smoothquant": Need.HESSIAN,
        "awq": Need.HESSIAN,
        "duquant": Need.HESSIAN,
        "outliertune": Need.HESSIAN,
        "outlier-suppression": Need.HESSIAN,
        "norm-tweaking": Need.LEARNING,
        "omniquant": Need.LEARNING,
    }
    both = Method("b", "k", "p", (Round(METHODS["rtn"].rounder), Round(METHODS["gptq"].rounder)))
    assert both.needs is Need.HESSIAN


def test_every_transform_is_among_the_options():
    assert tuple(extra.word for extra in ADDED if extra.option == "transforms") == NAMES

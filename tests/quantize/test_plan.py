"""Plans are made from headers alone, and say everything that is not as asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.cli.spelling import as_option
from exporter.targets import TARGETS
from quantize import workers
from quantize.checkpoint import open_checkpoint
from quantize.config import QuantizeConfig
from quantize.errors import ConfigError, PlanError
from quantize.model_config import EMBEDDING, HEAD
from quantize.planning.memory import check_memory
from quantize.planning.plan import build_plan, plan_notes
from quantize.types import Axis, TensorSpec
from tests.cases import config_of
from tests.tiny import make_tiny_model

Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def specs_of(q=(64, 64), down=(64, 96), head=False):
    shapes = {EMBEDDING: (320, 64), NORM: (64,), Q: q, DOWN: down} | ({HEAD: (320, 64)} if head else {})
    return {name: TensorSpec(name, "F16", shape) for name, shape in shapes.items()}


def plan_of(target, specs=None, **config):
    plans = build_plan(specs or specs_of(), config_of(**config), TARGETS[target])
    return {plan.name: plan for plan in plans}


@pytest.mark.parametrize(
    ("target", "config", "grid", "axes"),
    [
        ("llama.cpp", {}, ("q4_0", 4, 32), [Axis.PER_OC]),
        ("llama.cpp", {"bits": 5}, ("q5_0", 5, 32), [Axis.PER_OC]),
        ("llama.cpp", {"grid": "q8_0", "method": "rtn-oc"}, ("q8_0", 8, 32), [Axis.PER_OC]),
        ("gguf-adadim", {"grid": "q4_1"}, ("q4_1", 4, 32), [Axis.PER_OC, Axis.PER_IC]),
        ("onnxruntime", {}, ("int", 4, 64), [Axis.PER_OC, Axis.PER_IC]),
        ("onnxruntime", {"method": "gptq-ic", "bits": 3, "group_size": 32}, ("int", 3, 32), [Axis.PER_IC]),
        ("onnxruntime+adadim", {"bits": 2, "method": "rtn-oc"}, ("int", 2, 64), [Axis.PER_OC]),
    ],
)
def test_linears(target, config, grid, axes):
    plan = plan_of(target, **config)[Q]
    assert list(plan.candidates) == axes
    for candidate in plan.candidates.values():
        assert (candidate.name, candidate.bits, candidate.group_size) == grid


def test_whole_channel_is_one_group_whichever_way_it_runs():
    down = plan_of("onnxruntime", group_size=0)[DOWN]
    assert {axis: grid.group_size for axis, grid in down.candidates.items()} == {Axis.PER_OC: 128, Axis.PER_IC: 64}


@pytest.mark.parametrize(("target", "grid"), [("llama.cpp", "q8_0"), ("onnxruntime", "int")])
def test_embedding_defaults_to_eight_bits_and_norms_stay_floats(target, grid):
    plans = plan_of(target)
    embedding = plans[EMBEDDING].candidates[Axis.PER_OC]
    assert (embedding.name, embedding.bits) == (grid, 8)
    assert not plans[NORM].candidates and plans[NORM].dtype == "F32"


def test_embedding_kept_as_source_and_head_split_off():
    plans = plan_of("llama.cpp", embedding="source")
    assert not plans[EMBEDDING].candidates and plans[EMBEDDING].dtype == "F16" and HEAD not in plans
    split = plan_of("llama.cpp", embedding="source", head="q8_0")
    assert split[HEAD].shape == (320, 64) and split[HEAD].candidates[Axis.PER_OC].name == "q8_0"
    untied = plan_of("llama.cpp", specs_of(head=True), head="source")
    assert untied[EMBEDDING].candidates and not untied[HEAD].candidates


def test_per_ic_for_llama_cpp_is_an_error_and_ada_means_per_oc():
    with pytest.raises(ConfigError, match=r"method='gptq-ic': .*q_proj.*cannot hold per-IC groups.*choose gptq-oc or gptq-ada"):
        plan_of("llama.cpp", method="gptq-ic")
    config, target = QuantizeConfig(), TARGETS["llama.cpp"]
    notes = plan_notes(build_plan(specs_of(), config, target), config, target)
    assert notes == ["llama.cpp holds no per-IC groups: gptq-ada means gptq-oc here"]


def test_a_shape_that_does_not_fit_is_an_error_with_its_numbers():
    with pytest.raises(PlanError, match=r"q_proj.weight 64x80: per_oc .*80.*32.*allow_fallback=True"):
        plan_of("llama.cpp", specs_of(q=(64, 80)))


def test_a_fallback_is_listed():
    config, target = QuantizeConfig(allow_fallback=True), TARGETS["llama.cpp"]
    plans = build_plan(specs_of(q=(64, 80)), config, target)
    assert next(plan for plan in plans if plan.name == Q).dtype == "F16"
    assert any(Q in note and "kept as F16" in note for note in plan_notes(plans, config, target))


@pytest.mark.parametrize(("target", "grid"), [("llama.cpp", "int"), ("onnxruntime", "q4_0")])
def test_a_grid_of_another_runtime_is_an_error_that_no_fallback_mends(target, grid):
    with pytest.raises(ConfigError, match=rf"{target} stores .*; drop grid.name='{grid}'$"):
        plan_of(target, grid=grid, allow_fallback=True)


def test_per_ic_that_does_not_fit_falls_back_to_per_oc_and_is_listed():
    specs = specs_of(q=(80, 64))
    with pytest.raises(PlanError, match=r"q_proj.weight 80x64: per_ic .*OC = 80, .*allow_fallback=True"):
        plan_of("gguf-adadim", specs, method="rtn-ic")
    plan = plan_of("gguf-adadim", specs, method="rtn-ic", allow_fallback=True)[Q]
    assert list(plan.candidates) == [Axis.PER_OC] and plan.note.endswith("; stored as q4_0 per_oc")


@pytest.mark.parametrize(("dtype", "kept"), [("F32", "F32"), ("F16", "F16"), ("BF16", "BF16"), ("Q4_1", "F32")])
def test_floats_of_a_fallback_hold_what_the_source_holds(dtype, kept):
    specs = {name: TensorSpec(name, dtype, (spec.shape[0], 80)) for name, spec in specs_of().items() if name != NORM}
    plans = plan_of("llama.cpp", specs, allow_fallback=True)
    assert {plan.dtype for plan in plans.values()} == {kept}
    assert all(f"kept as {kept}" in plan.note for plan in plans.values())


def test_a_super_block_that_does_not_fit_becomes_a_block_that_does():
    config, target = config_of(grid="q4_k", allow_fallback=True), TARGETS["llama.cpp"]
    plans = build_plan(specs_of(), config, target)
    assert next(plan for plan in plans if plan.name == Q).candidates[Axis.PER_OC].name == "q5_0"
    assert any(Q in note and "block of 256" in note and "stored as q5_0" in note for note in plan_notes(plans, config, target))
    with pytest.raises(PlanError, match=r"IC = 64, which is no multiple of q4_k's block of 256.*allow_fallback=True"):
        plan_of("llama.cpp", grid="q4_k")


def test_an_axis_that_does_not_fit_is_no_candidate_and_is_listed():
    config, target = QuantizeConfig(), TARGETS["gguf-adadim"]
    plans = build_plan(specs_of(q=(80, 64)), config, target)
    plan = next(plan for plan in plans if plan.name == Q)
    assert list(plan.candidates) == [Axis.PER_OC]
    assert any(Q in note and "no candidate: per_ic" in note for note in plan_notes(plans, config, target))


def test_recipe_changes_what_it_matches(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "*.mlp.down_proj"\nbits = 8\nmethod = "rtn-oc"\n')
    plans = plan_of("onnxruntime", recipe=recipe)
    assert [grid.bits for grid in plans[DOWN].candidates.values()] == [8] and plans[DOWN].method == "rtn"
    assert plans[Q].candidates[Axis.PER_OC].bits == 4 and plans[Q].method == "gptq"


def test_a_recipe_takes_the_command_lines_word_for_a_whole_channel(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "*.mlp.down_proj"\ngroup_size = "channel"\n')
    assert plan_of("onnxruntime", recipe=recipe)[DOWN].candidates[Axis.PER_OC].group_size == 128


def test_the_first_rule_that_matches_wins(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[rule]]\nmatch = "*.down_proj"\nbits = 8\n\n' + '[[rule]]\nmatch = "*.mlp.*"\nbits = 3\n' * 999)
    plans = plan_of("onnxruntime", recipe=recipe)  # the others are not unused, and 1000 are not too many
    assert (plans[DOWN].candidates[Axis.PER_OC].bits, plans[Q].candidates[Axis.PER_OC].bits) == (8, 4)


@pytest.mark.parametrize(("rule", "grid"), [("bits = 8", "q8_0"), ('grid = "q5_0"', "q5_0")])
def test_a_rule_for_bits_or_grid_inherits_neither(tmp_path, rule, grid):
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[[rule]]\nmatch = "*.down_proj"\n{rule}\n')
    plans = plan_of("llama.cpp", recipe=recipe, grid="q4_1", bits=4)
    assert [plans[name].candidates[Axis.PER_OC].name for name in (DOWN, Q)] == [grid, "q4_1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[rule]]\nmatch = "*.nothing"\n', r"rule\[0\], match '\*\.nothing', names no linear"),
        ('[[rule]]\nmatch = "*"\nbit = 3\n', r"rule\[0\] is .*: Object contains unknown field bit;"),
        ("[[rule]]\nbits = 3\n", r"rule\[0\] is .*: Object missing required field match"),
        ("[[rule]\n", r"not TOML \(Expected"),
        ("x = " + "[" * 5000, "not TOML"),
        ("x = 1\nx = 2\n", "not TOML"),
        ('[[rule]]\nmatch = "*"\nmethod = "hqq"\n', "method 'hqq'; choose one of rtn-oc"),
        ('[[rule]]\nmatch = "*"\ngrid = "../x"\n', "grid '../x'; choose one of int, q4_0"),
        ('[[rule]]\nmatch = "*"\nscale_dtype = "f64"\n', "scale_dtype 'f64'; choose one of float16"),
        ('[[rule]]\nmatch = "*"\nbits = "four"\n', r"rule\[0\]\.bits is 'four': Expected int"),
        ('[[rule]]\nmatch = "*"\nbits = "4"\n', r"rule\[0\]\.bits is '4': Expected int"),
        ('[[rule]]\nmatch = "*"\nbits = true\n', r"rule\[0\]\.bits is True: Expected int"),
        ('[[rule]]\nmatch = "*"\nbits = 99999999999999999999\n', r"rule\[0\]\.bits is 99999999999999999999: Expected int"),
        ('[[rule]]\nmatch = "*"\nsymmetric = "no"\n', r"rule\[0\]\.symmetric is 'no': Expected bool"),
        ('[[rule]]\nmatch = "*"\ngroup_size = "x"\n', "group_size x: choose one of 16, .* or channel"),
        ('[[rule]]\nmatch = "*"\ngroup_size = 48\n', "group_size 48: choose one of 16, .* or channel"),
        ('[[rule]]\nmatch = "*"\ngroup_size = true\n', r"rule\[0\]\.group_size is True: Expected int"),
        ('[[rule]]\nmatch = "*"\nmethod = ["x"]\n', r"rule\[0\]\.method is \['x'\]: Expected str"),
        ('[[rule]]\nmatch = ""\n', r"rule\[0\]\.match is '': Expected str of length >= 1"),
        ("[[rule]]\nmatch = 3\n", r"rule\[0\]\.match is 3: Expected str"),
        (f'[[rule]]\nmatch = "{"*a" * 1000}"\n', r"rule\[0\]\.match is '\*a.{200,305}': Expected str of length <= 300"),
        (f'[[rule]]\nmatch = "{"*a" * 10**6}"\n', "2,000,020 bytes, where 1,048,576 are the most that is read"),
        ('[[rule]]\nmatch = "*"\n' * 1001, r"rule is \[.*: Expected array of length <= 1000"),
        ("rule = 3\n", "rule is 3: Expected array, got int; a recipe holds"),
        ("rule = [3]\n", r"rule\[0\] is 3: Expected object"),
        ('[rule]\nmatch = "*"\n', "rule is .*: Expected array, got object; a recipe holds"),
        ('[[rules]]\nmatch = "*"\n', "unknown field rules; a recipe holds"),
        (f"{'x' * 10**5} = 8\n", "unknown field x{100,300} … x*; a recipe holds"),
        ("bits = 8\n", "unknown field bits; a recipe holds"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    recipe = tmp_path / "r.toml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        plan_of("onnxruntime", recipe=recipe)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "hqq"}, "--method hqq: choose one of"),
        ({"selection": "luck"}, "--selection luck"),
        ({"token_weight": "x"}, "--token-weight x"),
        ({"transforms": ("norm-scales", "spin")}, "--transforms spin: choose none, all or some of norm-scales, ffn-scales"),
        ({"calibration_tokens": 0}, "--calibration-tokens 0"),
        ({"seed": -1}, "--seed -1: must be"),
        ({"seed": 1 << 64}, "--seed 18446744073709551616: must be"),
        ({"block_steps": -1}, "--block-steps -1: must not"),
        ({"tune_steps": -1}, "--tune-steps -1: must not"),
        ({"group_size": 512}, "--group-size 512: choose one of 16, 32, 64, 128, 256 or channel"),
        ({"embedding": "q8_0"}, "--embedding q8_0: target onnxruntime stores the int grid, not ggml's q8_0; drop --embedding"),
        ({"max_slowdown": 0.5}, "--max-slowdown 0.5"),
        ({"max_slowdown": float("nan")}, "--max-slowdown nan"),
        ({"embedding": "int3"}, "--embedding int3: choose source"),
        ({"head": "tied"}, "--head tied: this model's head differs"),
        ({"grid": "q4_1", "symmetric": True, "target": "llama.cpp"}, "q4_1 is not symmetric"),
        ({"scale_dtype": "float32", "target": "llama.cpp"}, "--grid q4_0 has scales of its own; drop --scale-dtype float32"),
        ({"scale_dtype": "float64"}, "--scale-dtype float64: choose one of float16, float32"),
        ({"bits": 6, "target": "llama.cpp"}, "--bits 6"),
    ],
)
def test_contradictions(config, message):
    target = config.pop("target", "onnxruntime")
    with pytest.raises(ConfigError) as error:
        plan_of(target, specs_of(head=True), **config)
    assert message in error.value.told(as_option)


@pytest.mark.parametrize(
    ("options", "fits", "mend"),
    [({}, 1.2, "token_weight='unit'"), ({"tune_steps": 1}, 4.4, "tune_steps=0"), ({"token_weight": "unit"}, 0, "")],
)
def test_a_source_larger_than_memory_is_refused_with_what_helps(tmp_path, monkeypatch, options, fits, mend):
    source, config = open_checkpoint(make_tiny_model(tmp_path / "model")), config_of(**options)
    size = 4 * sum(spec.size for spec in source.specs.values())
    monkeypatch.setattr(workers, "physical_memory", lambda: 8 * size)
    check_memory(source, config)
    monkeypatch.setattr(workers, "physical_memory", lambda: int(fits * size))
    if mend:
        with pytest.raises(ConfigError, match=rf"model: takes about \d+ GiB of memory, and this machine has \d+; give {mend}"):
            check_memory(source, config)
        monkeypatch.setattr(workers, "physical_memory", lambda: 8 * size)
        with pytest.raises(ConfigError, match=rf"takes about \d+ GiB of memory, and max_memory gives it \d+; give {mend}"):
            check_memory(source, config_of(**options, max_memory=int(fits * size)))


def test_transforms_need_more_than_an_importance_matrix():
    with pytest.raises(ConfigError, match=r"transforms: need the source run over a text, not imatrix; give transforms=\(\), or"):
        config_of(method="rtn-oc", imatrix=Path("i.gguf"), transforms=("norm-gains",))

"""Models in torch in the memory of one decoder block: the same numbers to the bit, and never two blocks in float32."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef

from quantize import workers
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.gguf_template import GgufTemplate
from quantize.errors import ConfigError
from quantize.planning.memory import check_memory
from quantize.source import ExpertInputs, block_students, curvature, expert_inputs, measure_curvature, named_blocks, paged
from quantize.source.named import named_model
from tests.any_model import gguf_template, make_model
from tests.cases import config_of

TOKENS = np.random.default_rng(0).integers(3, 400, (3, 48))
EVERY = np.arange(3)


def template(folder, model_type, **more) -> GgufTemplate:
    """Matrices in BF16, as most models have them, and norms in F32 that no 16 bits hold."""
    model = make_model(folder / "model", model_type, "float32", **more)
    weights = load_file(model / "model.safetensors")
    mixed = {name: weight.bfloat16() if weight.ndim > 1 else weight + 1e-5 for name, weight in weights.items()}
    save_file(mixed, model / "model.safetensors", metadata={"format": "pt"})
    return gguf_template(model, folder)


@pytest.fixture(autouse=True)
def _asked_once(monkeypatch):
    """The runtime says the same of the same file: it is started for it once."""
    ask = cache(lambda source, tokens: ask_runtime(source, np.frombuffer(tokens, np.int64)))
    ask_runtime = GgufTemplate.logits
    monkeypatch.setattr(GgufTemplate, "logits", lambda source, tokens: ask(source, tokens.tobytes()))


def _whole(monkeypatch) -> None:
    for room in (curvature, expert_inputs, named_blocks):
        monkeypatch.setattr(room, "named_model", partial(named_model, paged=False))


def _told(source: GgufTemplate) -> dict[str, np.ndarray]:
    """What torch is asked of a template: its curvature, and its blocks with other weights in them."""
    measured, rng, told = measure_curvature(source, TOKENS, 0), np.random.default_rng(1), dict[str, np.ndarray]()
    told |= {f"tokens {site}": one for site, one in measured.tokens.items()}
    told |= {f"rows {name}": one for name, one in measured.rows.items()}
    told |= {f"table {name}": one.hessian for name, one in measured.tables.items()}
    for index, student in enumerate(block_students(source, TOKENS, measured)):
        for name in [name for name in measured.rows if f".layers.{index}." in name]:
            weight = source.read(name)
            student.put(name, weight + rng.standard_normal(weight.shape).astype("f4") / 32, learns=True)
        told |= {f"slope {name}": one for name, one in student.gradients(EVERY[:2]).items()}
        told |= {f"out {index}": np.concatenate([one.numpy() for one in student.outputs()])}
        told |= {f"loss {index}": np.array(student.loss(EVERY)), f"costs {index}": measured.blocks[index][0]}
    return told


@pytest.mark.parametrize("model_type", ["gemma3_text", "lfm2", "mamba2", "phi3", "gpt2", "qwen3_moe"])
def test_it_tells_what_the_whole_model_does(tmp_path, monkeypatch, model_type):
    """Windows, convolutions, a state, products in one parameter, transposed ones, experts."""
    source = template(tmp_path, model_type)
    found = _told(source)
    _whole(monkeypatch)
    expected = _told(source)
    assert found.keys() == expected.keys() and {key.split()[0] for key in found} >= {"rows", "table", "slope", "loss"}
    assert not [key for key, one in expected.items() if not np.array_equal(found[key], one)]
    assert max(one for key, one in found.items() if key.startswith("loss")) > 1e-6


def test_experts_see_in_it_what_they_see_in_the_whole_model(kept, monkeypatch):
    """Of a graph that tells nothing of them."""
    source = open_checkpoint(kept.onnx("granitemoe"), kept.model("granitemoe"))
    names = [name for name in source.specs if source.is_quantized(name)]
    some, stacks = ExpertInputs(source, TOKENS).of(names, unit=True)
    _whole(monkeypatch)
    expected = ExpertInputs(source, TOKENS).of(names, unit=True)
    assert not some and not expected[0] and len(stacks) == 4 and stacks.keys() == expected[1].keys()
    for name, moments in stacks.items():
        assert np.array_equal(moments.tokens, expected[1][name].tokens) and moments.tokens.sum() > 0
        assert np.array_equal(moments.squares, expected[1][name].squares)


def test_one_block_is_in_float32_at_a_time(tmp_path, monkeypatch):
    """Of 6, there and back, and while each learns; what torch keeps for the way back counts."""
    source, alive, most = template(tmp_path, "olmo2", num_hidden_layers=6), list[tuple[StorageWeakRef, int]](), [0]
    bring = paged._up

    def up(data: torch.Tensor) -> torch.Tensor:
        made = bring(data)
        alive.append((StorageWeakRef(made.untyped_storage()), made.nbytes))
        alive[:] = [(one, size) for one, size in alive if not one.expired()]
        most[0] = max(most[0], sum(size for _, size in alive))
        return made

    monkeypatch.setattr(paged, "_up", up)
    causal = named_model(source, TOKENS).causal
    own = {id(one) for block in causal.blocks for one in block.parameters()}
    lying = [one for one in causal.parameters.values() if id(one) in own]
    assert {one.dtype for one in lying if one.ndim > 1} == {torch.bfloat16}
    outside = sum(one.nbytes for one in causal.parameters.values() if id(one) not in own)
    block = sum(4 * one.numel() for one in causal.blocks[0].parameters())
    del causal, lying
    alive.clear()
    measure_curvature(source, TOKENS, 0)
    assert block <= most[0] - outside < 1.5 * block
    alive.clear()
    for index, student in enumerate(block_students(source, TOKENS, "unit")):
        for name in [name for name in source.specs if f".layers.{index}." in name and source.is_quantized(name)]:
            student.put(name, source.read(name), learns=True)
        assert student.gradients(EVERY)
    assert most[0] - outside < 1.5 * block


def test_what_lies_in_a_file_is_mapped(tmp_path):
    """No copy is made of it before it runs: the system may let go what it read."""
    source = template(tmp_path, "qwen2")
    causal = named_model(source, TOKENS).causal
    rows = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [[int(end, 16) for end in row[0].split("-")] for row in rows if row[-1].endswith("model.safetensors")]
    places = [one.data_ptr() for block in causal.blocks for one in block.parameters()]
    assert places and all(any(start <= place < stop for start, stop in ranges) for place in places)


def test_what_it_takes_is_known_before(tmp_path, monkeypatch):
    """Of 48 blocks far less than all weights; not of a GGUF, of which transformers makes floats of its own."""
    source = template(tmp_path, "olmo2", num_hidden_layers=48)
    size = 4 * sum(spec.size for spec in source.specs.values())
    block = 4 * sum(spec.size for name, spec in source.specs.items() if ".layers.0." in name)
    learned = config_of(block_steps=1, token_weight="unit", calibration_tokens=64)
    for config, mend in ((config_of(), "token_weight='unit'"), (learned, "block_steps=0")):
        monkeypatch.setattr(workers, "physical_memory", lambda: size // 2)
        check_memory(source, config)
        with pytest.raises(ConfigError, match=rf"model.gguf: takes about \d+ GiB .*, and this machine has \d+; give {mend}"):
            check_memory(open_checkpoint(source.path), config)
        monkeypatch.setattr(workers, "physical_memory", lambda: size - 47 * block)
        with pytest.raises(ConfigError, match=rf"give {mend}"):
            check_memory(source, config)

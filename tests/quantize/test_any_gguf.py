"""GGUFs of any architecture: quantized by what llama.cpp says of them, verified, and refused where it cannot run them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from exporter.cli.main import main
from exporter.gguf.file import gguf_size, write_gguf
from exporter.targets import TARGETS
from exporter.writers import WRITERS
from quantize import workers
from quantize.checkpoint import open_checkpoint
from quantize.checkpoint.gguf_template import GgufTemplate
from quantize.checkpoint.gguf_tensors import open_language_model
from quantize.errors import AdaDimError, CheckpointError, ConfigError, ExportError
from quantize.gguf.container import TensorInfo, Value, ValueType, encode_header, parse_header
from quantize.inputs import SAMPLE
from quantize.llama_cpp.children import find_products
from quantize.planning.plan import ModelPlan, build_plan
from quantize.planning.sensitivity import measure_sensitivity
from quantize.run.digest import run_digest
from quantize.run.job import make_job
from quantize.run.pipeline import planned_store, quantize_checkpoint
from quantize.source import walk_blocks
from quantize.statistics import by_template
from quantize.statistics.by_template import template_blocks
from quantize.statistics.calibration import detokenize, tokenize
from quantize.statistics.experts import ExpertStats
from quantize.statistics.imatrix import make_imatrix, read_imatrix
from quantize.statistics.measured import Measured
from quantize.types import Axis
from runtime_checks.checks.verify import verify
from runtime_checks.measure.evaluate import EvalOptions, evaluate
from tests.any_gguf import BLOCKS, EXPERT_FFN, EXPERTS, HIDDEN, LAYERS, encode, make_gguf
from tests.cases import config_of
from tests.stores import rtn_store
from tests.tiny import TEXT, make_tiny_model

LLAMA = TARGETS["llama.cpp"]
TOKENS = {"token_weight": "unit", "calibration_tokens": 1024}
MOE = "qwen3moe"
DOWN = "model.layers.1.ffn_down_exps.weight"


@pytest.fixture(scope="module", params=BLOCKS)
def arch(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def source(arch, tmp_path_factory) -> GgufTemplate:
    found = open_checkpoint(make_gguf(tmp_path_factory.mktemp(arch) / "model.gguf", arch))
    assert isinstance(found, GgufTemplate)
    return found


@pytest.fixture(scope="module")
def moe(tmp_path_factory) -> GgufTemplate:
    found = open_checkpoint(make_gguf(tmp_path_factory.mktemp("moe") / "model.gguf", MOE))
    assert isinstance(found, GgufTemplate)
    return found


def test_what_is_written_verifies(arch, source, tmp_path):
    """Every step, llama.cpp's own logits among them."""
    store = quantize_checkpoint(source, tmp_path / "store", config_of("gptq-oc", grid="q4_0", **TOKENS), LLAMA)
    out = write_gguf(store, tmp_path / "out.gguf")
    checks = verify(out, source, store)
    assert not [check for check in checks if not check.ok]
    assert {"mean KL to torch, as shipped", "codes = store's"} <= {check.name for check in checks}
    assert evaluate(out, source, TEXT, EvalOptions(64))["kld"] < 0.2
    assert {record.rounder for record in store.records.values() if record.rounder} <= {"gptq", "polish", "nearest", "rtn"}


def test_it_is_a_file_of_the_same_architecture(arch, source, tmp_path):
    """gguf-py reads it: every key but provenance, every tensor by its name and shape, and matrices of blocks quantized."""
    out = write_gguf(quantize_checkpoint(source, tmp_path / "store", config_of("rtn-oc", bits=8), LLAMA), tmp_path / "out.gguf")
    before, after = GGUFReader(source.path), GGUFReader(out)
    keys = {name for name in after.fields if not name.startswith(("adadim.", "GGUF.", "general."))}
    assert keys == {name for name in before.fields if not name.startswith(("GGUF.", "general."))}
    shapes = [{tensor.name: tensor.shape.tolist() for tensor in reader.tensors} for reader in (before, after)]
    assert shapes[0] == shapes[1]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in after.tensors}
    floats = {name for name, kind in kinds.items() if kind != "Q8_0"}
    assert all(re.search(r"norm|gate_inp", name) for name in floats)
    assert len(kinds) - len(floats) == sum(len(shape) > 1 and "gate_inp" not in name for name, shape in BLOCKS[arch].items()) * (
        LAYERS
    ) + sum(name in kinds for name in ("token_embd.weight", "output.weight"))


def test_same_inputs_same_bytes_and_a_size_known_before(source, tmp_path):
    config = config_of("gptq-oc", grid="iq4_nl", **TOKENS)
    plan = ModelPlan(config, LLAMA, build_plan(source.specs, config, LLAMA))
    with planned_store(source, plan) as planned:
        size = gguf_size(planned)
    files = [
        write_gguf(quantize_checkpoint(source, tmp_path / f"store{i}", config, LLAMA), tmp_path / f"{i}.gguf") for i in range(2)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(files[0].read_bytes()) == size


def test_moments_are_those_of_torch(tmp_path):
    """Of a model that both run, its weights in float32."""
    model = make_tiny_model(tmp_path / "model")
    config = config_of("rtn-oc", embedding="source", recipe=None)
    store = rtn_store(model, tmp_path / "store", method="rtn-oc")
    assert config.method == store.header["config"]["method"]
    path = write_gguf(store, tmp_path / "model.gguf")
    decoded = tmp_path / "decoded.gguf"
    from runtime_checks.runtimes.decoded_gguf import write_decoded

    write_decoded(path, decoded)
    known, template = open_checkpoint(decoded), GgufTemplate(decoded, *open_language_model(decoded))
    tokens = tokenize(TEXT * 20, known)[:1024].reshape(2, 512)
    for weight in ("unit", "none"):
        pairs = zip(walk_blocks(known, tokens, weight, 0), template_blocks(template, tokens, weight), strict=True)
        for torch, llama in pairs:
            assert torch.stats.keys() == llama.stats.keys()
            assert {frozenset(site) for site in torch.sites} == {frozenset(site) for site in llama.sites}
            for name, stats in torch.stats.items():
                scale = np.abs(stats.hessian).max()
                np.testing.assert_allclose(llama.stats[name].hessian, stats.hessian, atol=2e-5 * scale)
                assert llama.stats[name].n_tokens == stats.n_tokens == 1024


def test_experts_see_the_tokens_that_are_sent_to_them(moe):
    """Each token goes to two of them, and the whole second moment is the sum of theirs."""
    tokens = tokenize(TEXT * 20, moe)[:1024].reshape(2, 512)
    for run in template_blocks(moe, tokens, "none"):
        gate, up, down = (run.experts[f"model.layers.{run.index}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
        assert gate.tokens.sum() == down.tokens.sum() == 2 * 1024
        assert np.array_equal(gate.squares, up.squares)
        assert (np.linalg.eigvalsh(np.asarray(gate.squares)) > -1e-4).all()
        assert gate.squares.shape == (EXPERTS, HIDDEN, HIDDEN)


def test_moments_in_several_passes_are_the_same(moe, monkeypatch):
    tokens = tokenize(TEXT * 20, moe)[:512].reshape(1, 512)
    whole = list(template_blocks(moe, tokens, "unit"))
    passes = list[list[int]]()
    real = by_template._passes
    monkeypatch.setattr(workers, "physical_memory", lambda: 1)
    monkeypatch.setattr(by_template, "_passes", lambda *args: (passes.append(some) or some for some in real(*args)))
    parts = list(template_blocks(moe, tokens, "unit"))
    assert passes == [[index] for index in range(LAYERS)]
    for one, other in zip(whole, parts, strict=True):
        assert all(np.array_equal(one.stats[name].hessian, other.stats[name].hessian) for name in one.stats)
        assert all(np.array_equal(one.experts[name].squares, other.experts[name].squares) for name in one.experts)


def test_a_bound_on_memory_changes_the_passes_and_no_byte(moe, tmp_path, monkeypatch):
    passes, made, digests = list[list[int]](), list[dict[str, bytes]](), set[str]()
    real = by_template._passes
    monkeypatch.setattr(by_template, "_passes", lambda *args: (passes.append(some) or some for some in real(*args)))
    for size in (1 << 21, 1 << 30):
        config = config_of("gptq-oc", grid="q4_0", max_memory=size, **TOKENS)
        store = quantize_checkpoint(moe, tmp_path / str(size), config, LLAMA).path
        made.append({path.name: path.read_bytes() for path in store.rglob("*") if path.is_file()})
        digests.add(run_digest(make_job(moe, ModelPlan(config, LLAMA, build_plan(moe.specs, config, LLAMA)))))
    assert passes == [[0], [1], [0, 1]]
    assert made[0] == made[1] and len(digests) == 1


def test_less_memory_than_a_block_needs_is_refused_with_what_it_needs(moe, tmp_path, capsys):
    text = ("--calibration-tokens", "512", "--quiet")
    dense = 2 * HIDDEN * (HIDDEN + SAMPLE)  # qkv, o
    needed = 4 * 4 * (dense + EXPERTS * (HIDDEN**2 + EXPERT_FFN**2))  # gate with up, down; a quarter is theirs
    for command in ("imatrix", "quantize"):
        asked = [command, str(moe.path), "--out", str(tmp_path / command), *text]
        assert main([*asked, "--max-memory", f"{needed - 1}B"]) == 2
        assert f"block 0 needs {needed:,} bytes; give --max-memory {needed}B or more" in capsys.readouterr().err
        assert not list(tmp_path.glob(f"*{command}*"))
        assert main([*asked, "--max-memory", f"{needed}B"]) == 0


def test_an_expert_without_tokens_is_rounded_and_said(tmp_path):
    path = make_gguf(tmp_path / "model.gguf", MOE)
    stats = ExpertStats(np.ones((3, 16, 16), np.float32), np.array([100, 1, 0]))
    assert np.array_equal(stats.of(0).hessian, np.ones((16, 16)))
    assert np.array_equal(stats.of(1).hessian, np.eye(16))
    assert np.array_equal(stats.of(2).hessian, np.eye(16))
    (line,) = stats.rank_poor("w")
    assert line.startswith("w: 2 of 3 experts saw fewer than 2 tokens (the first is 1), 1 none")
    source = open_checkpoint(path)
    store = quantize_checkpoint(
        source, tmp_path / "store", config_of("gptq-oc", bits=4, token_weight="unit", calibration_tokens=512), LLAMA
    )
    record = store.records[DOWN]
    assert (record.chunks, record.shape[0], record.axis) == (EXPERTS, EXPERTS, Axis.PER_OC)


def test_an_importance_matrix_knows_experts(moe, tmp_path):
    path = tmp_path / "imatrix.gguf"
    make_imatrix(moe, path, config_of("rtn-oc", calibration_tokens=1024).data)
    entry = read_imatrix(path).entries[DOWN.replace("model.layers", "blk")]
    assert entry.tokens.sum() == 2 * 1024
    store = quantize_checkpoint(moe, tmp_path / "store", config_of("search-oc", bits=4, imatrix=path), LLAMA)
    assert store.records[DOWN].rounder
    assert [check for check in verify(write_gguf(store, tmp_path / "o.gguf"), moe, store) if not check.ok] == []


def test_what_stays_floats_is_said(moe, tmp_path):
    store = quantize_checkpoint(moe, tmp_path / "store", config_of("rtn-oc", bits=4), LLAMA)
    assert f"model.layers.*.ffn_gate_inp.weight: {LAYERS} kept as floats: a router" in store.header["notes"]


def test_what_nothing_multiplies_stays_as_it_is(tmp_path):
    """A factor of rotary frequencies is looked at, and no matrix of products."""
    source = open_checkpoint(make_gguf(tmp_path / "model.gguf", MOE, "F32"))
    router = "model.layers.0.ffn_gate_inp.weight"
    assert source.specs[router].kept == "a router"  # told by its size, where all are float32
    assert not source.specs[DOWN].kept


def test_texts_go_through_llama_cpp(source):
    ids = tokenize("The quick brown fox", source)
    assert "quick brown" in detokenize(ids.tolist(), source)


REFUSED = {
    "gradients": ({"token_weight": "gradient"}, "token_weight.*runs in llama.cpp, which gives no gradients"),
    "learned codes": ({**TOKENS, "block_steps": 2}, "no gradients; give block_steps=0"),
    "tuned floats": ({**TOKENS, "tune_steps": 2}, "tune_steps.*give tune_steps=0"),
    "scopes": ({**TOKENS, "selection": "scope"}, "selection.*drop selection"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_tell_is_refused_before_any_work(case, moe, tmp_path):
    options, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        quantize_checkpoint(moe, tmp_path / "store", config_of("gptq-oc", **options), LLAMA)
    assert not list(tmp_path.iterdir())


def test_transforms_are_left_out_by_name_where_no_basis_may_change(moe, tmp_path):
    config = config_of("rtn-oc", allow_fallback=True, transforms=("ffn-order",), **TOKENS)
    store = quantize_checkpoint(moe, tmp_path / "store", config, LLAMA)
    assert "no transforms: where a block of qwen3moe may change its basis is not known" in store.header["notes"]
    assert set(store.header["transforms"]["ffn-order"]) == {"0"}


def test_no_size_is_met_without_gradients(moe):
    with pytest.raises(ConfigError, match="gives no gradients to choose grids by; give grid"):
        measure_sensitivity(Measured(moe), config_of("gptq-oc"), LLAMA)


def test_there_is_no_onnx_graph_of_it(moe):
    with pytest.raises(ExportError, match="no ONNX graph of qwen3moe"):
        WRITERS["onnx"].check(moe, None)


def without(name: str):
    return lambda tensors: tensors.pop(name)


BROKEN = {
    "a tensor is missing": (
        "gemma3",
        without("blk.1.ffn_up.weight"),
        "llama.cpp refuses it .*blk.1.ffn_up.weight.*newer llama.cpp",
    ),
    "no embedding": ("gemma3", without("token_embd.weight"), "the embedding 0 rows"),
    "an embedding of another width": (
        "gemma3",
        lambda tensors: tensors.update({"token_embd.weight": np.ones((320, 96), np.float32)}),
        "token_embd.weight is missing or not 64 wide",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_llama_cpp_does_not_run_is_one_line(case, tmp_path):
    arch, change, words = BROKEN[case]
    with pytest.raises(CheckpointError, match=words) as raised:
        open_checkpoint(make_gguf(tmp_path / "model.gguf", arch, change=change)).specs  # noqa: B018
    assert "\n" not in str(raised.value)


def rewritten(path: Path, change) -> Path:
    """The file with other metadata."""
    data = path.read_bytes()
    header = parse_header(data)
    metadata = dict(header.metadata)
    change(metadata)
    path.write_bytes(encode_header(metadata, list(header.tensors.values())) + data[header.data_start :])
    return path


def text(value: str) -> Value:
    return Value.encode(ValueType.STRING, value)


LIES = {
    "unknown architecture": (lambda m: m.update({"general.architecture": text("nosuch")}), "nosuch.embedding_length|unknown"),
    "no block count": (lambda m: m.pop("gemma3.block_count"), "block_count"),
    "sees what is to come": (
        lambda m: m.update({"gemma3.attention.causal": Value.encode(ValueType.BOOL, False)}),
        "looks at what is to come",
    ),
    "too few tokens": (
        lambda m: m.update({"tokenizer.ggml.tokens": Value.encode_array(ValueType.STRING, ["a", "b"])}),
        "entries",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_the_metadata_is_one_line(lie, tmp_path):
    change, words = LIES[lie]
    path = rewritten(make_gguf(tmp_path / "model.gguf", "gemma3"), change)
    with pytest.raises(AdaDimError, match=words) as raised:
        open_checkpoint(path).specs  # noqa: B018
    assert "\n" not in str(raised.value)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    path = make_gguf(tmp_path / "model.gguf", "gemma3")
    data = path.read_bytes()
    header = parse_header(data)
    twin = "model.layers.0.self_attn.q_proj.weight"  # what a source calls blk.0.attn_q.weight
    infos = [
        TensorInfo(twin, info.type, info.shape, info.offset) if name == "blk.0.attn_k.weight" else info
        for name, info in header.tensors.items()
    ]
    path.write_bytes(encode_header(header.metadata, infos) + data[header.data_start :])
    with pytest.raises(CheckpointError, match="cannot be told from"):
        open_checkpoint(path)


def test_a_changed_byte_is_seen(moe, tmp_path):
    store = quantize_checkpoint(moe, tmp_path / "store", config_of("rtn-oc", bits=4), LLAMA)
    out = write_gguf(store, tmp_path / "out.gguf")
    header = parse_header(out.read_bytes())
    data = bytearray(out.read_bytes())
    data[header.data_start + header.tensors["blk.1.ffn_down_exps.weight"].offset + 700] ^= 0x40
    out.write_bytes(data)
    missed = {check.name for check in verify(out, moe, store) if not check.ok}
    assert "codes = store's" in missed or "scale = store's" in missed


def test_the_store_says_what_was_quantized(moe, tmp_path):
    store = quantize_checkpoint(moe, tmp_path / "store", config_of("rtn-oc", bits=4), LLAMA)
    assert "config.json" not in store.asset_names()
    assert (store.config.model_type, store.config.num_layers, store.config.hidden_size) == (MOE, LAYERS, HIDDEN)
    plan = json.loads((tmp_path / "store/plan.json").read_bytes())
    assert next(item["shape"] for item in plan["tensors"] if item["name"] == DOWN) == list(moe.specs[DOWN].shape)


def test_products_that_share_an_input_have_one_site(moe):
    products = {product.weight: product for product in find_products(moe.path, parse_header(moe.path.read_bytes()).tensors)}
    sites = [products[f"blk.0.attn_{part}.weight"].site for part in "qkv"]
    assert len(set(sites)) == 1
    assert products["blk.0.ffn_gate_exps.weight"].experts == EXPERTS
    assert products["blk.0.attn_output.weight"].site not in sites


def test_the_helper_encodes_what_gguf_py_reads(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(
        encode({"general.architecture": text("x")}, {"a.weight": np.arange(64, dtype=np.float32).reshape(2, 32)}, "F32")
    )
    assert GGUFReader(path).tensors[0].data.tolist() == np.arange(64).reshape(2, 32).tolist()

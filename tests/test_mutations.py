"""Every reader under seeded changes of valid inputs: exit code 0, 1 or 2, one clean line at most, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import onnx
import pytest

from exporter.cli.main import main
from exporter.onnx.file import write_onnx
from exporter.targets import TARGETS
from quantize import QuantizeConfig, open_checkpoint, quantize_checkpoint
from quantize.errors import AdaDimError
from quantize.planning.plan import build_plan
from quantize.store.tensors import QuantizedStore
from runtime_checks.checks.onnx_check import check_onnx
from runtime_checks.reference.decode import DamagedFileError
from runtime_checks.reference.onnx import read_onnx
from runtime_checks.reference.onnx_sum import whole_weights
from runtime_checks.report.data import Paths, read_inputs
from tests.cases import config_of
from tests.exporter.bundles import reseal
from tests.mutations import mutate_bytes, mutate_json
from tests.runtime_checks.reports import check, comparison, measured, row
from tests.tiny import make_tiny_model

TRIES = 40
LONGEST = 2000


@dataclass(frozen=True)
class Base:
    """Valid inputs, small."""

    folder: Path

    def copy(self, name: str, to: Path) -> Path:
        """To be changed: files are links until they are replaced."""
        shutil.rmtree(to / name, ignore_errors=True)
        return Path(shutil.copytree(self.folder / name, to / name, copy_function=os.link))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    folder = tmp_path_factory.mktemp("mutations")
    sizes = {"hidden": 32, "heads": 2, "kv_heads": 1, "ffn": 32, "layers": 1}
    source = open_checkpoint(make_tiny_model(folder / "model", **sizes))
    config = config_of(method="rtn-oc", group_size=32, float_columns=2, calibration_tokens=512)
    store = quantize_checkpoint(source, folder / "store", config, TARGETS["onnxruntime"])
    write_onnx(store, folder / "onnx")
    assert main(["bundle", str(folder / "onnx"), "--platform", "web", "--out", str(folder / "bundle"), "--quiet"]) == 0
    rule = '[[rule]]\nmatch = "*.mlp.*"\nbits = 8\nmethod = "rtn-oc"\n\n[[rule]]\nmatch = "*.q_proj"\ngroup_size = 32\n'
    (folder / "recipe.toml").write_text(rule)
    return Base(folder)


def replace(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def json_or_bytes(data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng) if rng.random() < 0.8 else mutate_bytes(data, rng)


def command(*words: object) -> int:
    return main(
        [*map(str, words), *(["--quiet"] if words[0] in ("bundle", "report", "quantize") and words[1] != "verify" else [])]
    )


def refused(read: Callable[[], object]) -> int:
    """The exit code of a command that would do no more; an error is printed as it does."""
    try:
        read()
    except (AdaDimError, DamagedFileError) as error:
        print(f"adadim: error: {AdaDimError(str(error))}", file=sys.stderr)
        return 2
    return 0


def plan(base: Base, work: Path, rng: Random) -> int:
    store = base.copy("store", work)
    replace(store / "plan.json", json_or_bytes((store / "plan.json").read_bytes(), rng))
    return command("inspect", store) or command("export", "onnx", store, "--out", work / "out", "--force", "--quiet")


def tensors(base: Base, work: Path, rng: Random) -> int:
    store = base.copy("store", work)
    path = rng.choice(sorted((store / "tensors").iterdir()))
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.5:
        head = mutate_json(data[8:size], rng)
        replace(path, len(head).to_bytes(8, "little") + head + data[size:])
    else:
        replace(path, mutate_bytes(data, rng, size))
    found = QuantizedStore(store)
    return refused(lambda: [found.read(name) for name in found.records])


def recipe(base: Base, work: Path, rng: Random) -> int:
    words = (
        *("bits = 1e999", "bits = inf", "[[rule]]", "rule = 3", "[rule.x]", 'match = "[!"', 'grid = "../x"'),
        "symmetric = 1",
    )
    lines = (base.folder / "recipe.toml").read_text().split("\n")
    lines.insert(rng.randrange(len(lines) + 1), rng.choice((*words, "x = " + "[" * 3000, "a" + ".a" * 1500 + " = 1")))
    data = "\n".join(lines).encode()
    replace(work / "recipe.toml", data if rng.random() < 0.6 else mutate_bytes(data, rng))
    specs = open_checkpoint(base.folder / "model").specs
    config = QuantizeConfig(method="rtn-oc", recipe=work / "recipe.toml")
    return refused(lambda: build_plan(specs, config, TARGETS["onnxruntime"]))


def mutate_onnx(data: bytes, rng: Random) -> bytes:
    """One to three fields of the graph changed, or bytes at random."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 3))):
        node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
        match rng.randrange(10):
            case 0 if any(item.type == onnx.AttributeProto.INT for item in node.attribute):
                item = rng.choice([item for item in node.attribute if item.type == onnx.AttributeProto.INT])
                item.i = rng.choice((0, -1, 1, 3, 16, 2**31, 2**62, item.i + 1))
            case 1 if node.attribute:
                item = rng.choice(node.attribute)
                node.attribute.remove(item)
                node.attribute.append(onnx.helper.make_attribute(item.name, rng.choice((1.5, "x", [1, 2], 7))))
            case 2 if tensor.external_data:
                entry = rng.choice(tensor.external_data)
                entry.value = rng.choice(("-1", "0", "9" * 30, "x", "", "../x", "/dev/zero", "model.onnx", ".", "\u0660"))
            case 3 if tensor.external_data:
                del tensor.external_data[rng.randrange(len(tensor.external_data))]
            case 4:
                tensor.dims[:] = [rng.choice((*tensor.dims, 0, -1, 2**31, 2**62)) for _ in range(rng.randrange(4))]
            case 5:
                tensor.data_type = rng.choice((0, 1, 2, 7, 8, 10, 16, 21, 22, 99))
            case 6:
                node.op_type = rng.choice(("MatMulNBits", "GatherBlockQuantized", "MatMulAdaDim", "MatMulLevels", "Identity", ""))
            case 7 if node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice(("", "x", tensor.name, node.output[0]))
            case 8:
                entry = rng.choice(model.metadata_props)
                entry.value = rng.choice(("", "{", "[]", "null", "99", '[{"name": "x"}]', "[" * 2000, "\x1b[31m"))
            case _:
                rng.choice((node, tensor)).name = rng.choice(
                    ("", "/", "x/y", "a.weight", "model.norm.part1.weight", "\x1b[31m\u202e", "x" * 10**5)
                )
    return model.SerializeToString()


def changed_onnx(base: Base, work: Path, rng: Random) -> Path:
    folder = base.copy("onnx", work)
    replace(folder / "model.onnx", mutate_onnx((folder / "model.onnx").read_bytes(), rng))
    if rng.random() < 0.1:
        replace(folder / "model.onnx.data", mutate_bytes((folder / "model.onnx.data").read_bytes(), rng))
    return folder


def onnx_inspect(base: Base, work: Path, rng: Random) -> int:
    return command("inspect", changed_onnx(base, work, rng))


def onnx_bundle(base: Base, work: Path, rng: Random) -> int:
    return command("bundle", changed_onnx(base, work, rng), "--platform", "web", "--out", work / "out", "--force")


def onnx_checks(base: Base, work: Path, rng: Random) -> int:
    """Our readers and the runtime; an error is printed as the command does."""
    folder = changed_onnx(base, work, rng)
    return refused(lambda: check_onnx(folder))


def onnx_reference(base: Base, work: Path, rng: Random) -> int:
    """The second opinion alone: it stands behind nobody's checks."""
    try:
        for weight in whole_weights(read_onnx(changed_onnx(base, work, rng))).values():
            weight.whole(weight.first.decode())
    except DamagedFileError:
        return 2
    return 0


def genai(base: Base, work: Path, rng: Random) -> int:
    folder = base.copy("onnx", work)
    replace(folder / "genai_config.json", json_or_bytes((folder / "genai_config.json").read_bytes(), rng))
    return command("bundle", folder, "--platform", "web", "--out", work / "out", "--force")


def evaluation(base: Base, work: Path, rng: Random) -> int:
    size = sum((base.folder / "onnx" / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    replace(work / "eval.json", json_or_bytes(json.dumps(measured(size, 0.1)).encode(), rng))
    words = ("bundle", base.folder / "onnx", "--platform", "web", "--out", work / "out", "--force")
    return command(*words, "--eval", work / "eval.json")


def manifest(base: Base, work: Path, rng: Random) -> int:
    folder = base.copy("bundle", work)
    name = rng.choice(("manifest.json", "manifest.json", "SHA256SUMS"))
    data = (folder / name).read_bytes()
    replace(folder / name, json_or_bytes(data, rng) if name == "manifest.json" else mutate_bytes(data, rng))
    if name == "manifest.json" and rng.random() < 0.7:
        (folder / "SHA256SUMS").unlink()  # it is a link to the valid one
        reseal(folder)
    return command("bundle", "verify", folder)


def report(base: Base, work: Path, rng: Random) -> int:
    compared = comparison(row("a.gguf", 5, 0.1), row("b.gguf", 6, 0.2), {"name": "c", "error": "no"})
    verified = {"ok": False, "checks": [check("c", False)]}
    which, content = rng.choice((("--compare", compared), ("--verify", verified), ("--eval", measured(5, 0.1))))
    replace(work / "in.json", json_or_bytes(json.dumps(content).encode(), rng))
    given = work / "in.json" if which == "--compare" else f"x.gguf={work / 'in.json'}"
    path = work / "in.json"
    kind = {"--compare": "comparisons", "--verify": "verifications", "--eval": "evaluations"}[which]
    if rng.random() < 0.9:  # a page takes a second to draw
        return refused(lambda: read_inputs(Paths(**{kind: [path if which == "--compare" else ("x.gguf", path)]})))
    return command("report", which, given, "--out", work / "r.html", "--force")


READERS: tuple[Callable[[Base, Path, Random], int], ...] = (
    *(plan, tensors, recipe, onnx_inspect, onnx_bundle, onnx_checks, onnx_reference, genai, evaluation, manifest, report),
)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_every_change_ends_in_one_clean_line(reader, base, tmp_path, capfd):
    codes = set[int]()
    for index in range(TRIES):
        code = reader(base, tmp_path, Random(f"{reader.__name__} {index}"))
        said = capfd.readouterr().err
        assert code in (0, 1, 2), (index, code)
        assert ("\n" not in said.rstrip("\n") and len(said) < LONGEST and said.rstrip("\n").isprintable()) or not said, (
            index,
            said,
        )
        assert bool(said) == (code == 2) or reader in (manifest, onnx_reference), (index, code, said)
        codes.add(code)
    assert codes - {0}  # the changes reach what is read

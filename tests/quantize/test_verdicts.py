"""What is remembered of makers' graphs, and when it is not believed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quantize.errors import NoGraphError
from quantize.template import onnx_convert, verdicts
from quantize.template.onnx_convert import OF_EXPERTS, PRODUCERS, convert_onnx
from quantize.template.verdicts import Verdicts
from tests.any_model import make_model


@pytest.fixture
def model(kept) -> Path:
    """Of which the last maker's graph is the first that computes what torch does."""
    return kept.model("gemma3_text")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(verdicts, "home", lambda: tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """What processes of their own were asked."""
    found, ask = list[str](), onnx_convert.ask

    def noting(adapter, request, answer):
        found.append(" ".join([request["action"], *([request["by"]] if "by" in request else [])]))
        return ask(adapter, request, answer)

    monkeypatch.setattr(onnx_convert, "ask", noting)
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_one_that_passed_is_taken_at_once(model, home, asked, tmp_path):
    tried = [by for by in PRODUCERS if by != OF_EXPERTS]  # it has none
    every = ["twin", *(f"build {by}" for by in tried), "build mobius", "logits"]
    assert convert_onnx(model, tmp_path / "first").by == "mobius-onnx"
    assert asked == every
    (held,) = home.iterdir()
    wrong = json.loads(held.read_text())["said"]
    assert list(wrong) == sorted(PRODUCERS) and wrong["mobius"] == "" and wrong["genai"] and wrong["mobius-gqa"]
    asked.clear()
    before = held.read_bytes()
    assert convert_onnx(model, tmp_path / "second").by == "mobius-onnx"
    assert asked == ["build mobius", "logits"]
    assert files(tmp_path / "first") == files(tmp_path / "second")
    asked.clear()
    convert_onnx(model, tmp_path / "second", force=True)
    assert asked == every
    assert files(tmp_path / "first") == files(tmp_path / "second") and [held.read_bytes()] == [*files(home).values()] == [before]


def test_a_refusal_is_given_again_with_what_was_measured(home, asked, tmp_path):
    model = make_model(tmp_path / "model", "cohere")
    said = []
    for _ in range(2):
        with pytest.raises(NoGraphError, match=r"mobius-onnx: logits are 0\.\d+ of the largest apart") as error:
            convert_onnx(model, tmp_path / "onnx")
        said.append(str(error.value))
    assert said[0] == said[1] and len(asked) == 4
    assert "onnxruntime-genai's builder: NotImplementedError" in said[0] and "\n" not in said[0]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["home", "model"]


def test_a_model_that_its_graph_is_not_of_is_refused_though_the_twin_was(kept, model, asked, tmp_path, monkeypatch):
    """The weights of each are compared with torch's, whatever is remembered."""
    kept.onnx("gemma3_text")  # by which it is known
    asked.clear()
    monkeypatch.setattr(onnx_convert, "MISPLACED", 0.0)
    with pytest.raises(NoGraphError, match=r"mobius-onnx: logits are .* apart"):
        convert_onnx(model, tmp_path / "again")
    assert asked == ["build mobius", "logits"]


DAMAGE = {
    "a changed byte": lambda data: data.replace(b"before", b"behind"),
    "cut": lambda data: data[:-9],
    "foreign": lambda data: b'{"sizes": 1}',
    "too much": lambda data: data.replace(b'"said": {', b'"said": {' + b"".join(b'"%d": "", ' % i for i in range(20))),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_as_none_and_made_anew(damage, model, home):
    own = Verdicts(model)
    own.note("genai", "said before")
    whole = own.path.read_bytes()
    assert Verdicts(model).said == {"genai": "said before"}
    damaged = DAMAGE[damage](whole)
    assert damaged != whole
    own.path.write_bytes(damaged)
    again = Verdicts(model)
    assert again.said == {}
    again.note("genai", "said before")
    assert again.path.read_bytes() == whole
    assert Verdicts(model, forget=True).said == {}


def test_it_is_of_one_config_and_of_no_name(model, home, tmp_path):
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    raw = json.loads((copy / "config.json").read_text())

    def path_of(**keys: object) -> Path:
        (copy / "config.json").write_text(json.dumps(raw | keys))
        return Verdicts(copy).path

    assert path_of(_name_or_path="/elsewhere") == Verdicts(model).path != path_of(rms_norm_eps=1e-3)
    assert path_of() == Verdicts(model).path
    (copy / "tokenizer_config.json").write_text("{}")
    assert path_of() != Verdicts(model).path


def test_where_nothing_can_be_written_nothing_is_remembered(model, home):
    home.write_text("a file")
    Verdicts(model).note("genai", "")
    assert Verdicts(model).said == {} and home.read_text() == "a file"

"""``adadim run`` of several sizes or widths: files from one set of statistics, verified, measured, a report beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.cli import run as cli_run
from exporter.cli.main import main
from quantize.planning import sensitivity
from tests.tiny import TEXT, make_tiny_model

QUICK = ("--calibration-tokens", "512", "--chunks", "1", "--quiet")


def run(*args: object) -> int:
    return main(["run", *map(str, args)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("ladder") / "qwen", "qwen3", hidden=128, ffn=256)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails here fails before the source is run."""
    monkeypatch.setattr(sensitivity, "measure_sensitivity", None)


def sizes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, int]:
    """The smallest file of the model, as the refusal of a smaller one says, and one a fifth larger."""
    assert run(model, "--out", tmp_path / "none", "--sizes", "1kB,2kB", *QUICK) == 2
    least = int(capsys.readouterr().err.split("the smallest takes ")[1].split(":")[0].replace(",", ""))
    return least, least * 6 // 5


def test_sizes(model, tmp_path, capsys, monkeypatch):
    least, more = sizes(model, tmp_path, capsys)
    assert not (tmp_path / "none").exists()
    measured = list[str]()
    measure = sensitivity.measure_sensitivity
    monkeypatch.setattr(sensitivity, "measure_sensitivity", lambda *args: measured.append(args[2].name) or measure(*args))
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 3)
    words = (model, "--out", tmp_path / "out", "--sizes", f"{least}B,{more}B", "--text", text, *QUICK)
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert measured == ["llama.cpp"]
    folder = tmp_path / "out" / "llama.cpp"
    assert {item.name for item in folder.iterdir()} == {f"{least}B", f"{more}B"}
    files = [folder / f"{size}B" / "model.gguf" for size in (least, more)]
    for file, size in zip(files, (least, more), strict=True):
        assert file.stat().st_size <= size
        assert json.loads(file.with_name("verify.json").read_text())["ok"]
        assert f"{file}: ok" in said
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["text"] == "text.txt" and report["chunks"] == 1
    assert [row["name"] for row in report["files"]] == [str(file) for file in files]
    smaller, larger = (row["kld"] for row in report["files"])
    assert larger < smaller
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f"{size}B" in page for size in (least, more))
    assert run(*words) == 0  # what is there is taken, and measured again
    assert "taken as an earlier run of this command left it" in capsys.readouterr().out


def test_widths_of_a_target_that_is_asked_for_and_a_folder_of_its_own(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--target", "onnxruntime+adadim", "--method", "rtn-oc")
    assert run(model, "--bits", "3,4", *options, *QUICK) == 0
    out = Path("qwen-adadim")
    assert {item.name for item in out.iterdir()} == {"onnxruntime+adadim", "compare.json", "report.html"}
    for bits in (3, 4):
        store = json.loads((out / "onnxruntime+adadim" / f"{bits}bit" / "store" / "plan.json").read_text())
        assert store["config"]["bits"] == bits
    assert run(model, "--bits", "4", "--method", "rtn-oc", "--quiet", "--out", "one") == 0
    assert {item.name for item in Path("one").iterdir()} == {"llama.cpp", "onnxruntime"}  # one width is no ladder


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--sizes 1kB,2kB", "no llama.cpp file of 1,000 bytes; the smallest takes "),
        ("--sizes 1kB,2kB", "ask for at least "),
        ("--sizes 1kB,", "argument --sizes: '' is no size; give a number"),
        ("--sizes 1MB,1000kB", "argument --sizes: '1MB,1000kB' names one twice"),
        (
            "--sizes 1MB,2MB --bits 4",
            "--sizes: says already how large the files are; drop --target-size, --target-bpw and --bits",
        ),
        ("--sizes 1MB,2MB --target-size 1MB", "not allowed with argument --sizes"),
        ("--bits 3,7", "argument --bits: '3,7': choose among 2, 3, 4, 5, 8, or a fraction as 2.5, with commas between them"),
        ("--bits 4,4", "argument --bits: '4,4' names one twice"),
        ("--bits 4,5 --target onnxruntime", "--bits 5: the int grid stores 2, 3, 4, 8 bits"),
        ("--bits 4 --text none.txt", "--text, --chunks: measure a ladder; ask for some with"),
        ("--bits 4,5 --text none.txt", "none.txt: cannot be read"),
    ],
)
def test_what_no_ladder_can_be_made_of(model, unmeasured, tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    try:
        code = run(model, *words.split(), "--calibration-tokens", "512")
    except SystemExit as stop:
        code = stop.code
    line, rest = capsys.readouterr().err.split("\n", 1)
    assert code == 2 and part in line and not rest
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_said_before_the_work(model, unmeasured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_run, "free_space", lambda out: 300_000)
    for words in (("--bits", "4,5,8", "--method", "rtn-oc"), ("--sizes", "300kB,400kB,500kB")):
        assert run(model, "--out", tmp_path / "out", *words) == 2
        line = capsys.readouterr().err
        assert f"{tmp_path / 'out'}: 3 stores and files take about 2 MB, and 0 MB are free; free some, or ask for less" in line
        assert not (tmp_path / "out").exists()


def test_a_page_of_somebody_else_is_not_replaced(model, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("<p>mine")
    assert run(model, "--out", out, "--bits", "4,5", "--method", "rtn-oc", *QUICK) == 2
    assert "report.html: is there, and no page of" in capsys.readouterr().err
    assert [item.name for item in out.iterdir()] == ["report.html"]

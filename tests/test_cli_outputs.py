"""Where reports and models go: files of others, pipes, links, home folders, streams of any encoding, signals, ended runs."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.cli import main as cli
from exporter.cli.main import main
from quantize.statistics import calibration
from quantize.store.outputs import Unfinished
from tests.stores import reseal
from tests.tiny import TEXT, make_tiny_model

RTN = ("--method", "rtn-oc", "--quiet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its stores and files, and texts."""
    folder = tmp_path_factory.mktemp("made")
    make_tiny_model(folder / "model")
    for target, store in (("llama.cpp", "store"), ("onnxruntime", "store_onnx")):
        assert run("quantize", folder / "model", "--out", folder / store, "--target", target, *RTN) == 0
    assert run("export", "gguf", folder / "store", "--out", folder / "m.gguf", "--quiet") == 0
    assert run("export", "onnx", folder / "store_onnx", "--out", folder / "onnx", "--quiet") == 0
    (folder / "text.txt").write_text(TEXT * 3)
    return folder


def run(*args: object) -> int:
    try:
        return main([str(arg) for arg in args])
    except SystemExit as stop:
        return int(stop.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line of a command that is refused before it says anything else."""
    capsys.readouterr()
    assert run(*args) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def reporting(made: Path, command: str, place: object) -> list[object]:
    """A command that writes a report to a place."""
    measured = ("--text", made / "text.txt", "--chunks", "1", "--context", "64", "--source", made / "model", "--quiet")
    return {
        "verify": ["verify", made / "m.gguf", "--source", made / "model", "--quiet", "--json", place],
        "eval": ["eval", made / "m.gguf", *measured, "--json", place],
        "compare": ["compare", made / "m.gguf", "--quiet", "--json", place],
        "compare page": ["compare", made / "m.gguf", "--quiet", "--html", place],
        "report": ["report", made / "m.gguf", "--out", place],
        "bench": ["bench", "kernel", "--json", place],
        "sensitivity": ["sensitivity", made / "model", "--out", place, "--quiet"],
        "imatrix": ["imatrix", made / "model", "--out", place, "--quiet"],
        "gguf": ["export", "gguf", made / "store", "--out", place, "--quiet"],
    }[command]


REPORTS = ("verify", "eval", "compare", "compare page", "report", "bench", "sensitivity", "imatrix", "gguf")
REPEATED = ("verify", "compare", "compare page")
OTHERS = {
    "a text": b"my only copy",
    "a config": b'{"model_type": "llama"}',
    "a list": b"[1, 2]",
    "another page": b"<!doctype html>\n<title>mine</title>",
    "bytes": b"\xff\xfe\0",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("command", REPORTS)
@pytest.mark.parametrize("other", OTHERS)
def test_a_file_that_is_no_report_is_not_replaced(made, tmp_path, capsys, command, other):
    (tmp_path / "file").write_bytes(OTHERS[other])
    line = refused(capsys, *reporting(made, command, tmp_path / "file"))
    assert str(tmp_path / "file") in line
    assert "--force" in line
    assert (tmp_path / "file").read_bytes() == OTHERS[other]


@pytest.mark.parametrize("command", REPORTS)
@pytest.mark.parametrize("place", ["folder", "file/inside", "~"])
def test_a_place_that_cannot_be_written_is_said_before_the_work(made, tmp_path, monkeypatch, capsys, command, place):
    monkeypatch.setenv("HOME", str(tmp_path / "folder"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    refused(capsys, *reporting(made, command, place if place == "~" else tmp_path / place))
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize("command", REPEATED)
def test_a_command_replaces_its_own_report_and_nothing_with_force_else(made, tmp_path, command):
    for _ in range(2):
        assert run(*reporting(made, command, tmp_path / "report")) == 0
    (tmp_path / "report").write_bytes(b"mine")
    assert run(*reporting(made, command, tmp_path / "report"), "--force") == 0
    assert (tmp_path / "report").stat().st_size > 10
    (tmp_path / "empty").touch()  # as mktemp makes one
    assert run(*reporting(made, command, tmp_path / "empty")) == 0
    other = "eval" if command == "verify" else "verify"
    assert run(*reporting(made, other, tmp_path / "report")) == 2


@pytest.mark.parametrize("command", [name for name in REPORTS if name not in ("bench", "sensitivity")])
def test_a_pipe_gets_the_report_and_stays_one(made, tmp_path, command):
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    assert run(*reporting(made, command, tmp_path / "pipe")) == 0
    reader.join(10)
    assert got
    assert got[0][:1] in (b"{", b"<", b"G")
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_a_link_to_a_report_stays_one(made, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "report")
    for _ in range(2):
        assert run(*reporting(made, "verify", tmp_path / "link")) == 0
        assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "disk" / "report").read_bytes())["ok"] is True


HOMES = [
    "quantize {made}/model --out=~/x --method rtn-oc --quiet",
    "export gguf {made}/store --out=~/x --quiet",
    "export gguf ~/store --out=~/x --quiet",
    "verify {made}/m.gguf --source {made}/model --json=~/x --quiet",
    "verify ~/m.gguf --source=~/model --json=~/x --quiet",
    "compare {made}/m.gguf --json=~/x --quiet",
    "eval {made}/m.gguf --source {made}/model --text=~/text.txt --chunks 1 --context 64 --json=~/x --quiet",
    "report {made}/m.gguf --out=~/x",
    "bundle {made}/m.gguf --platform web --out=~/x --quiet",
]


@pytest.mark.parametrize("words", HOMES)
def test_a_tilde_after_an_equals_sign_is_the_home_folder(made, tmp_path, monkeypatch, words):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    home.mkdir()
    for name in ("store", "model", "m.gguf", "text.txt"):
        (home / name).symlink_to(made / name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    assert run(*words.format(made=made).split()) == 0
    assert (home / "x").exists()
    assert list(here.iterdir()) == []


def test_an_empty_word_names_no_file(made, capsys):
    assert "'' names no file" in refused(capsys, "export", "gguf", made / "store", "--out=")


@pytest.mark.usefixtures("hangup_is_not_ignored")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_an_error_does(tmp_path, monkeypatch, capsys, number):
    def work(_: object) -> int:
        with Unfinished(tmp_path / "deep" / "out", folder=True) as unfinished:
            (unfinished.path / "part").touch()
            os.kill(os.getpid(), number)
            raise AssertionError("not ended")

    monkeypatch.setitem(cli.COMMANDS, "doctor", work)
    assert run("doctor") == 128 + number
    assert capsys.readouterr() == ("", "adadim: terminated\n")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "doctor", lambda _: os.kill(os.getpid(), signal.SIGHUP) or 7)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("doctor") == 7
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def stdout(stream: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_no_encoding_of_the_terminal_loses_a_report(made, tmp_path, monkeypatch, encoding):
    name = tmp_path / ("é日本" + os.fsdecode(b"\xe9") + ".gguf")
    shutil.copy(made / "m.gguf", name)
    out = io.BytesIO()
    with stdout(io.TextIOWrapper(out, encoding), monkeypatch):
        assert run("verify", name, "--source", made / "model", "--json", tmp_path / "verify.json", "--quiet") == 0
        assert run("inspect", name) == 0
        assert run("compare", name, "--json", tmp_path / "compare.json", "--html", tmp_path / "page.html", "--quiet") == 0
        said = out.getvalue().decode(encoding)
    assert "\\udce9.gguf" in said
    assert json.loads((tmp_path / "compare.json").read_bytes())["files"][0]["name"].endswith("é日本\\xe9.gguf")
    assert json.loads((tmp_path / "verify.json").read_bytes())["ok"] is True


TAKEN = {
    "verify {made}/m.gguf --source {made}/model --json report --quiet": "report",
    "compare {made}/m.gguf --json report --html page --quiet": "page",
    "inspect {made}/m.gguf --json": None,
    "--help": None,
    "--version": None,
    "completion bash": None,
    "bundle verify {made}/b": None,
}


@pytest.mark.parametrize("ends", [0, 2])
@pytest.mark.parametrize("words", TAKEN)
def test_a_stream_that_takes_nothing(made, tmp_path, monkeypatch, capsys, words, ends):
    """A pipe that nobody reads is no error; a full disk is one, in one line. The report is there all the same."""
    monkeypatch.chdir(tmp_path)
    if "bundle" in words and not (made / "b").exists():
        assert run("bundle", made / "m.gguf", "--platform", "web", "--out", made / "b", "--quiet") == 0
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed, Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full if ends else closed)
        assert run(*words.format(made=made).split()) == ends
        monkeypatch.undo()
    said = capsys.readouterr().err
    assert said.count("\n") == (1 if ends else 0)
    assert not ends or "standard output: cannot be written (No space left on device)" in said
    assert TAKEN[words] is None or (tmp_path / TAKEN[words]).stat().st_size > 100


@pytest.mark.parametrize(
    ("redirection", "code"),
    [("| head -c 1 >&2", 0), (">&- 2>&-", 0), (">/dev/full 2>/dev/full", 2), ("<&- >/dev/null", 0)],
)
def test_the_process_itself_ends_as_it_should(redirection, code):
    ours = "import sys; from exporter.cli.main import main; sys.exit(main())"
    script = f'"$0" -c "{ours}" --help {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", script, sys.executable], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (code, "u" if "head" in redirection else "")


def test_libraries_warnings_are_not_shown_by_the_command(tmp_path):
    code = (
        "import sys, warnings; from exporter.cli import main as cli\n"
        "def work(_):\n"
        "    import numpy; numpy.float32(3e38) * numpy.float32(10); warnings.warn('of a library'); return 0\n"
        "cli.COMMANDS['doctor'] = work; sys.argv[1:] = ['doctor']; sys.exit(cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=False)
    assert "of a library" in done.stderr


@contextmanager
def piped(text: bytes) -> Iterator[str]:
    """The name of a pipe's end, as a shell gives it for <(...)."""
    read, write = os.pipe()

    def feed() -> None:
        with os.fdopen(write, "wb") as file:
            file.write(text)

    writer = threading.Thread(target=feed)
    writer.start()
    try:
        yield f"/dev/fd/{read}"
    finally:
        os.close(read)
        writer.join(10)


def test_a_text_from_a_pipe_is_read_once_for_all_targets_and_for_tuning(made, tmp_path):
    text = ("--method", "gptq-oc", "--token-weight", "unit", "--calibration-tokens", "512", "--tune-steps", "2", "--quiet")
    with piped((TEXT * 30).encode()) as name:
        assert run("run", made / "model", "--out", tmp_path / "out", *text, "--calibration", name) == 0
    plans = [tmp_path / "out" / each / "store" / "plan.json" for each in ("llama.cpp", "onnxruntime")]
    headers = [json.loads(plan.read_bytes()) for plan in plans]
    assert headers[0]["calibration"]["sha256"] == headers[1]["calibration"]["sha256"]
    assert headers[0]["calibration"]["text"] == Path(name).name


def test_an_evaluation_text_from_a_pipe(made, tmp_path):
    with piped(TEXT.encode()) as name:
        words = reporting(made, "eval", tmp_path / "report")
        words[words.index("--text") + 1] = name
        assert run(*words) == 0


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/null", "a file", "a pipe"])
def test_a_text_without_end_is_refused(made, tmp_path, monkeypatch, capsys, source):
    monkeypatch.setattr(calibration, "LONGEST", 5000)
    (tmp_path / "long").write_bytes(b"x" * 5001)
    words = ("quantize", made / "model", "--out", tmp_path / "store", "--quiet", "--calibration")
    with piped(b"x" * 5001) as pipe:
        line = refused(capsys, *words, {"a file": tmp_path / "long", "a pipe": pipe}.get(source, source))
    assert ("is a device" if "dev" in source else "more than 5,000 bytes") in line
    assert not (tmp_path / "store").exists()


PARTS = [
    "verify {} --source {made}/model",
    "eval {} --source {made}/model",
    "compare {}",
    "inspect {}",
    "bundle {} --platform web --out {tmp}/b",
]


@pytest.mark.parametrize("command", PARTS)
@pytest.mark.parametrize("part", ["model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"])
def test_a_file_of_a_folder_is_not_the_folder(made, tmp_path, capsys, command, part):
    line = refused(capsys, *command.format(made / "onnx" / part, made=made, tmp=tmp_path).split())
    assert f"is a file of an ONNX folder; name the folder: {made / 'onnx'}" in line


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("export gguf {} --out {tmp}/m", "store/plan.json"),
        ("inspect {}", "store/plan.json"),
        ("quantize {} --out {tmp}/s", "model/config.json"),
    ],
)
def test_nor_is_a_file_of_a_store_or_a_model(made, tmp_path, capsys, command, part):
    line = refused(capsys, *command.format(made / part, tmp=tmp_path).split())
    assert f"name the folder: {(made / part).parent}" in line


def test_a_context_that_is_cut_is_said(made, tmp_path, capsys):
    cut = "512 tokens, all that the model holds: --context 131072 is cut"
    words = ("export", "onnx", made / "store_onnx", "--quiet")
    assert run(*words, "--out", tmp_path / "a", "--context", 131072) == 0
    assert cut in capsys.readouterr().out
    assert run(*words, "--out", tmp_path / "b", "--context", 128) == 0
    assert run(*words, "--out", tmp_path / "c") == 0
    out = capsys.readouterr().out
    assert "128 tokens\n" in out
    assert "is cut" not in out


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def ran(made: Path) -> Path:
    """What ``run`` makes, to be copied."""
    assert run("run", made / "model", "--out", made / "ran", *RTN) == 0
    return made / "ran"


def test_run_goes_on_where_an_earlier_run_was_ended(made, ran, tmp_path, capsys):
    words = ("run", made / "model", "--out", tmp_path / "out", *RTN)
    shutil.copytree(ran, tmp_path / "out")
    whole = files(tmp_path / "out")
    for lost in ("onnxruntime", "onnxruntime/verify.json", "llama.cpp/verify.json llama.cpp/model.gguf", "llama.cpp", ""):
        for name in lost.split():
            path = tmp_path / "out" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
        capsys.readouterr()
        assert run(*words) == 0
        assert "taken as an earlier run of this command left it" in capsys.readouterr().out
        assert files(tmp_path / "out") == whole
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def planned(**keys: object) -> Callable[[Path], None]:
    """Keys of plan.json that say something else."""

    def change(out: Path) -> None:
        path = out / "llama.cpp/store/plan.json"
        plan = json.loads(path.read_bytes())
        seal = plan.pop("sha256")
        path.write_text(json.dumps(plan | keys | {"sha256": seal}, indent=1) + "\n")
        reseal(path)

    return change


def without_a_tensor(out: Path) -> None:
    plan = json.loads((out / "llama.cpp/store/plan.json").read_bytes())
    planned(tensors=plan["tensors"][:-1])(out)


def asked(**keys: object) -> Callable[[Path], None]:
    return lambda out: planned(config=json.loads((out / "llama.cpp/store/plan.json").read_bytes())["config"] | keys)(out)


CHANGED = {
    "options": ("llama.cpp/store", ("--bits", "8"), None),
    "version": ("llama.cpp/store", (), planned(version="9.9")),
    "target": ("llama.cpp/store", (), planned(target="gguf-adadim")),
    "row order": ("llama.cpp/store", (), planned(row_order="hf")),
    "source": ("llama.cpp/store", (), planned(source={"name": "model", "sha256": "0" * 64})),
    "seed": ("llama.cpp/store", (), asked(seed=7)),
    "an imatrix": ("llama.cpp/store", (), planned(imatrix={"name": "i.gguf", "sha256": "0" * 64, "datasets": [], "chunks": 1})),
    "a budget": ("llama.cpp/store", (), planned(budget={"target_bytes": 1, "bytes": 1, "predicted_kl": 0.0})),
    "a text": ("llama.cpp/store", (), planned(calibration={"text": "t", "sha256": "0" * 64, "tokens": 0, "sequence": 0})),
    "a tensor": ("llama.cpp/store", (), without_a_tensor),
    "a file": ("llama.cpp/model.gguf", (), lambda out: flip(out / "llama.cpp/model.gguf")),
    "a folder": ("onnxruntime/onnx", (), lambda out: flip(out / "onnxruntime/onnx/model.onnx.data")),
    "a stranger": ("onnxruntime/onnx", (), lambda out: (out / "onnxruntime/onnx/thesis.txt").write_text("mine")),
    "a report": ("llama.cpp/verify.json", (), lambda out: (out / "llama.cpp/verify.json").write_text("mine")),
    "no store": ("llama.cpp/model.gguf", (), lambda out: shutil.rmtree(out / "llama.cpp/store")),
}


@pytest.mark.parametrize("changed", CHANGED)
def test_run_takes_nothing_that_another_command_made(made, ran, tmp_path, capsys, changed):
    where, options, change = CHANGED[changed]
    words = ("run", made / "model", "--out", tmp_path / "out", *RTN)
    shutil.copytree(ran, tmp_path / "out")
    if change is not None:
        change(tmp_path / "out")
    before = files(tmp_path / "out")
    line = refused(capsys, *words, *options)
    assert str(tmp_path / "out" / where) in line
    assert "exists already" in line
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("place", ["onnx/thesis.txt", "verify.json/thesis.txt"])
def test_force_looks_at_every_place_before_any_work(made, ran, tmp_path, capsys, place):
    out = Path(shutil.copytree(ran, tmp_path / "out"))
    thesis = out / "onnxruntime" / place
    if thesis.parent.is_file():
        thesis.parent.unlink()
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("mine")
    before = files(out)
    assert str(thesis.parent) in refused(capsys, "run", made / "model", "--out", out, *RTN, "--force")
    assert files(out) == before


def test_force_makes_all_of_it_again(made, ran, tmp_path):
    out = Path(shutil.copytree(ran, tmp_path / "out"))
    planned(version="9.9")(out)
    flip(out / "llama.cpp/model.gguf")
    (out / "llama.cpp/verify.json").write_text("mine")
    assert run("run", made / "model", "--out", out, "--target", "llama.cpp", *RTN, "--force") == 0
    assert files(out) == files(ran)


@pytest.fixture(scope="module")
def calibrated(made: Path) -> tuple[Path, list[str]]:
    """What ``run`` with a text begins with, and its options."""
    text = ["--calibration", str(made / "text.txt"), "--calibration-tokens", "512", "--token-weight", "unit", "--quiet"]
    options = ["--method", "gptq-oc", "--block-steps", "0", "--tune-steps", "0", *text]
    store = made / "calibrated" / "llama.cpp" / "store"
    assert run("quantize", made / "model", "--out", store, *options) == 0
    return made / "calibrated", ["--target", "llama.cpp", *options]


@pytest.mark.parametrize("key", ["text", "sha256", "tokens", "sequence"])
def test_run_takes_no_store_of_another_text(made, calibrated, tmp_path, capsys, key):
    out = Path(shutil.copytree(calibrated[0], tmp_path / "out"))
    held = json.loads((out / "llama.cpp/store/plan.json").read_bytes())["calibration"]
    (out / "llama.cpp/model.gguf").write_text("mine")  # which is looked at after the store
    for value, refusal in (
        (held[key], "model.gguf"),
        (held[key] + 1 if isinstance(held[key], int) else held[key][::-1], "store"),
    ):
        planned(calibration=held | {key: value})(out)
        assert f"{refusal}: exists already" in refused(capsys, "run", made / "model", "--out", out, *calibrated[1])


def test_names_that_are_no_utf8_go_through_every_command(made, tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"caf\xe9\n")
    shutil.copytree(made / "model", folder / "model")
    model = folder / os.fsdecode(b"mod\xe9l")
    (folder / "model").rename(model)
    shutil.copy(made / "text.txt", text := folder / os.fsdecode(b"t\xe9xt"))
    assert run("run", model, "--out", folder / "out", "--calibration", text, "--calibration-tokens", "512", "--quiet") == 0
    gguf, onnx = folder / "out/llama.cpp/model.gguf", folder / "out/onnxruntime/onnx"
    for path in (gguf, onnx):
        store = path.with_name("store")
        assert run("verify", path, "--source", model, "--store", store, "--json", folder / "v.json", "--quiet") == 0
        assert run("inspect", store) == 0
        assert run("bundle", path, "--platform", "web", "--out", folder / f"{path.name}.b", "--store", store, "--quiet") == 0
        assert run("bundle", "verify", folder / f"{path.name}.b") == 0
    words = ("--source", model, "--text", text, "--chunks", "1", "--context", "64", "--quiet", "--json")
    assert run("compare", gguf, onnx, *words, folder / "c.json", "--html", folder / "c.html") == 0
    assert run("eval", onnx, *words, folder / "e.json") == 0
    named = (f"--verify={onnx}={folder / 'v.json'}", "--compare", folder / "c.json")
    assert run("report", gguf.with_name("store"), gguf, onnx, "--out", folder / "r.html", *named) == 0
    assert run("imatrix", model, "--calibration", text, "--calibration-tokens", "512", "--out", folder / "i.gguf", "--quiet") == 0
    assert run("quantize", model, "--imatrix", folder / "i.gguf", "--out", folder / "s", *RTN) == 0
    plan = json.loads((folder / "out/llama.cpp/store/plan.json").read_bytes())
    assert (plan["source"]["name"], plan["calibration"]["text"]) == ("mod\\xe9l", "t\\xe9xt")
    assert "Traceback" not in capsys.readouterr().err

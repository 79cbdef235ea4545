"""What is written appears whole, beside whatever else the user keeps there."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from quantize.errors import OutputError
from quantize.store import output_place, outputs
from quantize.store.output_place import Lock, descriptor_of
from quantize.store.outputs import Unfinished, check_file, check_folder, new_file


def test_a_neighbour_of_any_name_survives(tmp_path):
    for name in ("a.gguf.partial", "a.gguf.tmp", ".a.gguf"):
        (tmp_path / name).write_text("mine")
    with new_file(tmp_path / "a.gguf") as file:
        file.write(b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.gguf": "new",
        **dict.fromkeys(("a.gguf.partial", "a.gguf.tmp", ".a.gguf"), "mine"),
    }


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with new_file(tmp_path / "file"):
            pass
        with Unfinished(tmp_path / "folder", folder=True) as unfinished:
            unfinished.finish()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder")] == [0o640, 0o750]


@pytest.mark.parametrize("folder", [False, True])
def test_what_must_stay_is_refused_at_the_start(tmp_path, folder):
    put(tmp_path / "out", folder, "old")
    with pytest.raises(OutputError, match=r"out: exists already; name another out or pass force=True"):
        unfinished(tmp_path / "out", folder).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_neither_the_output_nor_the_folders_made_for_it(tmp_path, folder):
    (tmp_path / "kept").mkdir()
    with pytest.raises(KeyboardInterrupt), Unfinished(tmp_path / "kept" / "made" / "deep" / "out", folder) as unfinished:
        assert unfinished.path.exists()
        raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


def test_a_full_disk_is_named_by_the_output(tmp_path):
    with (
        pytest.raises(OutputError, match=r"out: cannot be written \(No space left on device\); free some space"),
        new_file(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_reading_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), new_file(tmp_path / "out"):
        (tmp_path / "source").read_bytes()


def test_force_replaces_no_folder_with_a_file(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="out: is a folder; name a file"), new_file(tmp_path / "out", True):
        pass
    assert (tmp_path / "out").is_dir()


def test_force_replaces_an_empty_folder_but_no_file(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    check_folder(tmp_path / "empty", True, lambda _: "is not ours")
    with pytest.raises(OutputError, match="file: is a file"):
        check_folder(tmp_path / "file", True, lambda _: None)


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=["with the system's call", "without it", "without links"])
def renaming(request, monkeypatch):
    """Names are taken by renameat2, or as well as can be where it is not known, or where a file has one name alone."""
    if request.param != "with the system's call":
        monkeypatch.setattr(output_place, "_renameat2", lambda *_: False)
    if request.param == "without links":
        monkeypatch.setattr(Path, "hardlink_to", no_links)


def put(path: Path, folder: bool, text: str) -> Path:
    """A file, or a folder of ours with a file in it; returns the file."""
    if folder:
        path.mkdir()
        path /= "ours.txt"
    path.write_text(text)
    return path


def foreign(folder: Path) -> str | None:
    return next((f"{item.name} is not ours" for item in folder.iterdir() if item.name != "ours.txt"), None)


def unfinished(out: Path, folder: bool, force: bool = False) -> Unfinished:
    return Unfinished(out, folder, force, foreign if folder else None)


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_force_replaces_what_was_there(tmp_path, folder, there):
    if there:
        put(tmp_path / "out", folder, "old")
    with unfinished(tmp_path / "out", folder, force=True) as new:
        (new.path / "ours.txt" if folder else new.path).write_text("new")
        new.finish()
    assert (tmp_path / "out" / "ours.txt" if folder else tmp_path / "out").read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def appears(out: Path) -> None:
    out.write_text("theirs")


def appears_as_a_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("theirs")


def appears_empty(out: Path) -> None:
    out.mkdir()


def appears_as_a_link(out: Path) -> None:
    out.symlink_to("elsewhere")


MEANWHILE = [
    (folder, force, appear)
    for folder in (False, True)
    for force in (False, True)
    for appear in (appears, appears_as_a_folder, appears_empty, appears_as_a_link)
    if not (folder and force and appear is appears_empty)  # it is replaced
]


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize(("folder", "force", "appear"), MEANWHILE)
def test_what_appears_meanwhile_is_left_alone(tmp_path, monkeypatch, folder, force, appear):
    """And is not moved for a moment either."""
    out, aside = tmp_path / "out.x", tmp_path / "aside"
    aside.mkdir()
    monkeypatch.delattr(outputs, "exchange")
    appear(aside / "out.x")
    with pytest.raises(OutputError, match="was put there while"), unfinished(out, folder, force) as new:
        appear(out)
        new.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["aside", "out.x", "out.x.2" if folder else "out.2.x"])
    assert sorted(path.name for path in out.glob("*")) == sorted(path.name for path in (aside / "out.x").glob("*"))
    assert out.is_symlink() == (aside / "out.x").is_symlink()


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize(("folder", "force", "appear"), MEANWHILE)
def test_what_appears_at_the_last_moment_is_left_alone(tmp_path, monkeypatch, folder, force, appear):
    """After it was seen that nobody has the name."""
    out, rename = tmp_path / "out.x", output_place.rename_new

    def late(source: Path, target: Path) -> None:
        if target == out:
            appear(out)
        rename(source, target)

    monkeypatch.setattr(outputs, "rename_new", late)
    with pytest.raises(OutputError, match="was put there while"), unfinished(out, folder, force) as new:
        new.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out.x", "out.x.2" if folder else "out.2.x"])
    assert out.is_symlink() == (appear is appears_as_a_link)
    assert [path.name for path in out.glob("*")] == (["thesis.txt"] if appear is appears_as_a_folder else [])
    assert appear is not appears or out.read_text() == "theirs"


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("folder", [False, True])
def test_what_takes_the_place_of_ours_at_the_last_moment_is_left_alone(tmp_path, monkeypatch, folder):
    """After it was seen that what has the name may be replaced."""
    out, exchange = tmp_path / "out", output_place.exchange
    put(out, folder, "old")

    def late(one: Path, other: Path) -> None:
        if not (tmp_path / "old").exists():
            out.rename(tmp_path / "old")
            appears_as_a_folder(out) if folder else appears(out)
        exchange(one, other)

    monkeypatch.setattr(outputs, "exchange", late)
    with pytest.raises(OutputError, match="was put there while"), unfinished(out, folder, True) as new:
        (new.path / "ours.txt" if folder else new.path).write_text("new")
        new.finish()
    assert (out / "thesis.txt" if folder else out).read_text() == "theirs"
    assert (tmp_path / "out.2" / "ours.txt" if folder else tmp_path / "out.2").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "out", "out.2"]


@pytest.mark.usefixtures("renaming")
def test_a_link_to_one_of_ours_that_appears_meanwhile(tmp_path):
    put(tmp_path / "ours", True, "ours")
    with pytest.raises(OutputError, match="was put there while"), unfinished(tmp_path / "out", True, True) as new:
        (tmp_path / "out").symlink_to("ours")
        new.finish()
    assert (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "out", "out.2"]


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("folder", [False, True])
def test_what_is_kept_takes_no_name_that_somebody_has(tmp_path, folder):
    out = tmp_path / "out"
    put(tmp_path / "out.2", folder, "theirs")
    with pytest.raises(OutputError, match=r"is kept as .*out\.3$"), unfinished(out, folder) as new:
        put(out, folder, "theirs")
        new.finish()
    assert (tmp_path / "out.2" / "ours.txt" if folder else tmp_path / "out.2").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.2", "out.3"]


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_name_that_cannot_be_taken(tmp_path, monkeypatch, folder, there):
    """What was there is there again, and nothing else is."""
    out, rename = tmp_path / "out", Path.rename
    if there:
        put(out, folder, "old")

    def failing(self: Path, target: Path) -> None:
        if self.suffix == ".adadim" and target == out:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.setattr(output_place, "_renameat2", lambda *_: False)
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    with pytest.raises(OutputError, match=r"out: cannot be written \(Input/output error\)"), unfinished(out, folder, True) as new:
        new.finish()
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if there else [])
    assert not there or (out / "ours.txt" if folder else out).read_text() == "old"


@pytest.mark.usefixtures("renaming")
def test_another_file_than_the_one_that_force_was_said_of(tmp_path):
    put(tmp_path / "out", False, "old")
    with pytest.raises(OutputError, match=r"left alone, and what was made is kept as .*out\.2"), new_file(tmp_path / "out", True):
        put(tmp_path / "theirs", False, "theirs").rename(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "theirs"


@pytest.mark.usefixtures("renaming")
def test_what_is_put_into_a_folder_meanwhile(tmp_path):
    put(tmp_path / "out", True, "old")
    with (
        pytest.raises(OutputError, match=r"changed while .* thesis\.txt is not ours"),
        unfinished(tmp_path / "out", True, True) as n,
    ):
        (tmp_path / "out" / "thesis.txt").write_text("theirs")
        n.finish()
    assert (tmp_path / "out" / "thesis.txt").read_text() == "theirs"


@pytest.mark.usefixtures("renaming")
def test_what_goes_meanwhile_is_not_missed(tmp_path):
    put(tmp_path / "out", False, "old")
    with new_file(tmp_path / "out", True) as file:
        (tmp_path / "out").unlink()
        file.write(b"new")
    assert (tmp_path / "out").read_text() == "new"


def test_a_second_run_with_the_same_output_is_refused_and_leaves_the_first_alone(tmp_path):
    (tmp_path / "link").symlink_to("out")
    with new_file(tmp_path / "out") as file:
        file.write(b"first")
        for start in (lambda: check_file(tmp_path / "out", True), unfinished(tmp_path / "link", False).__enter__):
            with pytest.raises(OutputError, match="another adadim is writing it"):
                start()
    assert (tmp_path / "out").read_text() == "first"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["link", "out"]


KILLED = """
import os, sys
from pathlib import Path
from quantize.store import output_place
from quantize.store import outputs
from quantize.store.outputs import Unfinished
out, folder, when = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3]
def die(*_): os.kill(os.getpid(), 9)
with Unfinished(out, folder, True, lambda _: None) as unfinished:
    if folder: (unfinished.path / "new").touch()
    if when == "working": die()
    output_place._renameat2 = lambda *_: False
    Path.rename, rename = (lambda self, to: die() if self.name.endswith(".adadim") else rename(self, to)), Path.rename
    unfinished.finish()
"""


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("when", ["working", "replacing"])
def test_what_a_killed_run_left_is_removed_by_the_next_with_the_same_output(tmp_path, folder, when):
    put(tmp_path / "out", folder, "old")
    for name in (".out.0123abcd.adadim", ".other.adadim-lock", ".out"):
        (tmp_path / name).write_text("somebody's")
    before = sorted(tmp_path.rglob("*"))
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "out", str(folder), when]).returncode == -9
    assert sorted(tmp_path.rglob("*")) != before
    check_folder(tmp_path / "out", True, lambda _: None) if folder else check_file(tmp_path / "out", True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["../precious", ".out.precious", ".other.0123abcd.adadim", ".out.0123abcd.adadim.precious"])
def test_a_strangers_file_with_a_locks_name_is_not_touched(tmp_path, text):
    (tmp_path / text).write_text("precious")
    (tmp_path / ".out.adadim-lock").write_text(text)
    with pytest.raises(OutputError, match="is no lock of ours"), new_file(tmp_path / "out"):
        pass
    assert (tmp_path / ".out.adadim-lock").read_text() == text
    assert (tmp_path / text).read_text() == "precious"


def test_a_link_with_a_locks_name_is_not_followed(tmp_path):
    (tmp_path / ".out.adadim-lock").symlink_to("precious")
    with pytest.raises(OutputError, match="out: cannot be written"), new_file(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".out.adadim-lock"]


def test_a_lock_that_goes_while_it_is_taken_is_taken_anew(tmp_path, monkeypatch):
    """Another run ended between our opening it and our holding it."""
    lock, flock = Lock(tmp_path / "out"), output_place.fcntl.flock

    def late(file: int, how: int) -> None:
        monkeypatch.setattr(output_place.fcntl, "flock", flock)
        lock.path.unlink()
        flock(file, how)

    monkeypatch.setattr(output_place.fcntl, "flock", late)
    lock.take(".out.0123abcd.adadim")
    with pytest.raises(OutputError, match="another adadim is writing it"):
        Lock(tmp_path / "out").take(".out.4567abcd.adadim")
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_link_stays_a_link_and_its_target_is_written_beside_itself(tmp_path, folder, there):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "link").symlink_to("hop")
    (tmp_path / "hop").symlink_to(disk / "out")
    if there:
        put(disk / "out", folder, "old")
    with unfinished(tmp_path / "link", folder, force=there) as new:
        assert new.path.parent == disk
        new.finish()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "hop").is_symlink()
    assert [item.name for item in disk.iterdir()] == ["out"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["disk", "hop", "link"]


def test_a_loop_of_links_is_one_error(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="loop"), new_file(tmp_path / "loop"):
        pass


def test_a_pipe_and_a_device_are_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        with new_file(tmp_path / "pipe") as file:
            file.write(b"for the reader")
        assert reader.communicate()[0] == b"for the reader"
    with new_file(tmp_path / "null") as file:
        file.write(b"for nobody")
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
    assert (tmp_path / "null").readlink() == Path("/dev/null")


def test_standard_output_may_be_a_file_that_goes_on(tmp_path):
    code = (
        "from pathlib import Path; from quantize.store.outputs import new_file; print('before')\n"
        "with new_file(Path('link')) as file: file.write(b'report\\n')\n"
        "print('after')"
    )
    (tmp_path / "link").symlink_to("/dev/stdout")
    with (tmp_path / "log").open("wb") as log:
        root = Path(__file__).parents[2]
        subprocess.run(
            [sys.executable, "-c", code],
            stdout=log,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": ""},
            check=True,
        )
    assert (tmp_path / "log").read_text() == "before\nreport\nafter\n"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["link", "log"]


def test_a_socket_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as held, pytest.raises(OutputError, match="is a socket; name a file"):
        held.bind(str(tmp_path / "socket"))
        check_file(tmp_path / "socket", True)


def test_a_name_as_long_as_names_may_be(tmp_path):
    for name in ("n" * 255, "ü" * 127):
        with new_file(tmp_path / name) as file:
            file.write(b"x")
        assert [item.name for item in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_long_names_that_begin_alike_are_two(tmp_path):
    with new_file(tmp_path / ("n" * 254 + "a")) as one, new_file(tmp_path / ("n" * 254 + "b")) as other:
        one.write(b"one")
        other.write(b"other")
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"one", b"other"]


def test_a_descriptor_of_another_process_is_none_of_ours():
    found = [descriptor_of(Path(f"/proc/{pid}/fd/1")) for pid in ("self", os.getpid(), os.getppid())]
    assert found == [1, 1, None]


def test_a_pipe_that_may_not_be_written_to(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for whoever is not root
    with pytest.raises(OutputError, match=r"pipe: cannot be written \(Permission denied\)"):
        check_file(tmp_path / "pipe", True)


@pytest.mark.parametrize("out", ["~", "~/out", "new/~/out"])
def test_no_folder_named_as_the_home_folder_is_made(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="folder named ~"), new_file(Path(out)):
        pass
    assert list(tmp_path.iterdir()) == []

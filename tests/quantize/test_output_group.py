"""Files of one thing: all of them take their names, or what was there is there still."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.errors import OutputError
from quantize.store.output_group import check_files, new_files
from quantize.store.outputs import Unfinished

OURS = b"ours"


def foreign(path: Path) -> str | None:
    return None if path.read_bytes().startswith(OURS) else "is a stranger"


def write(outs: list[Path], force: bool = False) -> None:
    with new_files(outs, force, foreign) as files:
        for number, file in enumerate(files):
            file.write(OURS + b" new %d" % number)


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def outs(tmp_path) -> list[Path]:
    return [tmp_path / "made" / name for name in ("a", "b", "c")]


def test_all_appear_and_the_first_is_the_last_to(outs, monkeypatch):
    order = list[str]()
    take = Unfinished.take_name
    monkeypatch.setattr(Unfinished, "take_name", lambda each: order.append(each.out.name) or take(each))
    write(outs)
    assert order == ["c", "b", "a"]
    assert held(outs[0].parent) == {name: OURS + b" new %d" % number for number, name in enumerate("abc")}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_nothing(outs, error):
    with pytest.raises(error), new_files(outs, False, foreign) as files:
        files[0].write(OURS)
        raise error
    assert not outs[0].parent.exists()


@pytest.mark.parametrize("late", ["a", "b", "c"])
@pytest.mark.parametrize("force", [False, True])
def test_one_that_cannot_take_its_name_stops_all(outs, late, force):
    """Something is put there while they are written."""
    outs[0].parent.mkdir()
    if force:
        for out in outs:
            out.write_bytes(OURS + b" old")
    before = held(outs[0].parent)
    path = outs[0].with_name(late)
    words = f"{late}: was put there while this was made; it is left alone, and none of the 3 files is written"
    with pytest.raises(OutputError, match=words), new_files(outs, force, foreign) as files:
        for file in files:
            file.write(OURS)
        path.with_name("theirs").write_bytes(b"theirs")
        path.with_name("theirs").replace(path)
    assert held(outs[0].parent) == before | {late: b"theirs"}


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_fails_while_they_are_named(outs, monkeypatch, number, force):
    outs[0].parent.mkdir()
    if force:
        for out in outs:
            out.write_bytes(OURS + b" old")
    before = held(outs[0].parent)
    take = Unfinished._take_name

    def failing(each: Unfinished) -> str | None:
        if each.out == outs[number]:
            raise OSError(5, "Input/output error")
        return take(each)

    monkeypatch.setattr(Unfinished, "_take_name", failing)
    with pytest.raises(OutputError, match=f"{outs[number].name}: cannot be written .Input/output error"):
        write(outs, force)
    assert held(outs[0].parent) == before


def test_force_replaces_ours_only(outs):
    write(outs)
    with pytest.raises(OutputError, match=r"a: exists already; name another out or pass force=True$"):
        write(outs)
    write(outs, force=True)
    outs[1].write_bytes(b"theirs")
    for attempt in (write, lambda outs, force: check_files(outs, force, foreign)):
        with pytest.raises(OutputError, match=r"b: is a stranger, so force does not replace it; name another out$"):
            attempt(outs, True)
    assert held(outs[0].parent)["b"] == b"theirs"


def test_a_dead_run_s_files_are_removed(outs, monkeypatch):
    """Its locks are held by nobody, and name them."""
    monkeypatch.setattr(Unfinished, "_clean", lambda each: each._lock.release(left=True))
    with pytest.raises(KeyboardInterrupt), new_files(outs, False, foreign):
        raise KeyboardInterrupt
    monkeypatch.undo()
    assert len([path for path in outs[0].parent.iterdir() if path.suffix == ".adadim"]) == 3
    write(outs)
    assert held(outs[0].parent).keys() == {"a", "b", "c"}

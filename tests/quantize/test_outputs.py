"""What is written appears whole, beside whatever else the user keeps there."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from quantize.errors import OutputError
from quantize.outputs import Unfinished, check_folder, new_file


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


def test_force_replaces_an_empty_folder_but_no_file(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    check_folder(tmp_path / "empty", True, lambda _: "is not ours")
    with pytest.raises(OutputError, match="file: is a file"):
        check_folder(tmp_path / "file", True, lambda _: None)

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress

import msgspec
import pytest

from quantize.errors import CheckpointError
from quantize.outside import DEPTH, Door, Positive, Size, TokenId

DOOR = Door(CheckpointError, "download it again", most=10_000)


class Rope(msgspec.Struct):
    factor: Positive = 1.0


class Config(msgspec.Struct):
    size: Size
    rope: Rope | None = None
    ends: TokenId | list[TokenId] | None = None
    names: dict[str, int] = {}


GOOD = {
    '{"size": 32}': Config(32),
    '{"size": 1, "rope": {"factor": 4}, "other": [1e999, NaN, "\\ud83d\\ude00"]}': Config(1, Rope(4.0)),
    '{"size": 2147483647, "ends": [1, 2], "names": {"Ü": 1}}': Config(2147483647, None, [1, 2], {"Ü": 1}),
    '{"size": 1, "x": ' + "[" * (DEPTH - 1) + "]" * (DEPTH - 1) + "}": Config(1),
}
BAD = {
    '{"size": "32"}': "size is '32': Expected int, got str",
    '{"size": 1.0}': "size is 1.0: Expected int, got float",
    '{"size": true}': "size is True: Expected int, got bool",
    '{"size": null}': "size is None: Expected int, got null",
    '{"size": 0}': "size is 0: Expected int >= 1",
    '{"size": 2147483648}': "size is 2147483648: Expected int <= 2147483647",
    '{"size": ' + "9" * 400 + "}": "size is 999",
    '{"size": ' + "9" * 5000 + "}": "not JSON",
    '{"rope": null}': "Object missing required field size",
    '{"size": 1, "rope": {"factor": 1e999}}': "rope.factor is inf: Expected float",
    '{"size": 1, "rope": {"factor": NaN}}': "rope.factor is nan: Expected float > 0.0",
    '{"size": 1, "ends": [1, -1]}': "ends[1] is -1: Expected int >= 0",
    '{"size": 1, "names": {"a": "b"}}': "names",
    '{"size": 1, "size": 2}': "the key size is twice in an object",
    '{"size": 1, "x": {"a": 1, "a": 1}}': "the key a is twice in an object",
    **{
        f'{{"size": 1, "x": "{half}"}}': "half of a surrogate pair"
        for half in ("\\ud800", "\\uDBFF", "\\udc00", "\\uDFFF", "\\udc00\\ud800")
    },
    '{"size": 1, "x": ' + "[" * DEPTH + "]" * DEPTH + "}": "nested deeper",
    "[" * 9000: "not JSON",
    "[1]": "Expected object, got array",
    '{"size": 1': "not JSON",
    "": "not JSON",
}


@pytest.mark.parametrize(("text", "expected"), GOOD.items())
def test_json_as_it_is_said_to_be(text, expected):
    assert DOOR.json(text.encode(), "config.json", Config) == expected


@pytest.mark.parametrize(("text", "expected"), BAD.items(), ids=[text[:40] for text in BAD])
def test_other_json_is_refused_with_the_key_and_the_value(text, expected):
    with pytest.raises(CheckpointError) as refusal:
        DOOR.json(text.encode(), "config.json", Config)
    message = str(refusal.value)
    assert message.startswith("config.json: ") and expected in message and message.endswith("; download it again")
    assert len(message) < 500


def test_text_that_is_not_utf8():
    with pytest.raises(CheckpointError, match="not UTF-8 at byte 3"):
        DOOR.json(b'{"\n\xff": 1}', "config.json", Config)


@pytest.mark.parametrize(("text", "expected"), [("size = 1", None), ('size = "1"', "Expected int"), ("size = ", "not TOML")])
def test_toml(tmp_path, text, expected):
    (tmp_path / "a.toml").write_text(text)
    if expected is None:
        assert DOOR.toml(tmp_path / "a.toml", Config) == Config(1)
        return
    with pytest.raises(CheckpointError, match=expected):
        DOOR.toml(tmp_path / "a.toml", Config)


def test_only_regular_files_of_their_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(3 << 30)
    (tmp_path / "link").symlink_to("a.json")
    (tmp_path / "a.json").write_text('{"size": 1}')
    assert DOOR.load(tmp_path / "link", Config) == Config(1)
    for name, reason in {"pipe": "no regular file", "sparse": "3,221,225,472 bytes", ".": "directory", "none": "No such"}.items():
        with pytest.raises(CheckpointError, match=reason):
            DOOR.read(tmp_path / name)
    with pytest.raises(CheckpointError, match="no regular file"):
        DOOR.read(tmp_path.__class__("/dev/zero"))


def test_a_file_may_be_as_large_as_is_said(tmp_path):
    (tmp_path / "a").write_bytes(bytes(10_000))
    assert DOOR.read(tmp_path / "a") == bytes(10_000)
    (tmp_path / "a").write_bytes(bytes(10_001))
    with pytest.raises(CheckpointError, match="10,001 bytes, where 10,000 are the most"):
        DOOR.read(tmp_path / "a")


def test_a_pipe_is_refused_while_somebody_writes_to_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        with suppress(BrokenPipeError), (tmp_path / "pipe").open("wb") as file:
            file.write(b"{}")

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with pytest.raises(CheckpointError, match="no regular file"):
        DOOR.read(tmp_path / "pipe")


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("quantize.outside.open_regular", denied)  # root may read everything
    with pytest.raises(CheckpointError) as raised:
        DOOR.read(tmp_path / "f.json")
    assert str(raised.value) == f"{tmp_path}/f.json: cannot be read (Permission denied); check its permissions"

from __future__ import annotations

import pytest

from quantize.errors import LINE, SHOWN, AdaDimError, CheckpointError, shown

HOSTILE = {
    "colour": ("\x1b[31mred", "\\x1b[31mred"),
    "bidi": ("\u202egnp.exe", "\\u202egnp.exe"),
    "lines": ("one\n\ttwo\r\nthree", "one two three"),
    "a surrogate": ("mod\udce9l", "mod\\udce9l"),
    "a zero": ("a\x00b", "a\\x00b"),
    "letters": ("Übergrößenträger 東京", "Übergrößenträger 東京"),
}


@pytest.mark.parametrize(("text", "expected"), HOSTILE.values(), ids=HOSTILE)
def test_a_message_is_one_clean_line(text, expected):
    assert str(CheckpointError(text)) == expected
    assert shown(text) == expected
    assert str(CheckpointError(text)).encode()


def test_what_is_too_long_loses_its_middle():
    message = str(AdaDimError(f"model.gguf: {'x' * 10**6}; download it again"))
    assert len(message) <= LINE + 3 and message.startswith("model.gguf: xxx") and message.endswith("; download it again")


@pytest.mark.parametrize(
    "value", ["A" * 10**6, ["A" * 10**6] * 1000, {"key": list(range(10**6))}, 10**4000, ValueError("x" * 9999)]
)
def test_a_value_takes_no_more_than_its_share(value):
    assert 0 < len(shown(value)) <= SHOWN + 3


def test_a_value_that_is_no_text_reads_as_python_writes_it():
    assert [shown(value) for value in (None, True, 1.5, ["a", 1], "it is")] == ["None", "True", "1.5", "['a', 1]", "it is"]

"""What the desktop runtimes say to the same prompt: a client has to give their greedy tokens."""

from __future__ import annotations

import numpy as np

from runtime_checks.runners import Runner

NEARLY_EQUAL = 0.05  # logits: below this another instruction set's sums may choose the other token


def assert_same_greedy(desktop: Runner, prompt: list[int], tokens: list[int]) -> None:
    """The same tokens after ``prompt``, or another one first where the two best logits are nearly equal."""
    expected = desktop.greedy(np.array(prompt, np.int64), len(tokens))
    differing = [index for index, (one, other) in enumerate(zip(expected, tokens, strict=True)) if one != other]
    if differing:
        before = np.array([*prompt, *expected[: differing[0]]], np.int64)
        second, best = np.sort(desktop.logits(before)[-1])[-2:]
        assert best - second < NEARLY_EQUAL, f"token {differing[0]} differs: {tokens} instead of {expected}"

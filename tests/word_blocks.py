"""One block of each type whose weights are stored as words: its bytes, and what they say, with every word another."""

from __future__ import annotations

import gguf.quants
import numpy as np

J, K, GROUP = np.arange(32), np.arange(64), np.arange(8)
SEVEN, EIGHT = (5 * J + 3) % 128, (11 * J + 6) % 256  # signs of each eight weights, where they have 7 bits and where 8
INDEX = {
    "iq2_xxs": (8 * J + J % 3) % 256,
    "iq2_xs": (17 * J + 5) % 512,
    "iq2_s": (33 * J + 7) % 1024,
    "iq3_xxs": (4 * K + K % 4) % 256,
    "iq3_s": (8 * K + 3 + K % 5) % 512,
}
SCALES = {"iq2_xs": np.arange(16), "iq2_s": np.arange(16)} | dict.fromkeys(("iq2_xxs", "iq3_xxs", "iq3_s"), (2 * GROUP + 1) % 16)
UNIT = {"iq2_xxs": 1 / 8, "iq2_xs": 1 / 8, "iq2_s": 1 / 8, "iq3_xxs": 1 / 4, "iq3_s": 1}
STORED = {
    "iq2_xxs": (
        "003c"
        "0009121803444312212a3039174ec8344248515a2b584d57606972783f62d279818a9099536c579ca2a8b1ba6776dcbec0c9"
        "d2d87b4041d1e1eaf0f90f4ac6f3"
    ),
    "iq2_xs": (
        "003c"
        "05061610271a3824492e5a386b427c4c8d569e60af6ac074d17ee288f392049d15a726b137bb48c559cf6ad97be38ced9df7"
        "ae01bf0bd015e11ff2290332143c1032547698badcfe"
    ),
    "iq2_s": (
        "003c"
        "0728496a8baccdee0f30517293b4d5f61738597a9bbcddfe1f406182a3c4e50606111c27323d48535e69747f8a95a0abb6c1"
        "ccd7e2edf8030e19242f3a45505b00005555aaaaff3f1032547698badcfe"
    ),
    "iq3_xxs": (
        "003c"
        "00050a0f10151a1f20252a2f30353a3f40454a4f50555a5f60656a6f70757a7f80858a8f90959a9fa0a5aaafb0b5babfc0c5"
        "cacfd0d5dadfe0e5eaeff0f5faff03444312174ec8342b584d573f62d279536c579c6776dcbe7b4041d10f4ac6f3"
    ),
    "iq3_s": (
        "003c"
        "030c151e272b343d464f535c656e777b848d969fa3acb5bec7cbd4dde6eff3fc050e171b242d363f434c555e676b747d868f"
        "939ca5aeb7bbc4cdd6dfe3ecf5fe00000000ffffffff06111c27323d48535e69747f8a95a0abb6c1ccd7e2edf8030e19242f"
        "3a45505b3175b9fd"
    ),
}


def magnitudes(name: str) -> np.ndarray:
    """F32[256]."""
    table = getattr(gguf.quants, name.upper())
    table.init_grid()
    return table.grid.reshape(table.grid_shape)[INDEX[name]].ravel()


def negative(name: str) -> np.ndarray:
    """bool[256]."""
    if name in ("iq2_s", "iq3_s"):
        return np.unpackbits(EIGHT.astype(np.uint8), bitorder="little").astype(bool)
    signs = np.unpackbits(SEVEN.astype(np.uint8)[:, None], axis=1, bitorder="little")
    signs[:, 7] = signs.sum(1) % 2
    return signs.ravel().astype(bool)


def codes(name: str) -> np.ndarray:
    """U8[256]: a magnitude's index, and a bit above for a negative weight."""
    known = sorted(getattr(gguf.quants, name.upper()).grid_map)
    minus = 4 if len(known) == 3 else 8
    return (np.searchsorted(known, magnitudes(name)) + minus * negative(name)).astype(np.uint8)


def values(name: str) -> list[float]:
    """With a d of 1."""
    scale = np.repeat(UNIT[name] * (2 * SCALES[name] + 1), 256 // len(SCALES[name]))
    return (scale * magnitudes(name) * np.where(negative(name), -1, 1)).tolist()

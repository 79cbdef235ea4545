"""What follows from the rows of compare_systems.py: which methods pay, and whether what their papers say holds here.

A row is known by what follows ``--method``, and its width. It *pays* if it loses less than the best plain row of its width (a
rounder and an axis, no option) in a file that is no larger, and does not if it loses more in one that is no smaller.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import ceil
from typing import Any, NamedTuple

from systems_activations import DOWN_8, STATIC, TOKEN_4

Row = Mapping[str, Any]

SAME_SIZE = 1.001  # of two files: their graphs name things by words of different lengths
SAME_BITS = 0.02  # of two rows' linears, that is
LESS_AT_MORE, MORE_AT_LESS = "less loss, more bits", "more loss, fewer bits"


class Claim(NamedTuple):
    """``row`` loses less than the best of ``rivals`` that takes no more bits; ``equal`` if only at no more bits than that."""

    system: str
    said: str
    row: str
    rivals: tuple[str, ...]
    equal: bool = True

    def at(self, bits: int) -> Claim:
        """With that width for "{bits}"."""
        return self._replace(row=self.row.format(bits=bits), rivals=tuple(rival.format(bits=bits) for rival in self.rivals))


def _each(widths: Iterable[int], *claims: Claim) -> tuple[Claim, ...]:
    return tuple(claim.at(bits) for claim in claims for bits in widths)


STATIC_8 = f"8 {STATIC}"  # both of 8 bits, the activations' scales known before
ONE_SIZE = tuple(f"rtn-oc --symmetric --group-size {size} {{bits}}" for size in (64, 128, 256, "channel"))
CLAIMS = (
    *_each(
        (2, 3, 4),
        Claim("higgs", "without a text, than RTN", "higgs {bits}", ("rtn-oc {bits}", *ONE_SIZE)),
        Claim("higgs", "GPTQ on turned levels, than without a text", "higgs --rounder gptq {bits}", ("higgs {bits}",)),
    ),
    *_each((2, 3), Claim("higgs", "pairs of weights, than single ones", "higgs --grid hg{bits} {bits}", ("higgs {bits}",))),
    Claim("cmpq", "2.5 bits, than 2", "cmpq 2.5", ("cmpq 2",), equal=False),
    Claim("cmpq", "3 bits, than 2.5", "cmpq 3", ("cmpq 2.5",), equal=False),
    *_each(
        (2, 3, 4),
        Claim(
            "quik",
            "the down projection one class higher, than float columns instead",
            "quik --float-columns 0 {bits}",
            ("gptq-oc --float-columns 32 {bits}",),
        ),
    ),
    *_each((2,), Claim("norm-tweaking", "than the GPTQ that it begins with", "norm-tweaking {bits}", ("gptq-oc {bits}",))),
    *_each(
        (2, 3),
        Claim("omniquant", "than GPTQ", "omniquant {bits}", ("gptq-oc {bits}",)),
        Claim("omniquant", "than RTN", "omniquant {bits}", ("rtn-oc {bits}",)),
    ),
    *_each((2, 3, 4), Claim("finequant", "than the best single size of groups", "finequant {bits}", ONE_SIZE)),
    *_each((3, 4), Claim("awq", "than RTN", "awq {bits}", ("rtn-oc {bits}",))),
    Claim("smoothquant", "8 bits of both, than without its scales", f"smoothquant {STATIC_8}", (f"rtn-oc {STATIC_8}",)),
    Claim(
        "outlier-suppression", "8 bits of both, than SmoothQuant", f"outlier-suppression {STATIC_8}", (f"smoothquant {STATIC_8}",)
    ),
    Claim("outliertune", "8 bits of both, than SmoothQuant", f"outliertune {STATIC_8}", (f"smoothquant {STATIC_8}",)),
    *(
        Claim(
            "duquant",
            f"4 bits of both, than {said}",
            f"duquant --rounder gptq 4 {TOKEN_4}",
            (f"{rival} --rounder gptq 4 {TOKEN_4}",),
        )
        for said, rival in (("SmoothQuant", "smoothquant"), ("a Hadamard turn", "higgs"))
    ),
    Claim("quik", "4 bits of both, float columns, than none", f"quik 4 {DOWN_8}", (f"gptq-oc 4 {DOWN_8}",), equal=False),
    Claim("quik", "4 bits of both, 8 of what ends an MLP, than 4", f"quik 4 {DOWN_8}", (f"quik 4 {TOKEN_4}",), equal=False),
)


def claims_table(rows: Mapping[str, Row]) -> list[str]:
    """Lines of Markdown; ``rows`` by name and width, none of which was refused."""
    head = ["## What the papers say", "", "Loss is KL; in parentheses, bits of the linears.", ""]
    columns = "| system | said to lose less | row | beside | holds |"
    return [*head, columns, "|---|---|---|---|---|", *(_line(claim, rows) for claim in CLAIMS)]


def _line(claim: Claim, rows: Mapping[str, Row]) -> str:
    begin = f"| {claim.system} | {claim.said}"
    rivals = {key: rows[key] for key in claim.rivals if key in rows}
    if claim.row not in rows or not rivals:
        beside = claim.rivals[0] if len(claim.rivals) == 1 else f"the best of {len(claim.rivals)} rows"
        return f"{begin} | {claim.row} | {beside} | not measured |"
    own = rows[claim.row]
    key = best_rival(own, rivals)
    verdict = judged(own, rivals[key], claim.equal)
    return f"{begin} | {_told(claim.row, own)} | {_told(key, rivals[key])} | {verdict} |"


def best_rival(own: Row, rivals: Mapping[str, Row]) -> str:
    """The one that loses least of those that take no more bits, else the smallest."""
    fair = [key for key in rivals if rivals[key]["bits_per_weight"] <= own["bits_per_weight"] + SAME_BITS]
    if fair:
        return min(fair, key=lambda key: rivals[key]["kld"])
    return min(rivals, key=lambda key: rivals[key]["bits_per_weight"])


def judged(own: Row, rival: Row, equal: bool) -> str:
    """Whether ``own`` loses less; if they have to be ``equal``, what that costs where it costs bits."""
    more = own["bits_per_weight"] - rival["bits_per_weight"]
    less = own["kld"] < rival["kld"]
    if equal and less and more > SAME_BITS:
        return LESS_AT_MORE
    if equal and not less and more < -SAME_BITS:
        return MORE_AT_LESS
    return "yes" if less else "no"


def _told(key: str, row: Row) -> str:
    return f"{key}: {row['kld']:.4f} ({row['bits_per_weight']:.2f})"


def what_pays(rows: Mapping[str, Row], plain: Collection[str]) -> list[str]:
    """Lines of Markdown: at each width the best of the ``plain`` rows, and how the others stand beside it."""
    widths: dict[int, dict[str, Row]] = {}
    for key, row in rows.items():
        widths.setdefault(ceil(float(key.rpartition(" ")[2])), {})[key] = row
    head = [
        "## What to take",
        "",
        "The best plain row of each width that was measured (a rounder and an axis, no option). What *pays* loses less in a file "
        "no larger. What does not pay loses as much or more in one no smaller. The others have another size. In parentheses: KL.",
        "",
        "| bits | best plain row | pays | does not pay | less loss, larger | more loss, smaller |",
        "|---|---|---|---|---|---|",
    ]
    lines = [_width_line(bits, widths[bits], plain) for bits in sorted(widths)]
    return [*head, *lines] if lines else [*head[:2], "Not measured."]


def _width_line(bits: int, rows: Mapping[str, Row], plain: Collection[str]) -> str:
    known = [key for key in rows if key in plain]
    if not known:
        return f"| {bits} | not measured | | | | |"
    best = min(known, key=lambda key: rows[key]["kld"])
    sorts: dict[tuple[bool, bool], list[str]] = {}
    for key in sorted(rows.keys() - set(plain), key=lambda key: rows[key]["kld"]):
        sorts.setdefault(stands(rows[key], rows[best]), []).append(key)
    told = [
        ", ".join(f"{key} ({rows[key]['kld']:.4f})" for key in sorts.get(kind, []))
        for kind in ((True, False), (False, True), (True, True), (False, False))
    ]
    return f"| {bits} | {best} ({rows[best]['kld']:.4f}) | {' | '.join(told)} |"


def stands(row: Row, best: Row) -> tuple[bool, bool]:
    """Whether it loses less than ``best``; whether it is larger, or, where it loses no less, not smaller."""
    less = row["kld"] < best["kld"]
    return less, row["bytes"] > best["bytes"] * SAME_SIZE if less else row["bytes"] * SAME_SIZE >= best["bytes"]

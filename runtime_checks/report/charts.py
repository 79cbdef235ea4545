"""Charts as SVG, drawn by Vega in ``vl-convert`` when the page is made: no script of it travels in the page.

Colours are custom properties of page.css, so that a picture follows the page into the dark; a mark's description is what a
pointer, the arrow keys and a screen reader find there. The same arguments give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from runtime_checks.report.page import Picture

Spec = dict[str, Any]
WIDE, NARROW = 1040, 344  # of the two shapes of a picture: what page.css gives them in a wide window, and on a phone of 360 px
FONT_SIZE = 13
NOT_DRAWN = re.compile("[\0\ud800-\udfff]")
CONFIG: Spec = {
    "background": None,
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--ink)",
        "titleFontWeight": 600,
        "labelFontSize": FONT_SIZE - 1,
        "titleFontSize": FONT_SIZE,
        "domainColor": "var(--edge)",
        "gridColor": "var(--rule)",
        "tickColor": "var(--edge)",
        "titlePadding": 8,
    },
}


def svg(spec: Spec, label: str) -> str:
    """A Vega specification as an SVG element that takes the width it is given."""
    import vl_convert

    drawn = vl_convert.vega_to_svg(_drawable({"config": CONFIG, **spec}), allowed_base_urls=[])
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert box is not None, drawn[:200]
    body = drawn[drawn.index(">") + 1 :]
    return f'<svg role="graphics-document" aria-label="{_escaped(label)}" viewBox="{box[1]}">{body}'


def both_shapes(spec: Callable[[int], Spec], label: str) -> list[Picture]:
    """The specification for WIDE and for NARROW as two pictures, of which a window shows one."""
    return [Picture(svg(spec(width), label), shape) for width, shape in ((WIDE, "wide"), (NARROW, "narrow"))]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _drawable(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Without the characters at which the library dies; names come from files."""
    if isinstance(value, str):
        return NOT_DRAWN.sub("\ufffd", value)
    if isinstance(value, dict):
        return {key: _drawable(item) for key, item in value.items()}
    return [_drawable(item) for item in value] if isinstance(value, list | tuple) else value

"""A chat template in the dialect that onnxruntime-genai renders as transformers does.

transformers renders with Jinja's ``trim_blocks`` and ``lstrip_blocks``; onnxruntime-genai (0.18) has neither, and knows fewer
variables, methods and filters. What can be is written out in the text, which transformers still renders as before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from quantize.errors import shown

SIGNED = ("block_begin", "block_end", "variable_begin", "variable_end")
ESCAPE = re.compile(r"\\[^nt'\"\\]")  # of a string; the others are read alike
KNOWN_TOKENS = ("bos_token", "eos_token")  # the others are undefined there, as are tools and documents
UNSET = ("tools", "documents")
METHODS = ("strip", "lstrip", "rstrip", "split", "startswith", "endswith", "title", "capitalize")  # of texts, all that it has
NO_FILTERS = frozenset(
    [
        "abs",
        "attr",
        "capitalize",
        "center",
        "d",
        "filesizeformat",
        "first",
        "float",
        "forceescape",
        "format",
        "groupby",
        "max",
        "min",
        "pprint",
        "random",
        "replace",
        "reverse",
        "round",
        "striptags",
        "title",
        "upper",
        "urlencode",
        "urlize",
        "wordcount",
        "wordwrap",
    ]
)
NODES = {nodes.CallBlock: "{% call %}", nodes.FloorDiv: "//", nodes.Pow: "**", nodes.Include: "{% include %}"}


class Generation(Extension):
    """``{% generation %}`` ... ``{% endgeneration %}``, which only training looks at."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def for_genai(template: str, special_tokens: Mapping[str, str]) -> str:
    """``template`` without the blanks and line ends around blocks that Jinja drops, and with what genai lacks set first.

    The same text where nothing of it matters; one that Jinja cannot read stays as it is.
    """
    try:
        names = meta.find_undeclared_variables(_environment(True).parse(template))
        trimmed, plain = (list(_environment(trim).lex(template)) for trim in (True, False))
    except (TemplateError, RecursionError):
        return template
    prelude = _prelude(names, special_tokens)
    same = [text for _, kind, text in trimmed if kind == "data"] == [text for _, kind, text in plain if kind == "data"]
    special = any(kind == "raw_begin" or (kind in SIGNED and "+" in text) for _, kind, text in trimmed)
    if same and not special and not prelude and not any(kind == "string" and ESCAPE.search(text) for _, kind, text in trimmed):
        return template
    return prelude + _written([(kind, text) for _, kind, text in trimmed])


def beyond_genai(template: str) -> list[str]:
    """Constructs of ``template`` that onnxruntime-genai cannot render, as they are written; none if Jinja cannot read it."""
    try:
        tree = _environment().parse(template)
    except (TemplateError, RecursionError):
        return []
    calls = (node.node.attr for node in tree.find_all(nodes.Call) if isinstance(node.node, nodes.Getattr))
    found = {f".{name}()" for name in calls if hasattr(str, name) and name not in METHODS}
    found |= {f"|{node.name}" for node in tree.find_all(nodes.Filter) if node.name in NO_FILTERS}
    found |= {text for kind, text in NODES.items() if tree.find(kind) is not None}
    return sorted(found)


def unreadable(template: str) -> str:
    """Why Jinja cannot read ``template``, or ""."""
    try:
        _environment().parse(template)
    except (TemplateError, RecursionError) as error:
        return f"{type(error).__name__}: {shown(error)}"
    return ""


def _environment(trim: bool = True) -> Environment:
    """Reads only: nothing of a template runs."""
    return Environment(extensions=[Generation, loopcontrols], trim_blocks=trim, lstrip_blocks=trim)


def _prelude(names: set[str], special_tokens: Mapping[str, str]) -> str:
    values = {name: "none" for name in UNSET if name in names}
    values |= {name: _quoted(text) for name, text in sorted(special_tokens.items()) if name in names and name not in KNOWN_TOKENS}
    return "".join(f"{{% set {name} = {value} %}}" for name, value in values.items())


def _written(tokens: list[tuple[str, str]]) -> str:
    """Jinja's tokens, of which it has dropped what it drops, as a template that says so by itself, whoever reads it.

    Where a second reading would drop more, the text stands in an expression.
    """
    out, text, raw = [""], "", False
    for kind, value in [*tokens, ("end", "")]:
        if kind.startswith(("comment", "raw")):
            raw = kind == "raw_begin"
        elif kind == "data":
            text += _expression(value) if raw else value
        else:
            out += [_kept(text, out[-1] == "%}", kind), _plain(kind, value)]
            text = ""
    return "".join(out)


def _kept(text: str, after_block: bool, following: str) -> str:
    """Text between two tags: a line end right after a block, blanks right before one and the last line end are kept."""
    head = tail = ""
    if after_block and text.startswith("\n"):
        head, text = _expression("\n"), text[1:]
    if following == "block_begin":
        cut = len(text) - len(text.rstrip(" \t"))
        if cut:
            text, tail = text[:-cut], _expression(text[-cut:])
    elif following == "end" and text.endswith("\n"):
        text, tail = text[:-1], _expression("\n")
    return head + text + tail


def _plain(kind: str, value: str) -> str:
    if kind in SIGNED:
        return value.strip().strip("+-")
    if kind == "string" and ESCAPE.search(value):
        return _quoted(value[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape"))
    return value


def _expression(text: str) -> str:
    return "{{ " + _quoted(text) + " }}" if text else ""


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"

"""Chat templates, rendered in Jinja's sandbox the way transformers does it (``transformers.utils.chat_template_utils``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Messages = tuple[Mapping[str, str], ...]
USER = {"role": "user", "content": 'What\'s <b>2 + 2</b>?\n\n  Say it in 日本語 & "quotes". '}
ASSISTANT = {"role": "assistant", "content": "4 {{ four }}"}
CONVERSATIONS: dict[str, Messages] = {
    "one question": (USER,),
    "three turns": (USER, ASSISTANT, {"role": "user", "content": "Why?"}),
    "with a system message": ({"role": "system", "content": "Be brief."}, USER),
}


class _Generation(Extension):
    """``{% generation %}`` ... ``{% endgeneration %}`` marks what the assistant says; rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, messages: Messages, special_tokens: Mapping[str, str]) -> str | None:
    """The prompt for the assistant's next turn, or None where the template itself refuses such a conversation."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    values: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        return environment.from_string(template).render(**values, **special_tokens)
    except TemplateError:
        return None


def template_of(assets: Mapping[str, bytes]) -> str | None:
    """A Hugging Face model's template: chat_template.jinja, or the default one of tokenizer_config.json."""
    if "chat_template.jinja" in assets:
        return assets["chat_template.jinja"].decode("utf-8")
    template = json.loads(assets.get("tokenizer_config.json", b"{}")).get("chat_template")
    if isinstance(template, list):
        template = {item["name"]: item["template"] for item in template}.get("default")
    return None if template is None else str(template)


def special_tokens_of(assets: Mapping[str, bytes]) -> dict[str, str]:
    """bos_token, eos_token and their like, which templates may name, from tokenizer_config.json."""
    config = json.loads(assets.get("tokenizer_config.json", b"{}"))
    named = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str | dict)}
    return {key: value if isinstance(value, str) else value["content"] for key, value in named.items()}


def _tojson(value: object, **options: Any) -> str:  # noqa: ANN401 - json's own options
    """Without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)

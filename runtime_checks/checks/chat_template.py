"""Chat templates, rendered in Jinja's sandbox the way transformers does it (``transformers.utils.chat_template_utils``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantize.child import GIB, Child, ChildEnded, Limits
from quantize.errors import shown

LIMITS = Limits(seconds=10, memory=GIB)
LONGEST = 1_000_000  # characters of a prompt: of conversations as short as these
Messages = tuple[Mapping[str, str], ...]
USER = {"role": "user", "content": 'What\'s <b>2 + 2</b>?\n\n  Say it in 日本語 & "quotes". '}
ASSISTANT = {"role": "assistant", "content": "4 {{ four }}"}
CONVERSATIONS: dict[str, Messages] = {
    "one question": (USER,),
    "three turns": (USER, ASSISTANT, {"role": "user", "content": "Why?"}),
    "with a system message": ({"role": "system", "content": "Be brief."}, USER),
}


class _RefusedError(TemplateError):
    """The template itself says that it cannot take such a conversation."""


class _Generation(Extension):
    """``{% generation %}`` ... ``{% endgeneration %}`` marks what the assistant says; rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class Prompt:
    """What a template makes of a conversation: a text; or no text, because it refuses it by raise_exception; or a ``problem``."""

    text: str | None = None
    problem: str = ""


def render_all(template: str, special_tokens: Mapping[str, str]) -> dict[str, Prompt]:
    """The prompts for CONVERSATIONS, rendered in a child process: a template is a program, which may not end."""
    prompts = dict[str, Prompt]()
    with Child(LIMITS) as child:
        for key, messages in CONVERSATIONS.items():
            try:
                prompts[key] = child.call(render, template, messages, dict(special_tokens))
            except ChildEnded as error:
                return dict.fromkeys(CONVERSATIONS, Prompt(problem=shown(error)))
    return prompts


def render(template: str, messages: Messages, special_tokens: Mapping[str, str]) -> Prompt:
    """The prompt for the assistant's next turn, rendered in this process."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    values: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        text = environment.from_string(template).render(**{**special_tokens, **values})
        text.encode()
    except _RefusedError:
        return Prompt()
    except MemoryError:
        raise
    except Exception as error:  # whatever a program may do wrong
        return Prompt(problem=f"{type(error).__name__}: {shown(error)}")
    return Prompt(text) if len(text) <= LONGEST else Prompt(problem=f"a prompt of {len(text):,} characters")


def template_of(assets: Mapping[str, bytes]) -> str | None:
    """A Hugging Face model's default template. Files of their own, also more named ones, hide what tokenizer_config.json has."""
    files = {"default": assets["chat_template.jinja"].decode()} if "chat_template.jinja" in assets else {}
    files |= json.loads(assets.get("additional_chat_templates.json", b"{}"))
    template = files or json.loads(assets.get("tokenizer_config.json", b"{}")).get("chat_template")
    if isinstance(template, list):
        template = {item["name"]: item["template"] for item in template}
    if isinstance(template, dict):
        template = template.get("default")
    return None if template is None else str(template)


def special_tokens_of(assets: Mapping[str, bytes]) -> dict[str, str]:
    """bos_token, eos_token and their like, which templates may name; special_tokens_map.json is of files without a decoder."""
    config = json.loads(assets.get("tokenizer_config.json", b"{}"))
    if config.get("added_tokens_decoder") is None:
        config |= json.loads(assets.get("special_tokens_map.json", b"{}"))
    named = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str | dict)}
    return {key: value if isinstance(value, str) else value["content"] for key, value in named.items()}


def _tojson(value: object, **options: Any) -> str:  # noqa: ANN401 - json's own options
    """Without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)

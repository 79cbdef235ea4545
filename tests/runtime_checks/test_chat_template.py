from __future__ import annotations

import json

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from quantize.child import GIB, Limits
from runtime_checks.checks.chat_template import CONVERSATIONS, Prompt, render, render_all, special_tokens_of, template_of
from tests.tiny import CHAT_TEMPLATE

# Whatever templates in the wild do: blocks to trim, loops with break, JSON, namespaces, the generation tag.
TRICKY = """{{ bos_token }}
{% set ns = namespace(n=0) %}
{%- for message in messages %}
    {% if loop.index > 2 %}{% break %}{% endif %}
    {%- set ns.n = ns.n + 1 %}
    {% generation %}[{{ message['role'] }}] {{ message | tojson }} {{ message['content'] | trim }}{% endgeneration %}
{% endfor %}
{{ ns.n }}{% if add_generation_prompt %}<go>{% endif %}
{% if tools is not none %}{{ tools }}{% endif %}"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TRICKY], ids=["ChatML", "tricky"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_renders_as_transformers_does(template, conversation):
    messages = [dict(message) for message in CONVERSATIONS[conversation]]
    (expected,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **TOKENS)
    assert render(template, CONVERSATIONS[conversation], TOKENS) == Prompt(expected)


def test_a_template_may_refuse():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}ok"
    assert render_all(template, {}) == {
        "one question": Prompt("ok"),
        "three turns": Prompt("ok"),
        "with a system message": Prompt(),
    }


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% if", "TemplateSyntaxError"),
        ("{{ helper() }}", "UndefinedError"),
        ("{{ tools | length }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for i in range(200000) %}x{% endfor %}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 'A' * 10**10 }}", "needs more memory"),
        ("{{ 'A' * 10**7 }}", "a prompt of 10,000,000 characters"),
    ],
)
def test_a_broken_template_is_no_refusal(template, problem):
    prompts = render_all(template, {})
    assert all(prompt.text is None and problem in prompt.problem and len(prompt.problem) < 400 for prompt in prompts.values())


def test_a_template_without_end(monkeypatch):
    monkeypatch.setattr("runtime_checks.checks.chat_template.LIMITS", Limits(seconds=2, memory=GIB))
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    assert set(render_all(loop, {}).values()) == {Prompt(problem="took more than 2 s")}


def test_the_sandbox_holds():
    prompt = render("{{ ''.__class__.__mro__[1].__subclasses__() }}", CONVERSATIONS["one question"], {})
    assert prompt.text is None and "SecurityError" in prompt.problem


@pytest.mark.parametrize(
    ("assets", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "a"}}, "a"),
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "t", "template": "x"}, {"name": "default", "template": "d"}]}},
            "d",
        ),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "j\n"}, "j\n"),
    ],
)
def test_where_a_template_is_found(assets, expected):
    raw = {name: (value if isinstance(value, str) else json.dumps(value)).encode() for name, value in assets.items()}
    assert template_of(raw) == expected


def test_special_tokens():
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, "unk_token": None, "x": "y"}
    assert special_tokens_of({"tokenizer_config.json": json.dumps(config).encode()}) == TOKENS

"""Debian's Chromium, headless and without a network, for pages that are one file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.native import built

AXE = "apps/node_modules/axe-core/axe.min.js"  # which `make apps` installs


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where it is not installed."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not there; tools/apt-packages.sh installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextmanager
def opened(file: Path, width: int = 1280, scheme: str = "light") -> Iterator[tuple[Page, list[str]]]:
    """The page, and all that went wrong or was asked of a network while it is open."""
    with chromium() as browser:
        how = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "reduced_motion": "reduce"}
        context = browser.new_context(**how, offline=True)
        page, noise = context.new_page(), list[str]()
        page.on("console", lambda message: noise.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("dialog", lambda dialog: noise.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: None if request.url == file.as_uri() else noise.append(f"request: {request.url}"))
        page.goto(file.as_uri())
        yield page, noise


def axe_violations(page: Page) -> list[str]:
    """What axe-core finds wrong, a line each with the first element. Skips the test where it was not installed."""
    page.evaluate(built(AXE).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{item['id']}: {item['help']}: {item['nodes'][0]['html'][:200]}" for item in found]

"""Debian's Chromium on the page of apps/web, used as a person does: by labels, buttons and keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests import browser
from tests.native import built

PATIENCE = 300_000  # ms; a busy machine compiles 14 MB of WebAssembly slowly


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: list[int]
    speed: str


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where it, or the page, is not there."""
    built("build/apps/web/index.html")
    with browser.chromium() as found:
        yield found


@contextmanager
def opened(chrome: Browser, address: str, **how: object) -> Iterator[Page]:
    """The page, in a profile of its own; in the end nothing may have failed in it or been asked of anybody else."""
    context = chrome.new_context(**how)
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if is_error(message) else None)
    page.on("request", lambda request: troubles.append(request.url) if not ours(request.url, address) else None)
    page.goto(address)
    yield page
    context.close()
    assert troubles == []


def is_error(message: ConsoleMessage) -> bool:
    """But for what a test keeps from the page on purpose: how the page takes that is looked at."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


def ours(url: str, address: str) -> bool:
    return url.startswith((address, f"blob:{address}"))


def load(page: Page, name: str) -> None:
    """Choose a bundle of the server and wait until it is ready or refused."""
    page.get_by_label("From this server").select_option(label=name)
    page.get_by_role("button", name="Load").click()
    settled(page)


def settled(page: Page) -> None:
    expect(page.locator("#loading")).to_be_hidden(timeout=PATIENCE)


def facts(page: Page) -> dict[str, str]:
    rows = page.locator("dl")
    return dict(zip(rows.locator("dt").all_inner_texts(), rows.locator("dd").all_inner_texts(), strict=True))


def problems(page: Page) -> list[str]:
    """What the page says is wrong."""
    return page.get_by_role("alert").get_by_role("listitem").all_inner_texts()


def ask(page: Page, question: str, most: int) -> Answer:
    """Type, press Enter and read."""
    page.get_by_label("At most").fill(str(most))
    page.get_by_label("Your question").fill(question)
    page.get_by_label("Your question").press("Enter")
    expect(page.get_by_role("button", name="Ask")).to_be_enabled(timeout=PATIENCE)
    return read(page)


def read(page: Page) -> Answer:
    tokens = page.locator("#tokens").text_content() or ""
    return Answer(
        page.locator("#answer").text_content() or "",
        [int(word) for word in tokens.split()],
        page.locator("#speed").inner_text(),
    )


def change_byte(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)

#!/usr/bin/env python3
"""Draw the page of apps/web with a bundle that has answered: docs/images/web.png. Needs `make apps` and chromium.

usage: screenshot_web.py BUNDLE --out docs/images/web.png [--scheme dark]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, expect, sync_playwright
from serve_web import serving

QUESTION = "Write one sentence about the sea."
PATIENCE = 300_000  # ms
Scheme = Literal["light", "dark"]


def open_page(browser: Browser, address: str, scheme: Scheme = "light") -> Page:
    """Before anything is chosen."""
    page = browser.new_page(viewport={"width": 800, "height": 900}, color_scheme=scheme)
    page.goto(address)
    return page


def load(page: Page) -> None:
    """The server's first bundle, until the page is ready for a question."""
    page.get_by_role("button", name="Load").click()
    expect(page.get_by_role("status")).to_have_text("Ready: ask something.", timeout=PATIENCE)


def ask(page: Page, most: int) -> None:
    """QUESTION, until it is answered."""
    page.get_by_label("At most").fill(str(most))
    page.get_by_label("Your question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#tokens")).not_to_be_empty(timeout=PATIENCE)
    expect(page.get_by_role("button", name="Ask")).to_be_enabled(timeout=PATIENCE)


def screenshot(browser: Browser, bundle: Path, out: Path, scheme: Scheme = "light", most: int = 48) -> None:
    """Of the whole page."""
    with serving([bundle]) as address:
        page = open_page(browser, address, scheme)
        load(page)
        ask(page, most)
        page.screenshot(path=out, full_page=True)
        page.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the page of apps/web with a bundle that has answered.")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        screenshot(chromium, args.bundle, args.out, args.scheme)

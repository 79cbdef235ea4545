#!/usr/bin/env python3
"""Draw the page of apps/web with a bundle of SmolLM2 that has answered: docs/web.png. Needs `make apps` and chromium.

usage: screenshot_web.py BUNDLE --out docs/web.png [--scheme dark]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright
from serve_web import serving

QUESTION = "Write one sentence about the sea."
PATIENCE = 300_000  # ms


def screenshot(browser: Browser, bundle: Path, out: Path, scheme: str = "light", most: int = 48) -> str:
    """Load the only bundle of a server, ask, and draw the whole page; what was answered."""
    with serving([bundle]) as address:
        page = browser.new_page(viewport={"width": 800, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(address)
        page.get_by_role("button", name="Load").click()
        page.get_by_label("At most").fill(str(most))
        page.get_by_label("Your question").fill(QUESTION)
        expect(page.get_by_role("button", name="Ask")).to_be_enabled(timeout=PATIENCE)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("#answer")).to_have_attribute("aria-busy", "false", timeout=PATIENCE)
        expect(page.get_by_role("button", name="Ask")).to_be_enabled(timeout=PATIENCE)
        page.screenshot(path=out, full_page=True)
        answer = page.locator("#answer").inner_text()
        page.close()
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the page of apps/web with a bundle that has answered.")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        print(screenshot(chromium, args.bundle, args.out, args.scheme))

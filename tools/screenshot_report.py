#!/usr/bin/env python3
"""Draw a page of `adadim report` or of `adadim compare --html`: docs/images/report-*.png. Needs chromium.

usage: screenshot_report.py report.html --out docs/images/report-top.png [--scheme dark] [--phone] [--figure layers]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, ViewportSize, sync_playwright

WIDE, PHONE = ViewportSize(width=1280, height=800), ViewportSize(width=390, height=844)


def screenshot(browser: Browser, args: argparse.Namespace) -> None:
    """The first screen, or a section's last figure; without a network."""
    view = PHONE if args.phone else WIDE
    context = browser.new_context(viewport=view, color_scheme=args.scheme, reduced_motion="reduce", offline=True)
    page = context.new_page()
    page.goto(args.page.resolve().as_uri())
    shown = page if args.figure is None else page.locator(f"#{args.figure} figure").last
    shown.screenshot(path=args.out)
    context.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a page of `adadim report` or of `adadim compare --html`.")
    parser.add_argument("page", metavar="report.html", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--phone", action="store_true", help="390 pixels wide (default: 1280)")
    parser.add_argument("--figure", metavar="SECTION", help="the last picture of that section (default: the first screen)")
    with sync_playwright() as playwright:
        screenshot(playwright.chromium.launch(executable_path=shutil.which("chromium")), parser.parse_args())

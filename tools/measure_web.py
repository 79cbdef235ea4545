#!/usr/bin/env python3
"""Peak memory of the browser and tokens per second of bundles in the page of apps/web: the table of docs/evidence/clients.md.

usage: measure_web.py [--tokens N] BUNDLE...     # `adadim bundle … --platform web`; needs `make apps` and chromium

Each bundle runs in a fresh browser, once with one thread and once isolated (headers.json), which allows more. Memory is the
proportional set size (PSS) of all of its processes, sampled while the page loads and gives a short answer; what the empty page
takes stands beside it. Tokens per second are what the page itself shows of a second answer, when nothing is sampled: that takes
its share of the time.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil
from playwright.sync_api import sync_playwright
from screenshot_web import ask, load, open_page
from serve_web import serving

PACKAGES = Path(__file__).parent.parent / "apps" / "web" / "package.json"
INTERVAL = 0.1  # s
SHORT = 4  # tokens
COLUMNS = ("bundle", "MB", "runtime", "ready after s", "empty page MB", "peak MB", "prompt s", "tokens/s")


def browser_bytes() -> int:
    """PSS of every Chromium that this process started."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss if "chrom" in process.name() else 0
        except psutil.Error:  # it has just ended
            continue
    return total


@contextmanager
def watching() -> Iterator[list[int]]:
    """A list that holds what the browser took, again and again."""
    samples, ended = [browser_bytes()], Event()

    def watch() -> None:
        while not ended.wait(INTERVAL):
            samples.append(browser_bytes())

    thread = Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def measure(bundle: Path, tokens: int, *, isolated: bool) -> tuple[str, ...]:
    """A row of the table."""
    with sync_playwright() as playwright, serving([bundle], isolated=isolated) as address:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = open_page(browser, address)
        empty = browser_bytes()
        with watching() as samples:
            start = time.monotonic()
            load(page)
            ready = time.monotonic() - start
            ask(page, SHORT)
        ask(page, tokens)
        runtime = page.locator("dt:text('Runs in') + dd").inner_text()
        speed = re.search(r"([\d.]+) tokens/s, the first after ([\d.]+) s", page.locator("#speed").inner_text())
        browser.close()
    assert speed is not None
    size = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["quantization"]["bytes"]
    megabytes = (f"{empty / 1e6:.0f}", f"{max(samples) / 1e6:.0f}")
    return bundle.name, f"{size / 1e6:.1f}", runtime, f"{ready:.1f}", *megabytes, speed[2], speed[1]


def versions() -> str:
    """What was measured, in one line."""
    packages = json.loads(PACKAGES.read_text(encoding="utf-8"))["dependencies"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        chromium = browser.version
        browser.close()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    names = ", ".join(f"{name} {packages[name]}" for name in ("@wllama/wllama", "onnxruntime-web"))
    return f"Chromium {chromium}, {names}; {psutil.cpu_count()} cores of {cpu[1] if cpu else 'an unknown processor'}"


def line(cells: tuple[str, ...]) -> str:
    """Of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Peak memory and tokens per second of bundles in the page of apps/web.")
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    args = parser.parse_args()
    print(versions(), line(COLUMNS), line(("---",) * len(COLUMNS)), sep="\n", flush=True)
    for path, isolated in ((path, isolated) for path in args.bundles for isolated in (False, True)):
        print(line(measure(path, args.tokens, isolated=isolated)), flush=True)

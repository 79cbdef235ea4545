#!/usr/bin/env python3
"""Serve the page of apps/web, and bundles for it to run, to this machine alone.

usage: serve_web.py [--port N] [--not-isolated] BUNDLE...      # `adadim bundle … --platform web`; `make apps` builds the page

Any static server will do that sends these files with their headers (headers.json beside the page): two of them isolate the
page, which lets WebAssembly use threads; --not-isolated leaves these out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import BinaryIO

from exporter.bundle.folder import sums_digest

PAGE = Path(__file__).parent.parent / "build" / "apps" / "web"
LIST = "/bundles.json"
HOSTS = ("localhost", "127.0.0.1", "[::1]")  # what this machine calls itself
INERT = {"Content-Security-Policy": "default-src 'none'; sandbox", "X-Content-Type-Options": "nosniff"}  # of a bundle's files
HTTP_PORT = 80  # which no browser names
ISOLATING = ("Cross-Origin-Opener-Policy", "Cross-Origin-Embedder-Policy")


class Handler(SimpleHTTPRequestHandler):
    """The page's files, /bundles.json, and each bundle below /bundles/NAME/, NAME as ``bundles.json`` writes it.

    Whoever asks has to name this server (HOSTS): a page of elsewhere whose name leads here is not answered.
    """

    protocol_version = "HTTP/1.1"
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def __init__(self, *args: object, headers: Mapping[str, str], bundles: Mapping[str, Path]) -> None:
        self._headers, self._bundles, self._inert = dict(headers), bundles, False
        super().__init__(*args, directory=str(PAGE))  # type: ignore[arg-type]

    def send_head(self) -> BinaryIO | None:
        """What GET and HEAD begin with; None if that was all."""
        self._inert = False
        path = self._asked()
        if path is None:
            return None
        if path == LIST:
            return self._list_bundles()
        file = self._file(path)
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        self._found = file
        return super().send_head()

    def _asked(self) -> str | None:
        """The path, still in its escapes and without a query; None if it is refused."""
        assert isinstance(self.server, Server)
        port = self.server.server_port
        named = self.headers.get_all("Host", [])
        path = self.path.partition("?")[0].partition("#")[0]
        absolute = re.fullmatch(r"http://([^/]*)(/.*)?", path, re.IGNORECASE)
        if absolute is not None:
            named, path = [absolute[1]], absolute[2] or "/"
        if len(named) != 1 or not path.startswith("/"):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return None
        if named[0].strip().lower() not in {f"{host}:{port}" for host in HOSTS} | (set(HOSTS) if port == HTTP_PORT else set()):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        return path

    def _file(self, path: str) -> Path | None:
        """A bundle's file, or the page's: no folder, and nothing that a link leads out to."""
        _, first, *words = (os.fsdecode(urllib.parse.unquote_to_bytes(word.encode("latin-1"))) for word in path.split("/"))
        bundle = self._bundles.get(words[0]) if first == "bundles" and words else None
        root, words = (PAGE, [first, *words]) if bundle is None else (bundle, words[1:] or [""])
        self._inert = bundle is not None  # data for the page's script, and no page of its own
        words[-1] = words[-1] or "index.html"
        if any(not word or word in (".", "..") or "/" in word or "\0" in word for word in words):
            return None
        file = root.joinpath(*words)
        return file if os.path.isfile(file) and file.resolve().is_relative_to(root.resolve()) else None  # noqa: PTH113 - no error

    def _list_bundles(self) -> BinaryIO:
        listed = []
        for name, path in self._bundles.items():
            with suppress(OSError):  # it is gone
                shown = os.fsencode(name).decode(errors="replace")
                address = f"bundles/{urllib.parse.quote_from_bytes(os.fsencode(name), safe='')}/"
                listed.append({"name": shown, "path": address, "digest": sums_digest(path)})
        data = json.dumps(listed).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return BytesIO(data)

    def translate_path(self, path: str) -> str:
        """The file that was found."""
        return str(self._found)

    def end_headers(self) -> None:
        """With those of headers.json, and for a bundle's file with those that keep it from being a page."""
        for name, value in (self._headers | (INERT if self._inert else {})).items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_args: object) -> None:
        """Nothing: the browser shows what is missing."""


class Server(ThreadingHTTPServer):
    """Silent about browsers that no longer want what they asked for."""

    def handle_error(self, request: object, client_address: object) -> None:
        """See the class."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def make_server(bundles: Sequence[Path], port: int = 0, *, isolated: bool = True) -> ThreadingHTTPServer:
    """Listens already; ``port`` 0 takes any that is free."""
    headers = json.loads((PAGE / "headers.json").read_text(encoding="utf-8"))
    headers = {name: value for name, value in headers.items() if isolated or name not in ISOLATING}
    handler = partial(Handler, headers=headers, bundles=_named(bundles))
    return Server(("127.0.0.1", port), handler)


def _named(bundles: Sequence[Path]) -> dict[str, Path]:
    """By the folder's name; of two that have one name the later is numbered."""
    named = dict[str, Path]()
    for path in map(Path.resolve, bundles):
        names = (path.name, *(f"{path.name}-{number}" for number in range(2, len(bundles) + 2)))
        named[next(name for name in names if name not in named)] = path
    return named


@contextmanager
def serving(bundles: Sequence[Path], *, isolated: bool = True) -> Iterator[str]:
    """The page's address, while the context lasts."""
    server = make_server(bundles, isolated=isolated)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the page of apps/web and bundles to this machine.")
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--not-isolated", action="store_true", help="without the headers that allow threads")
    args = parser.parse_args()
    for bundle in args.bundles:
        if not (bundle / "SHA256SUMS").is_file():
            parser.error(f"{bundle}: has no SHA256SUMS; give a folder that `adadim bundle` wrote")
    made = make_server(args.bundles, args.port, isolated=not args.not_isolated)
    print(f"http://127.0.0.1:{made.server_port}/ shows {len(args.bundles)} bundles; Ctrl+C ends it", flush=True)
    made.serve_forever()

#!/usr/bin/env python3
"""Serve the page of apps/web, and bundles for it to run, to this machine alone.

usage: serve_web.py [--port N] [--not-isolated] BUNDLE...      # `adadim bundle … --platform web`; `make apps` builds the page

Any static server will do that sends these files with their headers (headers.json beside the page): two of them isolate the
page, which lets WebAssembly use threads; --not-isolated leaves these out.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from exporter.bundle import sums_digest

PAGE = Path(__file__).parent.parent / "build" / "apps" / "web"
ISOLATING = ("Cross-Origin-Opener-Policy", "Cross-Origin-Embedder-Policy")


class Handler(SimpleHTTPRequestHandler):
    """The page's files, /bundles.json, and each bundle below /bundles/NAME/."""

    protocol_version = "HTTP/1.1"
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def __init__(self, *args: object, headers: Mapping[str, str], bundles: Mapping[str, Path]) -> None:
        self._headers, self._bundles = headers, bundles
        super().__init__(*args, directory=str(PAGE))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """See the class."""
        if self.path == "/bundles.json":
            self._list_bundles()
        else:
            super().do_GET()

    def _list_bundles(self) -> None:
        listed = [{"name": name, "path": f"bundles/{name}/", "digest": sums_digest(path)} for name, path in self._bundles.items()]
        data = json.dumps(listed).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def translate_path(self, path: str) -> str:
        """A bundle's file, or the page's."""
        _, first, *words = urllib.parse.urlsplit(path).path.split("/")
        found = self._bundles.get(words[0]) if first == "bundles" and words else None
        self.directory = str(PAGE if found is None else found)
        return super().translate_path(path if found is None else "/".join(["", *words[1:]]))

    def end_headers(self) -> None:
        """With those of headers.json."""
        for name, value in self._headers.items():
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
    handler = partial(Handler, headers=headers, bundles={path.resolve().name: path.resolve() for path in bundles})
    return Server(("127.0.0.1", port), handler)


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
    made = make_server(args.bundles, args.port, isolated=not args.not_isolated)
    print(f"http://127.0.0.1:{made.server_port}/ shows {len(args.bundles)} bundles; Ctrl+C ends it", flush=True)
    made.serve_forever()

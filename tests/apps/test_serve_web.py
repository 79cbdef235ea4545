"""What tools/serve_web.py answers to requests that a browser makes, and to those that none would."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
import serve_web

ODD = ("100%", "a b%41é", "a%2fb", "sharp#?&+;", "ĳ 日本語", os.fsdecode(b"latin-\xe9"), "back\\slash", "..x", "50%25")
MODEL = b"a model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """secret.txt, a page, and a bundle by each odd name with links out of it and inside."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "secret.txt").write_text("SECRET")
    (folder / "page").mkdir()
    (folder / "page" / "headers.json").write_text('{"X-Ours": "yes", "Cross-Origin-Opener-Policy": "same-origin"}')
    (folder / "page" / "index.html").write_text("<h1>page</h1>")
    for name in ("b", "elsewhere/b", *ODD):
        bundle = folder / name
        (bundle / "model").mkdir(parents=True)
        (bundle / "SHA256SUMS").write_text(str(len(name)))
        (bundle / "model" / "model.gguf").write_bytes(MODEL)
        (bundle / "out").symlink_to(folder / "secret.txt")
        (bundle / "up").symlink_to(folder)
    (folder / "b" / "evil.html").write_text("<script src=evil.js></script>")
    (folder / "b" / "naïve %41.txt").write_text("odd file")
    return folder


@pytest.fixture(scope="module")
def port(folder) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve_web, "PAGE", folder / "page")
        with serve_web.serving([folder / name for name in ("b", "elsewhere/b", *ODD)]) as address:
            yield int(address.rstrip("/").rpartition(":")[2])


def ask(port: int, line: str | bytes, *headers: str, host: str | None = "127.0.0.1:{}") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes back for a request line as it is."""
    raw = line.encode("latin-1") if isinstance(line, str) else line
    named = [] if host is None else [f"Host: {host.format(port)}"]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(raw + "\r\n".join([" HTTP/1.1", *named, *headers, "Connection: close", "", ""]).encode("latin-1"))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), dict(row.split(": ", 1) for row in rest), body


def test_every_name_is_listed_and_leads_to_its_bundle(port, folder):
    status, headers, body = ask(port, "GET /bundles.json")
    assert (status, headers["Content-Type"], headers["X-Ours"]) == (200, "application/json", "yes")
    listed = json.loads(body)
    assert [item["name"] for item in listed] == [
        "b",
        "b-2",
        *(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in ODD),
    ]
    for item in listed:
        assert ask(port, f"GET /{item['path']}model/model.gguf")[::2] == (200, MODEL)
        assert item["path"].isascii() and item["path"].count("/") == 2
    assert len({item["digest"] for item in listed}) > 1


ANSWERED = {
    "GET /": b"<h1>page</h1>",
    "GET /index.html": b"<h1>page</h1>",
    "GET /?a=/../b#c": b"<h1>page</h1>",
    "GET /index.html#c": b"<h1>page</h1>",
    "GET /bundles/b/model/model.gguf": MODEL,
    "GET /bundles/b/model/model.gguf?x=%00/../": MODEL,
    "GET /bundles/b/%6dodel/model%2Egguf": MODEL,
    "GET /bundles/b/na%C3%AFve%20%2541.txt": b"odd file",
    "GET //bundles/b/model/model.gguf": MODEL,
}
REFUSED = {
    "GET /bundles/b/na%C3%AFve%20%41.txt": 404,  # decoded once
    "GET /bundles/b/model%2fmodel.gguf": 404,
    "GET /bundles/b/model%252fmodel.gguf": 404,
    "GET /bundles/b/../b/model/model.gguf": 404,
    "GET /bundles/b/../../secret.txt": 404,
    "GET /bundles/b/..%2f..%2fsecret.txt": 404,
    "GET /bundles/b/%2e%2e/%2e%2e/secret.txt": 404,
    "GET /bundles/b/%252e%252e/secret.txt": 404,
    "GET /bundles/../secret.txt": 404,
    "GET /../secret.txt": 404,
    "GET /..%5c..%5csecret.txt": 404,
    "GET /bundles/b/./model/model.gguf": 404,
    "GET /bundles/b//model/model.gguf": 404,
    "GET /bundles/b//etc/passwd": 404,
    "GET /bundles/b/%2fetc%2fpasswd": 404,
    "GET //etc/passwd": 404,
    "GET /bundles/b/out": 404,
    "GET /bundles/b/up/secret.txt": 404,
    "GET /bundles/b": 404,
    "GET /bundles/b/": 404,
    "GET /bundles/b/model": 404,
    "GET /bundles/b/model/": 404,
    "GET /bundles/b/model/model.gguf/": 404,
    "GET /bundles/": 404,
    "GET /bundles": 404,
    "GET /bundles/nobody/x": 404,
    "GET /bundles.json/": 404,
    "GET /bundles/b/x%00y": 404,
    "GET /%00": 404,
    "GET /bundles/%00/x": 404,
    "GET /bundles/b/x\0y": 404,
    "GET /bundles/b/%": 404,
    "GET /bundles/b/%zz": 404,
    "GET /bundles/b/%ff%fe": 404,
    "GET /bundles/b/\xff": 404,
    "GET /\\..\\secret.txt": 404,
    "GET /bundles/b/" + "a" * 300: 404,
    "GET /bundles/b/" + "a" * 60_000: 404,
    "GET /bundles/b/" + "a/" * 30_000: 404,
    "GET /" + "a" * 70_000: 414,
    "GET *": 400,
    "GET \\..\\secret.txt": 400,
    "GET \0": 400,
    "GET bundles.json": 400,
    "GET %2fbundles.json": 400,
    "GET ?": 400,
    "GET http://": 421,
    "GET http://[": 421,
    "GET https://127.0.0.1/": 400,
    "GET file:///etc/passwd": 400,
    "GET http://evil/bundles.json": 421,
    "POST /bundles.json": 501,
    "PUT /x": 501,
    "DELETE /bundles/b/SHA256SUMS": 501,
    "OPTIONS *": 501,
    "CONNECT evil:80": 501,
    "TRACE /": 501,
    "BREW /": 501,
}


@pytest.mark.parametrize("line", ANSWERED)
def test_answered(line, port):
    assert ask(port, line)[::2] == (200, ANSWERED[line])


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: ascii(line[:40] + str(len(line))))
def test_refused_in_words_of_http(line, port, capfd):
    status, headers, body = ask(port, line)
    assert (status, headers["X-Ours"]) == (REFUSED[line], "yes")
    assert b"SECRET" not in body and b"root:" not in body
    assert capfd.readouterr() == ("", "")  # no traceback
    assert ask(port, "GET /")[0] == 200


@pytest.mark.parametrize("line", [*[*ANSWERED, *REFUSED][:24], "GET /bundles.json"], ids=ascii)
def test_head_says_the_same_without_the_body(line, port):
    status, headers, body = ask(port, line)
    other, others, nothing = ask(port, "HEAD" + line.removeprefix("GET"))
    kept = ("Content-Type", "Content-Length", "Content-type")
    assert (other, nothing) == (status, b"")
    assert [others.get(name) for name in kept] == [headers.get(name) for name in kept] and body


def test_a_name_may_come_unescaped(port):
    assert ask(port, "GET /bundles/b/naïve%20%2541.txt".encode())[2] == b"odd file"


def test_a_bundles_file_is_no_page(port):
    ours, theirs = (ask(port, f"GET {path}")[1] for path in ("/", "/bundles/b/evil.html"))
    assert "Content-Security-Policy" not in ours
    assert theirs["Content-Security-Policy"] == "default-src 'none'; sandbox" and theirs["X-Ours"] == "yes"
    assert theirs["X-Content-Type-Options"] == "nosniff"


def test_one_connection_asks_for_one_thing_after_another(port):
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    for path, inert in (("/", False), ("/bundles/b/evil.html", True), ("/bundles.json", False), ("/", False)):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.read() and answer.status == 200 and not answer.will_close
        assert ("Content-Security-Policy" in answer.headers) == inert
    connection.close()


@pytest.mark.parametrize("isolated", [True, False])
def test_the_page_is_isolated_or_not(folder, monkeypatch, isolated):
    monkeypatch.setattr(serve_web, "PAGE", folder / "page")
    with serve_web.serving([folder / "b"], isolated=isolated) as address:
        headers = ask(int(address.rstrip("/").rpartition(":")[2]), "GET /")[1]
    assert (headers.get("Cross-Origin-Opener-Policy"), headers["X-Ours"]) == ("same-origin" if isolated else None, "yes")


def test_a_range_gets_the_whole(port):
    assert ask(port, "GET /bundles/b/model/model.gguf", "Range: bytes=2-3")[::2] == (200, MODEL)


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LocalHost:{}", "[::1]:{}"])
def test_this_machine_may_ask(host, port):
    assert ask(port, "GET /bundles.json", host=host)[0] == 200
    assert ask(port, f"GET http://{host.format(port)}/bundles.json", host="anybody")[0] == 200
    assert ask(port, f"GET http://{host.format(port)}", host="anybody")[2] == b"<h1>page</h1>"


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",
        "attacker.example:{}",
        "127.0.0.1",
        "localhost",
        "localhost:1",
        "localhost.:{}",
        "localhost.attacker.example:{}",
        "127.0.0.1.attacker.example:{}",
        "127.0.0.1:{}.attacker.example",
        "127.0.0.1:{}@attacker.example",
        "user@localhost:{}",
        "0.0.0.0:{}",
        "192.168.0.1:{}",
        "é:{}",
        "",
    ],
)
def test_a_name_that_leads_here_from_elsewhere_may_not(host, port):
    for method in ("GET", "HEAD"):
        assert ask(port, f"{method} /bundles.json", host=host)[0] == 421


def test_a_request_names_one_host(port):
    assert ask(port, "GET /", host=None)[0] == 400
    assert ask(port, "GET /", f"Host: localhost:{port}")[0] == 400
    assert ask(port, "GET /", "Host: attacker.example")[0] == 400


def test_a_bundle_that_is_gone_is_not_listed(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(serve_web, "PAGE", folder / "page")
    with serve_web.serving([folder / "b", tmp_path]) as address:
        found = json.loads(ask(int(address.rstrip("/").rpartition(":")[2]), "GET /bundles.json")[2])
    assert [item["name"] for item in found] == ["b"]

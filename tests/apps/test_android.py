"""The Android sample's classes on a JVM: bundles brought, resumed and refused, text tokenized, greedy tokens of the desktop's."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from exporter.bundle.folder import BundleOptions, sums_digest, write_bundle
from exporter.bundle.verify_bundle import verify
from exporter.onnx.library import add_library
from tests import native
from tests.apps.answering import Answering
from tests.apps.changes import MORE, READ_BESIDES
from tests.apps.desktop import check_greedy
from tests.exporter.bundles import elf
from tests.exporter.test_verify_bundle import DATA, LIBRARY, STRUCTURAL
from tests.runtime_checks.made import make
from tests.tiny import write_tokenizer
from tests.vocabularies import NASTY, uncut_tokenizer

COUNT = 32
PART = 1 << 15
AT_LEAST = 16  # tokens that no near tie may spoil
SINGLE_BYTES = 20
CHANGES = {case: change for case, (change, _) in STRUCTURAL.items()} | MORE
# Nothing can be listed, so what is too many or no plain file is not seen.
NOT_SEEN = {"extra", "hidden", "a name of two lines", "an empty folder", "a pipe", "a link", "a linked folder"}
NOT_SEEN |= {"folders without end", "a file far down", "a hidden folder"}
# An app has one platform, and takes no library from a bundle.
LOOKS_NOT_INTO = {"another platform", "an ABI of nobody", "an ABI of a million letters", "the wrong ABI", "glibc"}
OWN_WORDS = {
    "lengthened": "MODEL_CARD.md: more than",
    "renamed": "model/tokenizer.json: missing",
    "no manifest, sealed": "manifest.json: missing",
    "a sum left out": "MODEL_CARD.md: only in manifest.json, not in SHA256SUMS",
    "the future": "manifest.json: version 2 is from the future, 1 is known here; update the app",
    "another size": f"{DATA}.00001-of-00003: more than 7 bytes: too long",
    "a size that no double holds": f"{DATA}.00001-of-00003: 32,768 bytes instead of 9,007,199,254,740,993: truncated",
    "a size of far too many digits": "manifest.json: is no manifest of adadim-bundle",  # org.json reads no infinite number
}


class Jvm(Answering):
    """tests/apps/jvm/Client.kt, which answers each line of JSON with one."""

    def __init__(self) -> None:
        folder = native.built("build/apps/android/sample.jar").parent
        libraries = folder / "native"
        properties = (f"-Donnxruntime.native.path={libraries}", "-Xshare:auto", "-XX:TieredStopAtLevel=1")
        command = ["java", *properties, "-cp", f"{folder}/*", "ai.adadim.sample.ClientKt"]
        super().__init__(command, LD_LIBRARY_PATH=str(libraries))


@pytest.fixture(scope="module")
def jvm() -> Iterator[Jvm]:
    with Jvm() as jvm:
        yield jvm


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "lib.so").write_bytes(elf())
    options = BundleOptions("android", part_size=PART, libraries={"arm64-v8a": folder / "lib.so"})
    write_bundle(make(folder, "onnx-adadim").file, folder / "bundle", options)
    return folder / "bundle"


@pytest.fixture
def bundle(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def install(jvm: Jvm, bundle: Path | str, folder: Path, digest: str) -> dict:
    return jvm.ask(source=str(bundle), folder=str(folder), digest=digest)


def test_a_bundle_lies_whole_in_the_app(jvm, bundle, tmp_path):
    answer = install(jvm, bundle, tmp_path / "app", sums_digest(bundle).upper())
    assert answer["model"] == "model/model.onnx"
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    for file in files:
        parts = b"".join((bundle / part["path"]).read_bytes() for part in file.get("parts", [file]))
        if file["path"] == LIBRARY:
            assert not (tmp_path / "app" / LIBRARY).exists()
        else:
            assert (tmp_path / "app" / file["path"]).read_bytes() == parts
    assert answer["progress"] == sorted(answer["progress"])
    assert answer["progress"][-1] == sum(file["bytes"] for file in files if file["path"] != LIBRARY)
    again = install(jvm, "/nowhere", tmp_path / "app", sums_digest(bundle))
    assert again["model"] == "model/model.onnx" and again["opened"] == 0  # checked again, without a network


@pytest.mark.parametrize("case", sorted(CHANGES.keys() - NOT_SEEN))
def test_what_was_changed_is_named(case, jvm, bundle, tmp_path):
    digest = sums_digest(bundle)
    CHANGES[case](bundle)
    sealed = (bundle / "SHA256SUMS").is_file() and sums_digest(bundle) != digest
    pinned = install(jvm, bundle, tmp_path / "pinned", digest)
    if sealed:
        assert pinned["problem"] == f"SHA256SUMS: its sha256 is {sums_digest(bundle)}, not {digest}: not the bundle asked for"
        digest = sums_digest(bundle)
    answer = install(jvm, bundle, tmp_path / "app", digest)
    if case in LOOKS_NOT_INTO:
        assert answer["model"] == "model/model.onnx"
    elif case in OWN_WORDS:
        assert answer["problem"].startswith(OWN_WORDS[case])
    else:
        assert answer["problem"] in verify(bundle)
    assert len(answer.get("problem", "")) < 1000


@pytest.mark.parametrize("case", READ_BESIDES)
def test_it_does_not_take_what_it_cannot_use(case, jvm, bundle, tmp_path):
    change, end = READ_BESIDES[case]
    change(bundle)
    answer = install(jvm, bundle, tmp_path / "app", sums_digest(bundle))
    assert answer["problem"] == f"manifest.json: lacks what every manifest has {end}"


def test_every_changed_byte_is_found(jvm, bundle, tmp_path):
    draw, digest = random.Random(7), sums_digest(bundle)
    paths = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != Path(LIBRARY).name)
    for index in range(SINGLE_BYTES):
        path = paths[index % len(paths)]
        held = path.read_bytes()
        data = bytearray(held)
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        path.write_bytes(data)
        answer = install(jvm, bundle, tmp_path / f"app{index}", digest)
        assert answer["problem"].startswith(f"{path.relative_to(bundle).as_posix()}: its sha256 is ")
        path.write_bytes(held)


def test_what_was_damaged_in_the_app_is_brought_again(jvm, bundle, tmp_path):
    digest, data = sums_digest(bundle), tmp_path / "app" / DATA
    install(jvm, bundle, tmp_path / "app", digest)
    held = data.read_bytes()
    data.write_bytes(held[:100] + b"x" + held[101:])
    answer = install(jvm, bundle, tmp_path / "app", digest)
    assert answer["opened"] == len(list(bundle.glob(DATA + ".*")))
    assert data.read_bytes() == held


class Failing(SimpleHTTPRequestHandler):
    """A server that breaks off in the middle of one file, once."""

    breaks_at: str | None = None
    broken: str | None = None
    asked: tuple[str, ...] = ()

    def log_message(self, *_args: object) -> None:
        pass

    def do_GET(self) -> None:
        Failing.asked += (self.path[1:],)
        if self.path[1:] != Failing.breaks_at:
            return super().do_GET()
        Failing.broken, Failing.breaks_at = Failing.breaks_at, None
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:1000])
        return None


@pytest.fixture
def server(bundle) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Failing, directory=str(bundle))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_download_goes_on_with_the_part_that_broke_off(jvm, bundle, server, tmp_path):
    digest, last = sums_digest(bundle), sorted(bundle.glob(DATA + ".*"))[-1]
    Failing.breaks_at = last.relative_to(bundle).as_posix()
    assert install(jvm, server, tmp_path / "app", digest)["problem"].startswith(f"{Failing.broken}: 1,000 bytes instead of ")
    assert (tmp_path / "app" / DATA).stat().st_size == sum(
        path.stat().st_size for path in bundle.glob(DATA + ".*")
    ) - last.stat().st_size
    Failing.asked = ()
    answer = install(jvm, server, tmp_path / "app", digest)
    assert answer["model"] == "model/model.onnx"
    assert Failing.asked[0] == last.relative_to(bundle).as_posix()
    assert answer["progress"][-1] > PART and "SHA256SUMS" not in Failing.asked


def test_a_server_without_the_bundle(jvm, server, tmp_path):
    assert install(jvm, server + "elsewhere/", tmp_path / "app", "0" * 64)["problem"] == "SHA256SUMS: missing"


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def with_qwens_cuts(path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    split = pre_tokenizers.Split(Regex(QWEN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.save(str(path))


@pytest.mark.parametrize("kind", ["digits", "uncut", "qwen"])
def test_tokens_are_the_tokenizers_librarys(kind, jvm, tmp_path):
    write_tokenizer(tmp_path, 400)
    path = tmp_path / "tokenizer.json"
    if kind != "digits":
        path.write_text(json.dumps(uncut_tokenizer()))
    if kind == "qwen":
        with_qwens_cuts(path)
    tokenizer = Tokenizer.from_file(str(path))
    answer = jvm.ask(tokenizer=str(path), texts=NASTY)
    expected = [tokenizer.encode(text).ids for text in NASTY]
    assert answer["ids"] == expected
    assert answer["decoded"] == [tokenizer.decode(ids) for ids in expected]


@pytest.mark.parametrize("form", ["onnx-oc", "onnx-split", "onnx-adadim", "onnx-adadim, native"])
def test_it_gives_the_desktop_runtimes_greedy_tokens(form, jvm, tmp_path):
    form, _, with_library = form.partition(", ")
    made = make(tmp_path, form)
    write_bundle(made.file, tmp_path / "bundle", BundleOptions("android", part_size=PART))
    digest = sums_digest(tmp_path / "bundle")
    install(jvm, tmp_path / "bundle", tmp_path / "app", digest)
    library = {}
    if with_library:  # which rounds activations, and the portable body doesn't
        add_library(made.file, native.library())
        library = {"library": str(native.library())}
    answer = jvm.ask(folder=str(tmp_path / "app"), digest=digest, prompt="The quick brown fox", count=COUNT, **library)
    tokenizer = Tokenizer.from_file(str(made.file / "tokenizer.json"))
    assert answer["prompt"] == tokenizer.encode("The quick brown fox").ids
    assert len(answer["tokens"]) == COUNT
    assert answer["text"] == tokenizer.decode(answer["tokens"])
    assert check_greedy(made.file, answer["prompt"], answer["tokens"]) >= AT_LEAST

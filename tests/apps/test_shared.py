"""apps/shared in Node: it says of a tampered bundle what verify_bundle.py says, and tokenizes as the tokenizers library does."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from exporter.bundle.folder import BundleOptions, sums_digest, write_bundle
from exporter.bundle.verify_bundle import verify
from tests.apps.changes import MORE, READ_BESIDES
from tests.apps.desktop import prompt_ids
from tests.apps.nodejs import APPS, NodeScript, bundle_script
from tests.exporter.bundles import elf
from tests.exporter.test_verify_bundle import DATA, STRUCTURAL
from tests.runtime_checks.made import make
from tests.tiny import write_tokenizer
from tests.vocabularies import NASTY, uncut_tokenizer

CHANGES = {case: change for case, (change, _) in STRUCTURAL.items()} | MORE
# A browser is shown files only, and no links.
NOT_LISTED = ("a link", "a linked folder", "a pipe", "an empty folder", "folders without end")
# These clients load no native library, and do not look into one.
LIBRARIES = ("an ABI of nobody", "an ABI of a million letters", "the wrong ABI", "glibc")
OTHER_WORDS = {"the future": " get a newer"}  # after these
OWN_WORDS = {
    "a size of a fraction": f"{DATA}: its parts join to",  # to JSON.parse 1.0 is 1, which is not the file's size
    "a size that no double holds": "manifest.json: lacks what every manifest has (a part's bytes)",  # JSON.parse rounds it
}
SINGLE_BYTES = 8


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[NodeScript]:
    script = tmp_path_factory.mktemp("client") / "client.mjs"
    with NodeScript(bundle_script(APPS / "shared" / "test" / "client.ts", script)) as client:
        yield client


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """As that of test_verify_bundle.py, whose ways to tamper are used here."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "lib.so").write_bytes(elf())
    options = BundleOptions("android", part_size=1 << 15, libraries={"arm64-v8a": folder / "lib.so"})
    write_bundle(make(folder, "onnx-adadim").file, folder / "bundle", options)
    return folder / "bundle"


@pytest.fixture
def bundle(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def problems(client: NodeScript, folder: Path, *, listed: bool = True, **digest: str) -> list[str]:
    return client.ask(path=str(folder), listed=listed, **digest)["problems"]


def test_a_whole_bundle(client, bundle):
    digest = sums_digest(bundle)
    for listed in (True, False):
        answer = client.ask(path=str(bundle), listed=listed, digest=digest.upper())
        assert answer == {"problems": [], "digest": digest, "model": "model/model.onnx"}


@pytest.mark.parametrize("case", sorted(CHANGES.keys() - NOT_LISTED))
def test_it_says_what_verify_bundle_says(case, client, bundle):
    digest = sums_digest(bundle)
    CHANGES[case](bundle)
    expected, found = verify(bundle), problems(client, bundle)
    if case in LIBRARIES:
        assert found == []  # but the digest tells
    elif case in OTHER_WORDS:
        assert [line.partition(OTHER_WORDS[case])[0] for line in found] == [
            line.partition(OTHER_WORDS[case])[0] for line in expected
        ]
    elif case in OWN_WORDS:
        assert expected and len(found) == 1 and found[0].startswith(OWN_WORDS[case])
    else:
        assert found == expected != []
    assert all(len(line) < 1000 for line in found)
    assert problems(client, bundle, digest=digest)
    assert problems(client, bundle, digest=digest, listed=False) or all(
        "extra" in line or "no plain name" in line for line in found
    )


@pytest.mark.parametrize("case", READ_BESIDES)
def test_it_does_not_take_what_it_cannot_use(case, client, bundle):
    change, end = READ_BESIDES[case]
    change(bundle)
    assert verify(bundle) == []
    assert problems(client, bundle) == [f"manifest.json: lacks what every manifest has {end}"]


def test_a_changed_byte_is_named_where_nothing_can_be_listed(client, bundle):
    draw = random.Random(6)
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    for path in draw.sample(paths, SINGLE_BYTES):
        held = path.read_bytes()
        data = bytearray(held)
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        path.write_bytes(data)
        found = problems(client, bundle, listed=False)
        assert found
        if path.name != "SHA256SUMS":
            assert [line.split(":")[0] for line in found] == [path.relative_to(bundle).as_posix()]
        path.write_bytes(held)


@pytest.mark.parametrize("kind", ["digits", "uncut"])
def test_tokens_are_the_tokenizers_librarys(kind, client, tmp_path):
    write_tokenizer(tmp_path, 400)
    if kind == "uncut":
        (tmp_path / "tokenizer.json").write_text(json.dumps(uncut_tokenizer()))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    answers = client.ask(path=str(tmp_path), texts=NASTY)
    for text, answer in zip(NASTY, answers, strict=True):
        ids = tokenizer.encode(text).ids
        decoded = tokenizer.decode(ids)
        assert answer["ids"] == ids
        assert answer["prompt"] == prompt_ids(tmp_path, text)
        assert answer["decoded"] == "".join(answer["pieces"]) == decoded

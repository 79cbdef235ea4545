"""The site is built without a warning, its links lead somewhere, what pages name exists, and a person can read them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import make_reference
import pytest

from exporter.cli.options import build_parser
from exporter.cli.size import model_plan
from exporter.cli.spelling import quantize_config
from quantize import open_checkpoint
from quantize.checkpoint import Checkpoint
from quantize.statistics.measured import Measured
from tests.prose import CODE, FENCED, command_lines, paragraphs, sentences, words
from tests.test_smollm2 import fetched

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
STYLED = [page for page in PAGES if page.parent.name in ("guides", "methods", "reference")]
GUIDES = [ROOT / "README.md", *(page for page in STYLED if page.parent.name != "reference")]
BEFORE_ANOTHER = ("export", "bundle", "bench")  # commands that another word follows
OPTIONS_OF_NODE = {"--json", "--threads", "--digest"}
PATH = re.compile(r"\bdocs/[\w/-]+\.(?:md|json|png|svg)\b")
NAMES_OF_OTHERS = ("CHANGELOG.md", "runtime_checks/reference/gguf.py")  # of the past, and of ggml
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\ssrc=\"([^\"]*)\"|<link\b[^>]*\shref=\"([^\"]*)\"|url\(\s*[\"']?([^\"')]*)"
)
LINK = re.compile(r"<a\b[^>]*\shref=\"([^\"]*)\"")
ANCHOR = re.compile(r"\sid=\"([^\"]*)\"")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs/site", ".", out]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_the_site(site):
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html"))}
    assert len(pages) > 12
    anchors = {page: set(ANCHOR.findall(text)) for page, text in pages.items()}
    for page, text in pages.items():
        loaded = [name for names in LOADED.findall(text) for name in names if name]
        assert not [name for name in loaded if re.match(r"(https?:)?//", name)], page
        for link in LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or target.suffix != ".html" or anchor in anchors[target], f"{page.name}: {link}"
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert not re.search(r"url\(\s*[\"']?(https?:)?//", styles)
    for name in ("quantize.quantize_checkpoint", "exporter.gguf.file.write_gguf", "runtime_checks.measure.compare.compare_files"):
        assert any(name in found for found in anchors.values()), name


def _id(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_options_that_are_named_exist(page):
    parsers = dict(make_reference.commands(build_parser()))
    for line in command_lines(page.read_text(encoding="utf-8")):
        name = next((" ".join(line[:count]) for count in (2, 1) if " ".join(line[:count]) in parsers), None)
        if name is None and (line[0] in BEFORE_ANOTHER or line[0].isupper()):  # `adadim COMMAND --help`
            continue
        assert name is not None, f"adadim {' '.join(line)}"
        known = parsers[name]._option_string_actions
        unknown = [word for word in line if word.startswith("-") and word.partition("=")[0] not in known]
        assert not unknown, f"adadim {name} has no {' '.join(unknown)}"


@pytest.mark.parametrize("page", GUIDES, ids=_id)
def test_options_by_themselves_exist(page):
    """Those of code spans that begin with an option: some command of ours has it, or a client in JavaScript."""
    page_text = page.read_text(encoding="utf-8")
    named = {match[1].split()[0].partition("=")[0] for match in CODE.finditer(page_text) if match[1].startswith("--")}
    known = {option for _, parser in make_reference.commands(build_parser()) for option in parser._option_string_actions}
    assert named <= known | (OPTIONS_OF_NODE if page.stem == "node" else set())


@pytest.mark.parametrize("page", GUIDES, ids=_id)
def test_lines_that_are_run_parse(page):
    for kind, lines in FENCED.findall(page.read_text(encoding="utf-8")):
        for line in command_lines(f"{kind}\n{lines}```\n") if kind == "```sh" else ():
            build_parser().parse_args(line)


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    return open_checkpoint(fetched())


@pytest.mark.parametrize("page", [page for page in STYLED if page.parent.name == "methods"], ids=_id)
def test_what_pages_of_methods_quantize_fits_their_model(page, smollm2):
    for line in command_lines(page.read_text(encoding="utf-8")):
        if line[:2] == ["quantize", "$MODEL"]:
            args = build_parser().parse_args(line)
            assert model_plan(args, quantize_config(args, smollm2), Measured(smollm2), args.target).tensors


def test_readme_is_short():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme.splitlines()
    assert len(lines) <= 70
    assert max(map(words, paragraphs(readme))) <= 60
    assert any("pip install" in line for line in lines[:12])
    assert all(len(line) <= 130 for line in lines if not line.startswith("|"))
    assert "`make demo`" in readme and "`make test`" in readme


@pytest.mark.parametrize("page", [ROOT / "README.md", *STYLED], ids=_id)
def test_sentences_are_short(page):
    text = page.read_text(encoding="utf-8")
    lengths = list(map(words, sentences(text)))
    assert max(lengths) <= 35, [sentence for sentence in sentences(text) if words(sentence) > 35]
    assert sum(lengths) / len(lengths) < 18
    assert max(map(words, paragraphs(text))) <= 90, [item for item in paragraphs(text) if words(item) > 90]


@pytest.mark.parametrize("name", make_reference.PAGES)
def test_what_is_made_from_the_parser_is_as_it_would_be_made(name):
    made = make_reference.PAGES[name]()
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == made, "run tools/make_reference.py"


def test_pages_and_pictures_that_are_named_are_there():
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = {}
    for file in files.stdout.splitlines():
        if file not in NAMES_OF_OTHERS and Path(file).suffix not in (".png", ".svg", ".json") and (ROOT / file).is_file():
            named |= dict.fromkeys(PATH.findall((ROOT / file).read_text(encoding="utf-8")), file)
    assert len(named) > 20
    assert not {path: file for path, file in named.items() if not (ROOT / path).exists()}

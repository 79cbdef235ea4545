"""Names and addresses of the hub where a path is wanted: nothing is downloaded here, but the command that does it is told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

HUB = re.compile(r"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/+(?:models/+)?|hf:/+")
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):/+(?=\S)", re.IGNORECASE)  # pathlib makes one stroke of two
HUB_ID = re.compile(r"([\w.-]+/)?[\w.-]+")  # "openai/gpt-2", and "gpt2", of the hub's first days
TAGGED = re.compile(r"([\w.-]+/[\w.-]+):(\w+)")  # ORG/NAME:Q4_K_M, as llama.cpp and ollama take it
FILES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors", ".gguf", ".onnx", ".json", ".zip")
OF_A_FOLDER = (".safetensors", ".json", ".bin", ".onnx", ".jinja")  # these are of no use alone


def to_download(path: Path, certain: bool = False) -> str | None:
    """How to download what a path that is not there names on the hub or the web, or None for one that can only be a path.

    ``certain``: a name that may as well be a path's is taken for one.
    """
    word = str(path)
    on_hub = HUB.match(word)
    if on_hub is not None:
        return _from_address(word[on_hub.end() :])
    scheme = SCHEME.match(word)
    if scheme is not None:
        url = word if scheme[1].lower() == "file" else f"{scheme[1]}://{word[scheme.end() :]}"
        if scheme[1].lower() == "file":
            return f"name it as a path: {shlex.quote('/' + word[scheme.end() :])}"
        return _first(f"curl -LO {shlex.quote(url)}", Path(word.partition("?")[0]).name)
    tagged = TAGGED.fullmatch(word)
    if tagged is not None:
        return _of_repository(tagged[1], f"--include '*{tagged[2]}*' ")
    if not certain and HUB_ID.fullmatch(word) and path.suffix not in FILES:
        return f"if it is a name on the hub: {_of_repository(word)}"
    return None


def _from_address(rest: str) -> str:
    parts = [part for part in re.split(r"[?#]", rest)[0].split("/") if part]
    repository, tail = "/".join(parts[:2]), parts[2:]
    if tail[:1] == ["tree"] and len(tail) > 1 and tail[1] != "main":
        return _of_repository(repository, f"--revision {shlex.quote(tail[1])} ")
    if tail[:1] in (["blob"], ["resolve"]) and len(tail) > 2 and not tail[-1].endswith(OF_A_FOLDER):
        file = "/".join(tail[2:])
        name = repository.rpartition("/")[2]
        return _first(
            f"hf download {shlex.quote(repository)} {shlex.quote(file)} --local-dir {shlex.quote(name)}", f"{name}/{file}"
        )
    return _of_repository(repository or "ORG/NAME")


def _of_repository(repository: str, options: str = "") -> str:
    name = repository.rpartition("/")[2]
    return _first(f"hf download {shlex.quote(repository)} {options}--local-dir {shlex.quote(name)}", name)


def _first(command: str, name: str) -> str:
    return f"nothing is downloaded here; first: {command}; then the same again with {shlex.quote(name)} in its place"

"""From a word of another tool to the right one: what means the same is replaced, for the rest there is a line to say."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePath

from exporter.cli.words import ALIASES, COMMANDS, FORMATS, OPTIONS, TARGETS
from quantize.errors import shown
from quantize.grids import GRIDS

NEAR = 0.75  # from which on two words are one misspelt; --scheme and --seed are 0.55
FOREIGN = {word for row in (*OPTIONS, *COMMANDS) for word in row.words.split()}  # what is meant by these is known
SHORTEST_BEGINNING = 3  # of a word, by which the rest can be guessed
ONE_GRID = "one of --bits 4, --grid q4_0 and --target-size 105MB says what weights become"
MODEL_FILES = (".gguf", ".safetensors", ".onnx")
BITS = {"2", "3", "4", "5", "8"}
_NEGATIVE = re.compile(r"-\d+$|-\d*\.\d+$")  # as argparse has it
_MIX = re.compile(r"q\d_k_(?:s|m|l|xl)")
_ABSENT = re.compile(r"[it]q\d_\w+|q\d_[k0]_\w+")
_LAYOUT = re.compile(r"w(\d)a(\d+)(?:_asym)?")
_BITS = re.compile(r"(?:u?int|nf|nvfp|mxfp|fp|q|w)?-?(\d)(?:-?bits?|f16|f32)?")
_FLOATS = ("f16", "bf16", "f32", "fp16", "fp32", "float16", "bfloat16", "float32", "half", "float")


def meant(word: str, known: Iterable[object]) -> str:
    """For the end of a message: which of the known words is misspelt in this one, or cut short."""
    if word.partition("=")[0].replace("_", "-") in FOREIGN:
        return ""
    core = word.partition("=")[0].lower().strip("-")
    words = {name.lower().strip("-"): name for name in map(str, known)}
    longer = [name for name in words if name.startswith(core)] if len(core) >= SHORTEST_BEGINNING else []
    near = longer if len(longer) == 1 else difflib.get_close_matches(core, words, n=1, cutoff=NEAR)
    return f"; perhaps {words[near[0]]} is meant" if near else ""


def target_named(word: str) -> str:
    """The target that a word stands for, in any case; a word that stands for none is left as it is."""
    return TARGETS.get(word.lower(), word.lower())


def quantized(word: str) -> str:
    """How weights become what another tool calls so; ONE_GRID where that is not known."""
    name = word.lower().removeprefix("gguf:").removeprefix("mostly_")
    bits, layout = _BITS.fullmatch(name), _LAYOUT.fullmatch(name)
    if name in GRIDS:
        return f"use --grid {name}{_rows(name)}"
    if name in _FLOATS:
        return "weights are quantized here; a GGUF of floats is written by llama.cpp's convert_hf_to_gguf.py, 8 bits by --bits 8"
    if layout is not None and layout[1] in BITS:
        more = "activations stay floats" if layout[2] != "16" else "on onnxruntime also --group-size 128"
        return f"use --bits {layout[1]}; {more}"
    if bits is not None and bits[1] in BITS:
        return f"use --bits {bits[1]}"
    if _ABSENT.fullmatch(name):
        return _of_llama_quantize(word, re.sub(r"\D", "", name)[0])
    return ONE_GRID


def _of_llama_quantize(word: str, digit: str) -> str:
    is_mix, grid = _MIX.fullmatch(word.lower()), f"q{digit}_k"
    one = [f"--grid {grid}{_rows(grid)}"] if grid in GRIDS else []
    ways = [*one, *([f"--bits {digit}"] if digit in BITS else []), "--target-size 105MB, for which every tensor's grid is chosen"]
    told = "a mix of llama-quantize" if is_mix else "no grid that is written here"
    return f"{shown(word)} is {told}; use {' or '.join(ways)}"


def _rows(grid: str) -> str:
    """What a grid of 256 asks of a model."""
    found = GRIDS[grid]
    return f" (where {found.block_size} divides the rows)" if not isinstance(found, type) and found.block_size > 32 else ""


def number_meant(word: str) -> str:
    """For the end of a message: the one number in a word that is none, as 4bit."""
    name, digits = word.lower(), re.findall(r"\d+", word)
    if name in GRIDS or (_ABSENT.fullmatch(name) and not _BITS.fullmatch(name)):
        return f"; {quantized(word)}"
    in_words = len(digits) == 1 and digits != [name] and re.fullmatch(r"[a-z]*-?\d+-?[a-z]*", name)
    return f"; perhaps {digits[0]} is meant" if in_words else ""


def grid_named(word: str) -> str:
    """A grid's name, in any case. Raises ArgumentTypeError for what is none, and is known from another tool."""
    name = word.lower()
    if name not in GRIDS and _ABSENT.fullmatch(name):
        raise argparse.ArgumentTypeError(quantized(word))
    return name


class Words:
    """The words after a command, seen as its ``parser`` sees them: each one an option of its own, a value, or an operand."""

    def __init__(self, prog: str, actions: Sequence[argparse.Action]) -> None:
        self._prog = prog
        self._options = {name: action for action in actions for name in action.option_strings}
        self._operands = [action for action in actions if not action.option_strings and action.nargs != argparse.PARSER]
        self._most = sum(map(_values, self._operands))

    def read(self, words: Sequence[str]) -> tuple[list[str], str | None]:
        """The words as the parser knows them, and what to say of the first that is another tool's, if there is one."""
        out, said, types, taken, operands = list[str](), list[str](), list[str](), 0, 0
        for index, word in enumerate(words):
            if word == "--":
                out += words[index:]
                break
            if not _is_option(word):
                if not taken:
                    operands += 1
                    if operands > self._most:
                        types += self._type(word)
                        said += self._surplus(word, words)
                taken = max(0, taken - 1)
                out.append(word)
                continue
            own = self._spelled(word)
            out.append(own)
            action = self._options.get(own.partition("=")[0])
            taken = 0 if "=" in own else 1 if action is None else _values(action)
            if action is None:
                said += self._foreign(word, words[index + 1 : index + 2])
        asks = {"-h", "--help"} & {*out}
        return out, None if asks else next(iter(types + said), None)

    def _spelled(self, word: str) -> str:
        """An option as it is spelt here: --group_size, -o and -oFILE are known."""
        name, equals, value = word.partition("=")
        for own in (name, ALIASES.get(name, ""), name.replace("_", "-"), ALIASES.get(name.replace("_", "-"), "")):
            if own in self._options:
                return own + equals + value
        if word[:2] == "-o" and "--out" in self._options and len(word) > 2 and word[2] in "./~":
            return f"--out={word[2:]}"
        return word

    def _foreign(self, word: str, following: Sequence[str]) -> list[str]:
        name, equals, value = word.partition("=")
        if not equals and following and not _is_option(following[0]):
            value = following[0]
        spelt = name.replace("_", "-")
        spelt = ALIASES.get(spelt, spelt)
        row = next((row for row in OPTIONS if spelt in row.words.split() and self._fits(row.needs)), None)
        if row is None:
            return []
        texts = _texts(value) | {"prog": self._prog, "first": str(self._operands[0].metavar) if self._operands else ""}
        return [f"{name}: not an option here; {row.says.format_map(texts)}"]

    def _fits(self, needs: str) -> bool:
        if needs == "operand":
            return bool(self._operands)
        return not needs or needs in self._options or needs in self._prog.split()

    def _type(self, word: str) -> list[str]:
        """What to say of an operand more than there are, where it is a type, as llama-quantize takes one."""
        known = "--grid" in self._options and not word.isdecimal() and quantized(word) != ONE_GRID
        return [f"{shown(word)}: not a word of its own here; {quantized(word)}"] if known else []

    def _surplus(self, word: str, words: Sequence[str]) -> list[str]:
        """And where it may be the output or the source, which have options here."""
        for option in ("--out", "--source"):
            given = {option, *(name for name, own in ALIASES.items() if own == option)}
            if option in self._options and not given & {part.partition("=")[0] for part in words}:
                wanted = str(self._options[option].metavar)
                value = wanted if PurePath(word).suffix and not wanted.startswith("FILE") else _quoted(word)
                return [f"{shown(word)}: a second word is not taken; use {option} {value}"]
        return []


def command_words(words: Sequence[str], known: Collection[str]) -> list[str]:
    """The words of a command line as the parser of commands ``known`` takes them: one for a command of two, --help for help."""
    if words and words[0] == "help":
        return [*command_words(words[1:], known), "--help"]
    if words and words[0] == "version" and "run" in known:
        return ["--version", *words[1:]]
    if " ".join(words[:2]) in known:
        return [" ".join(words[:2]), *words[2:]]
    if words and words[0] not in known:
        own = FORMATS.get(target_named(words[0]), words[0])
        return [own if own in known else words[0], *words[1:]]
    return list(words)


def command_meant(words: Sequence[str], known: Collection[str]) -> str | None:
    """What to say of a command of ``adadim`` that is none: another tool's, or what a command should be given."""
    if not words or words[0] in known or "run" not in known:
        return None
    following = next((word for word in words[1:] if not _is_option(word)), "")
    row = next((row for row in COMMANDS if words[0].lower() in row.words.split()), None)
    if row is not None:
        return f"{words[0]}: not a command here; {row.says.format_map(_texts(following))}"
    if "/" in words[0] or PurePath(words[0]).suffix in MODEL_FILES:
        return f"{shown(words[0])}: a command comes first, as in: adadim run {_quoted(words[0])} --out DIR"
    return None


def _is_option(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and " " not in word and not _NEGATIVE.match(word)


def _values(action: argparse.Action) -> int:
    """How many words an option or an operand takes; 1000 for as many as there are."""
    if action.nargs in ("+", "*"):
        return 1000
    return 0 if action.nargs == 0 else 1


def _quoted(word: str) -> str:
    return shlex.quote(shown(word))


def _texts(value: str) -> dict[str, str]:
    """What a row's text may name; without a value, or with one that cannot be meant, a word that stands for it."""
    name = value.partition(":")[0] if re.fullmatch(r"[\w.-]+/[\w.-]+(:\S+)?", value) else ""
    own = target_named(value)
    texts = {"any": "X", "file": "FILE", "model": "MODEL", "out": "OUT", "repo": "ORG/NAME", "number": "N", "grid": "GRID"}
    given = {"any": value, "model": value, "out": value, "repo": name, "number": value if value.isdecimal() else ""}
    given["file"] = value if PurePath(value).suffix else ""
    given["grid"] = value.lower() if value.lower() in GRIDS else ""
    texts |= {key: _quoted(word) for key, word in given.items() if word}
    return texts | {
        "format": FORMATS.get(own, "gguf"),
        "quantized": quantized(value),
        "target": f"use --target {own}" if own in FORMATS else "written are GGUF and ONNX: --target llama.cpp or onnxruntime",
    }

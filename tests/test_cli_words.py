"""Words of other tools: those that mean the same do the same, for the others one line has the right word in it."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest

from exporter.cli.advice import meant
from exporter.cli.main import main
from exporter.cli.options import build_parser
from exporter.cli.words import ALIASES, COMMANDS, OPTIONS, START, TARGETS
from exporter.targets import TARGETS as OURS
from quantize.grids import GRIDS

OTHERS = {"--local-dir"}  # options of `hf`
WITH_OUT = [f"{name} m --out o" for name in ("quantize", "run", "sensitivity", "imatrix", "export gguf", "export onnx")]
WITH_OUT += ["bundle f --platform web --out o", "report --out o"]
MIX = "is a mix of llama-quantize; use --grid q4_k (where 256 divides the rows) or --bits 4 or --target-size 105MB"


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of commands that have no commands of their own."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield parser
    for action in nested:
        for each in action.choices.values():
            yield from leaves(each)


LEAVES = list(leaves(build_parser()))
COMMAND_NAMES = [
    name for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction) for name in action.choices
]
EVERY_OPTION = {name for parser in LEAVES for name in parser._option_string_actions}


def error(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """What is said, in one line."""
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(line))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.strip()


def parse(line: str) -> argparse.Namespace:
    return build_parser().parse_args(shlex.split(line))


@pytest.mark.parametrize("command", WITH_OUT)
@pytest.mark.parametrize("spelling", ["-o o", "--output o", "--output=o", "-o./o"])
def test_o_and_output_mean_out(command, spelling):
    other = parse(command.replace("--out o", spelling))
    assert vars(other) == vars(parse(command))


@pytest.mark.parametrize("command", ["quantize m --out o", "sensitivity m --out o", "run m --out o"])
@pytest.mark.parametrize("word", [*TARGETS, "GGUF", "Onnx", "llama.cpp", "ONNXRuntime+AdaDim", *OURS])
def test_targets(command, word):
    found = parse(f"{command} --target {word}").target
    meant_by = TARGETS.get(word.lower(), word.lower())
    assert found == ([meant_by] if command.startswith("run") else meant_by)
    assert meant_by in OURS


@pytest.mark.parametrize(("word", "known"), [("llama.cpp", "gguf"), ("onnxruntime", "onnx"), ("GGUF", "gguf"), ("ort", "onnx")])
def test_formats_of_export(word, known):
    assert parse(f"export {word} s --out o").format == known


@pytest.mark.parametrize("option", ["grid", "embedding", "head"])
@pytest.mark.parametrize("grid", [name for name in GRIDS if name != "int"])
def test_grids_in_any_case(option, grid):
    assert getattr(parse(f"run m --out o --{option} {grid.upper()}"), option) == grid


@pytest.mark.parametrize("parser", LEAVES, ids=lambda parser: parser.prog)
def test_every_underscore_is_a_hyphen(parser):
    """No action is taken: what is asked for is only how the words are read."""
    for option in parser._option_string_actions:
        if option.startswith("--") and "-" in option[2:]:
            assert parser._known_words(["--" + option[2:].replace("-", "_") + "=x"]) == [f"{option}=x"]


@pytest.mark.parametrize("words", ["", "run", "export", "export gguf", "bundle", "bundle verify", "bench kernel"])
def test_help_is_a_command(words, capsys):
    pages = []
    for line in (f"help {words}", f"{words} --help", f"{words} -help", f"{words} -?"):
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        assert stop.value.code == 0
        pages.append(capsys.readouterr().out)
    assert len(set(pages)) == 1
    assert pages[0].startswith(f"usage: adadim {words}".strip())


def test_no_argument_at_all(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    assert out == START
    assert out.count("\n") < 12
    for line in re.findall(r"^  adadim (.*?)   ", out, re.MULTILINE):
        assert parse(line.replace("...", " b")).command in ("run", "compare", "bundle")
    assert "adadim --help" in out


NAMED = [
    *((f"quantize m --out s {word} q4_k_m", f"q4_k_m {MIX}") for word in ("--type", "--ftype", "--outtype", "--quantization")),
    ("quantize m out.gguf Q4_K_M", f"Q4_K_M {MIX}"),
    ("run m Q4_K_M --out o", f"Q4_K_M {MIX}"),
    ("run m --out o --grid Q4_K_M", f"Q4_K_M {MIX}"),
    ("run m --out o --bits q4_k_m", f"q4_k_m {MIX}"),
    ("run m --out o --quant q3_k_l", "use --grid q3_k (where 256 divides the rows) or --bits 3 or"),
    ("run m --out o --quant IQ2_XS", "use --grid iq2_xs (where 256 divides the rows);"),
    ("run m --out o --quant IQ2_M", "IQ2_M is no grid that is written here; use --grid q2_k"),
    ("run m --out o --quant Q8_0", "use --grid q8_0;"),
    ("run m --out o --type=q4_0", "--type: not an option here; use --grid q4_0;"),
    ("run m --out o --quant fancy", "one of --bits 4, --grid q4_0 and --target-size 105MB"),
    ("run m --out o --outtype bf16", "convert_hf_to_gguf.py"),
    ("run m --out o --scheme W4A16", "--scheme: not an option here; use --bits 4; on onnxruntime also --group-size 128;"),
    ("run m --out o --scheme W8A8", "use --bits 8; activations stay floats;"),
    ("run m --out o --precision int4", "use --bits 4;"),
    ("run m --out o -p int4 -e cpu", "-p: not an option here; use --bits 4;"),
    ("run m --out o -e cpu", "-e: not an option here; all is done on the CPU"),
    ("run m --out o --format gguf", "use --target llama.cpp;"),
    ("quantize m --out o --format onnx", "use --target onnxruntime;"),
    ("quantize m --out o --format mlx", "written are GGUF and ONNX"),
    ("export --format gguf s --out o", "the format is the word after export: adadim export gguf STORE"),
    ("export gguf s --out o --target onnx", "the format is the word after export: adadim export onnx STORE"),
    ("run --model m --out o", "SOURCE comes first, without an option: adadim run m;"),
    ("run -m m -o o", "SOURCE comes first, without an option: adadim run m;"),
    ("quantize --model_path m --out o", "SOURCE comes first, without an option: adadim quantize m;"),
    ("run --input m", "adadim run m;"),
    ("export gguf --store s --out o", "STORE comes first, without an option: adadim export gguf s;"),
    ("inspect --model m.gguf", "comes first, without an option: adadim inspect m.gguf;"),
    ("compare f --model m", "it was made from: --source m;"),
    ("run m --output_dir d", "use --out d;"),
    ("run m --output-dir=d", "use --out d;"),
    ("verify f --source m -o v.json", "use --json v.json;"),
    ("compare f --source m --out c.json", "use --json c.json for the numbers, or --html"),
    ("run m out", "out: a second word is not taken; use --out out;"),
    ("quantize m.gguf out.gguf", "out.gguf: a second word is not taken; use --out STORE;"),
    ("export gguf s out.gguf", "use --out out.gguf;"),
    ("verify f m", "use --source m;"),
    ("run m --out o --iters 200", "use --block-steps 200 ("),
    ("run m --out o --dataset NeelNanda/pile-10k", "use --calibration FILE, a UTF-8 text"),
    ("run m --out o --calib wiki.txt", "use --calibration wiki.txt, a UTF-8 text"),
    ("imatrix m -f wiki.txt -o o", "use --calibration wiki.txt"),
    ("eval f --source m --dataset wiki.txt", "use --text wiki.txt"),
    ("run m --out o --nsamples 128", "--calibration-tokens N"),
    ("run m --out o --seqlen 2048", "--calibration-tokens N"),
    ("run m --out o --bits 4bit", "with commas between them; perhaps 4 is meant;"),
    ("quantize m --out o --bits 4bit", "'4bit'; perhaps 4 is meant;"),
    (
        "quantize m --out o --sizes 80MB,92MB",
        "adadim run MODEL --sizes 80MB,92MB makes several files; for one use --target-size SIZE",
    ),
    ("run m --out o --device cuda", "all is done on the CPU"),
    ("run m --out o --threads 8", "OMP_NUM_THREADS=8 adadim run"),
    ("run -hf ORG/NAME:Q4_K_M", "hf download ORG/NAME --local-dir DIR"),
    ("bundle f --target android --out o", "use --platform android, ios or web"),
    ("eval f --source m --bits 4", "chosen where a model is quantized, by adadim run or adadim quantize"),
    ("make m --out o", "adadim run m --out DIR"),
    ("awq m", "adadim quantize m --out STORE"),
    ("pack m.gguf", "adadim bundle m.gguf --platform android --out DIR"),
    ("deploy", "adadim bundle FILE --platform android --out DIR"),
    ("measure m.gguf", "adadim compare m.gguf --source MODEL"),
    ("perplexity m.gguf", "adadim compare m.gguf --source MODEL"),
    ("test m.gguf", "adadim verify m.gguf --source MODEL"),
    ("check m.gguf", "adadim verify m.gguf --source MODEL"),
    ("info m.gguf", "adadim inspect m.gguf"),
    ("show m.gguf", "adadim inspect m.gguf"),
    *((f"{word} m.gguf", "llama-cli -m m.gguf") for word in ("serve", "chat", "generate")),
    ("gguf s", "adadim export gguf s --out model.gguf"),
    ("download ORG/NAME", "hf download ORG/NAME --local-dir DIR"),
    ("./model", "a command comes first, as in: adadim run ./model --out DIR"),
    ("model.gguf", "a command comes first, as in: adadim run model.gguf --out DIR"),
    ("--model m", "adadim run m --out DIR"),
    ("quantise m --out o", "perhaps quantize is meant"),
    ("run m --out o --sel hessian", "perhaps --selection is meant"),
]


@pytest.mark.parametrize(("line", "part"), NAMED)
def test_the_right_word(capsys, line, part):
    assert part in error(capsys, line)


@pytest.mark.parametrize("parser", LEAVES, ids=lambda parser: parser.prog)
def test_every_word_on_every_command(capsys, parser):
    """One line; an option that is to be used is one of this very command, any other one of ours; and nothing is guessed."""
    for word in sorted({word for row in OPTIONS for word in row.words.split()} - {*parser._option_string_actions, *ALIASES}):
        with pytest.raises(SystemExit):
            parser.parse_args([word, "x"])
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "perhaps" not in said, word
        used = re.findall(r"--[a-z][a-z-]*", "".join(re.findall(r"use (--.*)", said)).rpartition("; see")[0])
        assert {*used} <= {*parser._option_string_actions}, said
        named = {*re.findall(r"(?<!\S)--[a-z][a-z-]*", said.replace(f"{word}:", ""))}
        assert named - {word} <= EVERY_OPTION | OTHERS, said


@pytest.mark.parametrize("word", [word for row in COMMANDS for word in row.words.split()])
def test_the_commands_that_are_named_are_commands(capsys, word):
    said = error(capsys, f"{word} thing").rpartition("; see ")[0]
    assert "perhaps" not in said
    for found in re.findall(r"adadim ([a-z ]+?)(?= [A-Z{-]| thing| shows| one |$)", said.removeprefix("adadim: error: ")):
        assert any(found in (name, f"{name} gguf", f"{name} onnx") for name in COMMAND_NAMES), said


@pytest.mark.parametrize(
    "word", ["--scheme", "--model", "--s", "--se", "--test", "--devices", "--lora", "--group", "--ngl", "--hed"]
)
@pytest.mark.parametrize("parser", LEAVES, ids=lambda parser: parser.prog)
def test_no_guess_of_another_meaning(parser, word):
    assert not {"--seed", "--method", "--force", "--html"} & {*meant(word, parser._option_string_actions).split()}


@pytest.mark.parametrize("word", ["--s", "--see", "--sy", "--calibration-tok", "--gro"])
def test_no_option_is_cut_short(capsys, word):
    assert f"unrecognized arguments: {word} 3" in error(capsys, f"quantize m --out o {word} 3")

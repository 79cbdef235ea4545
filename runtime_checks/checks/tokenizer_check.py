"""Token ids and chat templates of an exported file, in the runtime that will use them, against the source's.

For a Hugging Face source the truth is its tokenizer.json in the ``tokenizers`` library; for a GGUF source it is llama.cpp's
own vocabulary of that file.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from quantize.checkpoint import Checkpoint
from quantize.errors import FileFormatError, shown
from quantize.llama_cpp.model import LlamaVocab
from quantize.onnx.native_path import native_path
from runtime_checks.checks.chat_template import CONVERSATIONS, Prompt, render_all
from runtime_checks.checks.tokenizer_truth import Encode, Truth, gguf_truth, hf_truth
from runtime_checks.measure.results import Check, noted, within
from runtime_checks.runtimes.exported import open_exported
from runtime_checks.runtimes.weights import open_gguf

EXACT = 0.0  # ids and bytes are equal or they are not
STRINGS = (
    "",
    "Hello world",
    "  two  spaces   three    four",
    "\n\n\n",
    " \n \n  \n   x \n\n y",
    "\t\ttabs\t and a trailing space ",
    "a\r\nb\rc",
    "1234567890 3.14159 1,000,000 0x7f 1e-5",
    "٣٤٥ ೧೨ x½²³",
    "naïve café e\u0301 a\u0300\u0301\u0302 Übergrößenträger",
    "東京 Москва ไทย हिन्दी مرحبا שלום ﬁ ＡＢＣ",
    "👩‍👩‍👧‍👦🇩🇪👍🏽 🧑\u200d💻 \ufffd",
    "\u00a0nbsp\u2003em\u200bzw\ufeffbom\u3000wide\u2028line",
    "\x01\x7f",
    "def f(x):\n    return x**2  # ok\n\tif (a!=b){c<<=1;}",
    "it's we'll THEY'RE I'M 'tis \"quoted\" -- it’s",
    "https://x.y/z?a=1&b=%20#q <b>bold</b> <s></s> [INST] <|im_start| <unk>",
    "_____-----=====.....!!!!!",
    "a" * 70,
    "".join(map(chr, range(32, 127))),
)
# onnxruntime-genai's own tokenizer goes astray here whatever the file says: a text ends at its first NUL, and a space stays
# with a numeral that is no decimal digit, where the source's pre-tokenizer cuts it off.
STRINGS_BEYOND_GENAI = ("\x00\x01", "½ ² Ⅻ")


def check_tokenizer(path: Path, source: Checkpoint) -> list[Check]:
    """Ids, special tokens, ends and chat prompts of a GGUF (llama.cpp) or an ONNX folder (onnxruntime-genai).

    What the runtime cannot do, and a template that is broken in the source, are noted. Raises FileFormatError if the runtime
    refuses the file's tokenizer, CheckpointError if the source's cannot be read.
    """
    with ExitStack() as stack:
        llama = open_exported(path).writer == "gguf"
        truth = gguf_truth(source, stack) if source.path.is_file() else hf_truth(source, stack, llama)
        if llama:
            return _check_template(truth) + _check_llama(path, stack.enter_context(LlamaVocab(path)), truth)
        return _check_template(truth) + _check_genai(path, truth)


def _check_template(truth: Truth) -> list[Check]:
    """Whether the source's template makes prompts at all."""
    name, prompts = "the source's chat template makes prompts", truth.prompts
    if prompts and all(prompt.text == "" for prompt in prompts.values()):
        return [noted(name, ", ".join(prompts), len(prompts), "it renders nothing, whatever the conversation")]
    broken = [(key, prompt.problem) for key, prompt in prompts.items() if prompt.problem]
    return [noted(name, key, 1, f"it cannot be rendered ({problem})") for key, problem in broken]


def _check_llama(path: Path, vocab: LlamaVocab, truth: Truth) -> list[Check]:
    checks = _check_ids("llama_tokenize", vocab.tokenize, truth, STRINGS + STRINGS_BEYOND_GENAI)
    checks += [within("llama.cpp stops at", str(token), float(not vocab.is_end(token)), EXACT) for token in truth.ends]
    metadata = open_gguf(path).metadata
    for word, ids in truth.ids.items():
        held = metadata.get(f"tokenizer.ggml.{word}_token_id")
        checks.append(within(f"{word} = source's", str(held), float(bool(ids) and held not in ids), EXACT))
    template = metadata.get("tokenizer.chat_template")
    checks.append(within("chat template = source's", path.name, float(template != truth.template), EXACT))
    mine = {} if template is None else render_all(template, {"bos_token": vocab.bos, "eos_token": vocab.eos})
    for key, prompt in truth.prompts.items():
        if not prompt.problem:
            same = key in mine and mine[key].text == prompt.text and not mine[key].problem
            checks.append(within("the GGUF's template = source's prompt", key, float(not same), EXACT))
    return checks


def _check_genai(folder: Path, truth: Truth) -> list[Check]:
    import onnxruntime_genai as genai

    try:
        with native_path(folder) as where:
            tokenizer = genai.Tokenizer(where)
    except RuntimeError as error:
        raise FileFormatError(f"{folder}: onnxruntime-genai refuses its tokenizer ({error}); export it again") from error

    def encode(text: str, add_special: bool) -> list[int]:
        tokenizer.update_options(add_special_tokens=str(add_special).lower())
        return [int(token) for token in tokenizer.encode(text)]

    checks = _check_ids("genai's encode", encode, truth, STRINGS)
    known = set(tokenizer.eos_token_ids.tolist())
    checks += [within("genai stops at", str(token), float(token not in known), EXACT) for token in truth.ends]
    for key, prompt in truth.prompts.items():
        if not prompt.problem:
            checks.append(_check_genai_prompt(tokenizer, key, prompt))
    return checks


def _check_genai_prompt(tokenizer: Any, key: str, prompt: Prompt) -> Check:  # noqa: ANN401 - genai has no types
    """Equal prompts; what the source's template refuses has to be refused too. Another text is a miss, none is not."""
    name = "genai's apply_chat_template = source's prompt"
    try:
        mine = str(tokenizer.apply_chat_template(json.dumps(CONVERSATIONS[key]), add_generation_prompt=True))
    except RuntimeError as error:
        if prompt.text is None:
            return within(name, key, 0.0, EXACT)
        return noted(name, key, 1, f"onnxruntime-genai cannot render the chat template ({shown(str(error).splitlines()[0])})")
    return within(name, key, float(mine != prompt.text), EXACT)


def _check_ids(name: str, encode: Encode, truth: Truth, strings: tuple[str, ...]) -> list[Check]:
    """Every string, the prompts, and a text around each special token; errors are counts of ids that differ."""
    texts = [*strings, *(prompt.text for prompt in truth.prompts.values() if prompt.text is not None)]
    checks = [_compare(f"{name} = source's ids", text, encode, truth) for text in texts]
    checks.append(_compare(f"{name} = source's ids, with BOS and EOS", texts[1], encode, truth, add_special=True))
    around = [(token, f"x{token}y {token} z") for token in truth.specials]
    found = [(token, _compare(name, text, encode, truth)) for token, text in around]
    wrong = [token for token, check in found if not check.ok]
    checks.append(within(f"{name} = source's special tokens", ", ".join(wrong[:3]) or "all", len(wrong), EXACT))
    notes = [(token, check.note) for token, check in found if check.note]
    if notes:
        tokens = ", ".join(token for token, _ in notes[:3])
        checks.append(noted(f"{name} = source's special tokens", tokens, len(notes), notes[0][1]))
    return checks


def _compare(name: str, text: str, encode: Encode, truth: Truth, add_special: bool = False) -> Check:
    """Ids that differ, which is noted if they are what the source's tokenizer gives without what the runtime lacks."""
    mine, theirs = encode(text, add_special), truth.encode(text, add_special)
    wrong = sum(a != b for a, b in zip(mine, theirs, strict=False)) + abs(len(mine) - len(theirs))
    label = json.dumps(text[:40], ensure_ascii=False)
    if wrong and truth.limited is not None and truth.limited(text, add_special) == mine:
        return noted(name, label, wrong, f"a limit of the runtime: {truth.lacks}")
    return within(name, label, wrong, EXACT)

"""Special tokens of a Hugging Face model as GGUF metadata: ids, what stands around a text, where generation ends, templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantize.checkpoint.gguf_tokenizer import KEY
from quantize.checkpoint.tokenizer_files import DEFAULT, chat_templates, special_ids, special_tokens, token_ids
from quantize.errors import ExportError, shown
from quantize.gguf.container import Value, ValueType

Metadata = dict[str, Value]
# Ends of generation that llama.cpp knows by name (``llama-vocab.cpp``); another has to be its EOS, EOT or EOM.
KNOWN_ENDS = frozenset(
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>", "_<EOT>"]
)
END_KEYS = ("eos", "eot", "eom")
OTHERS = {"mask": "mask", "sep": "seperator"}  # gguf's own spelling; without an id in config.json


def special_metadata(assets: Mapping[str, bytes], tokenizer: Mapping[str, Any], rows: int, where: str) -> Metadata:
    """``tokenizer``: tokenizer.json, parsed; ``rows`` of the embedding. Raises ExportError for what llama.cpp cannot hold."""
    ids = special_ids(assets, rows, where)
    known = token_ids(assets, where)
    out: dict[str, int] = {key: found[0] for key, found in (("bos", ids["bos"]), ("unknown", ids["unk"])) if found}
    out |= {"padding": ids["pad"][0]} if ids["pad"] else {}
    named = special_tokens(assets, where)
    others = {key: known.get(named.get(f"{word}_token", "")) for word, key in OTHERS.items()}
    out |= {key: index for key, index in others.items() if index is not None and index < rows}
    out |= _ends(ids["eos"], {index: text for text, index in known.items()}, where)
    keys = {f"{KEY}{word}_token_id": Value.encode(ValueType.U32, index) for word, index in sorted(out.items())}
    return keys | around_metadata(tokenizer, out, where) | chat_template_metadata(chat_templates(assets, where))


def _ends(ids: Sequence[int], texts: Mapping[int, str], where: str) -> dict[str, int]:
    """The first is EOS; of the others those that llama.cpp does not know by name take the two keys that are left."""
    unknown = [index for index in ids[1:] if texts.get(index) not in KNOWN_ENDS]
    held = [*ids[:1], *unknown]
    if len(held) > len(END_KEYS):
        listed = ", ".join(shown(texts.get(index, str(index))) for index in held[:8])
        raise ExportError(
            f"{where}: generation ends at {len(held)} tokens that llama.cpp does not know by name ({listed}), and a GGUF "
            f"can name {len(END_KEYS)}; this model would not stop: export it to ONNX"
        )
    return dict(zip(END_KEYS, held, strict=False))


def around_metadata(tokenizer: Mapping[str, Any], ids: Mapping[str, int], where: str) -> Metadata:
    """Whether BOS and EOS stand around a text: as the post-processor of a parsed tokenizer.json puts them, whatever flags say.

    ``ids``: "bos" and "eos" as the file has them. Raises ExportError for other tokens, which llama.cpp would not put there.
    """
    before, after = around(tokenizer, where)
    out: Metadata = {}
    for word, found in (("bos", before), ("eos", after)):
        if found and found != [ids.get(word)]:
            side = "before" if word == "bos" else "after"
            raise ExportError(
                f"{where}: its post-processor puts the tokens {shown(found)} {side} every text, and llama.cpp can put only "
                f"{word}_token there; this model cannot be a GGUF"
            )
        out[f"{KEY}add_{word}_token"] = Value.encode(ValueType.BOOL, bool(found))
    return out


def around(tokenizer: Mapping[str, Any], where: str) -> tuple[list[int], list[int]]:
    """Ids before and after a text by the post-processor of a parsed tokenizer.json."""
    before: list[int] = []
    after: list[int] = []
    for step in _processors(tokenizer.get("post_processor")):
        match step["type"]:
            case "TemplateProcessing":
                ids = {name: list(token["ids"]) for name, token in step["special_tokens"].items()}
                places = [item["SpecialToken"]["id"] if "SpecialToken" in item else None for item in step["single"]]
                text = places.index(None)
                before = [index for name in places[:text] for index in ids[name]] + before
                after += [index for name in places[text + 1 :] for index in ids[name]]
            case "BertProcessing" | "RobertaProcessing":
                before, after = [step["cls"][1], *before], [*after, step["sep"][1]]
            case "ByteLevel":
                pass
            case kind:
                raise ExportError(f"{where}: a post-processor {shown(kind)} is not known; this model cannot be exported")
    return before, after


def _processors(section: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if section is None:
        return []
    return [step for part in section["processors"] for step in _processors(part)] if section["type"] == "Sequence" else [section]


def chat_template_metadata(templates: Mapping[str, str]) -> Metadata:
    """The default template, and others by their names."""
    named = {name: text for name, text in templates.items() if name != DEFAULT}
    out = {} if DEFAULT not in templates else {"tokenizer.chat_template": _text(templates[DEFAULT])}
    out |= {f"tokenizer.chat_template.{name}": _text(text) for name, text in named.items()}
    return out | ({"tokenizer.chat_templates": Value.encode_array(ValueType.STRING, list(named))} if named else {})


def _text(value: str) -> Value:
    return Value.encode(ValueType.STRING, value)

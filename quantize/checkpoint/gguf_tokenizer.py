"""A tokenizer.json for a GGUF's vocabulary, so that whoever has no llama.cpp gets the same ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from quantize.checkpoint.gguf_values import NO_TOKEN
from quantize.checkpoint.pre_tokenizers import BY_NAME
from quantize.checkpoint.tokenizer_files import TEMPLATES
from quantize.errors import CheckpointError, shown

KEY = "tokenizer.ggml."
NAMED = "tokenizer.chat_template."
ENDS = ("eos", "eot", "eom")  # generation ends at each of them
SPECIAL_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
SPACE = "\u2581"


def tokenizer_assets(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja (if there is one).

    ``metadata``: decoded key-values. A tokenizer that is not known exactly gives no tokenizer.json: a GGUF can still be
    made of it, whose metadata are copied. Raises CheckpointError for a damaged one.
    """
    try:
        tokens, types = metadata[f"{KEY}tokens"], metadata.get(f"{KEY}token_type")
        types = [int(TokenType.NORMAL)] * len(tokens) if types is None else [int(kind) for kind in types]
        tokenizer, out = _tokenizer(metadata, tokens, types), _configs(metadata, tokens)
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{where}: metadata key or token {error} is missing; download the file again") from error
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # the tokenizers library raises nothing more precise, and its panics are no Exception
        raise CheckpointError(f"{where}: its tokenizer is damaged ({shown(str(error))}); download the file again") from None
    if tokenizer is not None:
        out["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    template = metadata.get("tokenizer.chat_template")
    named = {key.removeprefix(NAMED): metadata[key] for key in metadata if key.startswith(NAMED)}
    if named:
        out[TEMPLATES] = json.dumps(named, ensure_ascii=False).encode()
    return out | ({} if template is None else {"chat_template.jinja": template.encode()})


def _tokenizer(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Tokenizer | None:
    """None for a model or a pre-tokenizer that is not known exactly."""
    match metadata[f"{KEY}model"]:
        case "gpt2":
            tokenizer = _byte_level(metadata, _vocabulary(tokens, types))
        case "llama":
            tokenizer = _sentence_piece(metadata, _vocabulary(tokens, types), types)
        case _:
            return None
    if tokenizer is not None:
        _add_special(tokenizer, tokens, types)
        _add_around(tokenizer, tokens, metadata)
    return tokenizer


def adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Whether llama.cpp begins a text with the BOS token: the key, or else its default for the tokenizer."""
    row = BY_NAME.get(metadata.get(f"{KEY}pre", "default"))
    default = metadata[f"{KEY}model"] == "llama" or (row is not None and row.adds_bos)
    return bool(metadata.get(f"{KEY}add_bos_token", default)) and f"{KEY}bos_token_id" in metadata


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Token -> id without the padding that writers add up to the embedding's rows."""
    return {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if not (kind == TokenType.UNUSED and token == f"[PAD{index}]")
    }


def _byte_level(metadata: Mapping[str, Any], vocabulary: dict[str, int]) -> Tokenizer | None:
    row = BY_NAME.get(metadata.get(f"{KEY}pre", "default"))
    if row is None:
        return None
    merges = [_pair(merge) for merge in metadata[f"{KEY}merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=row.ignore_merges))
    raw = json.loads(tokenizer.to_str()) | {"pre_tokenizer": row.to_json()}
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    """ "a b" -> ("a", "b"); a token may itself begin with a space, as llama.cpp allows."""
    cut = merge.index(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _sentence_piece(metadata: Mapping[str, Any], vocabulary: dict[str, int], types: list[int]) -> Tokenizer:
    """SentencePiece's BPE: the scores rank the merges, bytes stand in for what has no token."""
    scores = [float(score) for score in metadata[f"{KEY}scores"]]
    prefix = bool(metadata.get(f"{KEY}add_space_prefix", True))
    unknown = metadata[f"{KEY}tokens"][metadata.get(f"{KEY}unknown_token_id", 0)]
    merges = _ranked_merges(vocabulary, scores, types)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _ranked_merges(vocabulary: dict[str, int], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, best score first (``llm_tokenizer_spm``); ties by id, then by the cut."""
    pieces = {token: index for token, index in vocabulary.items() if types[index] in (TokenType.NORMAL, TokenType.USER_DEFINED)}
    cuts_of = cuts(pieces)
    found = [(-scores[index], index, cut, token) for token, index in pieces.items() for cut in cuts_of(token)]
    return [(token[:cut], token[cut:]) for _, _, cut, token in sorted(found)]


def cuts(vocabulary: Iterable[str]) -> Callable[[str], Iterator[int]]:
    """Where a token can be cut into two tokens of the vocabulary. Only lengths that tokens have are tried: one may be long."""
    tokens: Container[str] = vocabulary if isinstance(vocabulary, Mapping) else set(vocabulary)
    lengths = sorted({len(token) for token in vocabulary} - {0})
    known = set(lengths)

    def of(token: str) -> Iterator[int]:
        for cut in lengths:
            if cut >= len(token):
                return
            if len(token) - cut in known and token[:cut] in tokens and token[cut:] in tokens:
                yield cut

    return of


def _add_special(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """All at once: the library sorts every token that it has again with each call."""
    added = [
        AddedToken(token, special=kind != TokenType.USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    ]
    tokenizer.add_tokens(added)


def _add_around(tokenizer: Tokenizer, tokens: list[str], metadata: Mapping[str, Any]) -> None:
    """BOS and EOS as llama.cpp puts them around a text."""
    bos = [metadata[f"{KEY}bos_token_id"]] if adds_bos(metadata) else []
    eos = [metadata[f"{KEY}eos_token_id"]] if metadata.get(f"{KEY}add_eos_token") and f"{KEY}eos_token_id" in metadata else []
    if bos or eos:
        single, second = ([*(tokens[id_] for id_ in bos), text, *(tokens[id_] for id_ in eos)] for text in ("$A", "$B"))
        pair = [f"{piece}:0" for piece in single] + [f"{piece}:1" for piece in second]
        special = [(tokens[index], index) for index in dict.fromkeys([*bos, *eos])]
        tokenizer.post_processor = processors.TemplateProcessing([f"{piece}:0" for piece in single], pair, special)


def _class(metadata: Mapping[str, Any]) -> str:
    """The one by which onnxruntime-genai joins the pieces of a SentencePiece vocabulary as it was trained: of any other class it
    takes a text apart at combining marks, and puts a space before it or not by itself."""
    pieces = metadata[f"{KEY}model"] == "llama" and not metadata.get(f"{KEY}add_space_prefix", True)
    return "GemmaTokenizer" if pieces else "PreTrainedTokenizerFast"


def _configs(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, bytes]:
    held = {name: metadata.get(f"{KEY}{key}_token_id", NO_TOKEN) for name, key in SPECIAL_IDS.items()}
    ids = {name: index for name, index in held.items() if index != NO_TOKEN}
    tokenizer: dict[str, Any] = {"tokenizer_class": _class(metadata), "clean_up_tokenization_spaces": False}
    tokenizer |= {name: tokens[index] for name, index in ids.items()} | {"add_bos_token": adds_bos(metadata)}
    generation: dict[str, Any] = {f"{name}_id": index for name, index in ids.items() if name != "unk_token"}
    ends = list(dict.fromkeys(metadata[f"{KEY}{word}_token_id"] for word in ENDS if f"{KEY}{word}_token_id" in metadata))
    if len(ends) > 1:
        generation["eos_token_id"] = ends
    files = {"tokenizer_config.json": tokenizer, "generation_config.json": generation}
    return {name: (json.dumps(data, indent=2) + "\n").encode() for name, data in files.items()}

"""What a GGUF's metadata say of any language model, whatever its architecture."""

from __future__ import annotations

from quantize.checkpoint.gguf_values import NO_TOKEN, TOKENIZER, GgufValues
from quantize.errors import CheckpointError
from quantize.model_config import ModelSizes

METADATA_ASSET = "metadata.gguf"  # of a source that is a GGUF: all its key-values, in a GGUF without tensors
IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}


def check_token_count(values: GgufValues, rows: int, where: str) -> None:
    """Raises CheckpointError unless there is a token for each of the embedding's ``rows``, where tokens are listed."""
    key = f"{TOKENIZER}tokens"
    if key in values and (held := len(values[key])) != rows:
        raise CheckpointError(f"{where}: metadata key {key} has {held} entries, the embedding {rows} rows; download it again")


def sizes_from_gguf(values: GgufValues, rows: int, where: str) -> ModelSizes:
    """What metadata say of any language model; ``rows`` of its embedding. Raises CheckpointError."""
    arch = values.get("general.architecture")
    if not isinstance(arch, str):
        raise values.wrong("metadata key 'general.architecture' is missing")
    if values.get(f"{arch}.attention.causal") is False:
        raise CheckpointError(f"{where}: {arch} looks at what is to come, so it is no language model; name one")
    check_token_count(values, rows, where)
    kv_heads, head_dim = _value_heads(values, arch)
    ids = {name: values.get(f"{TOKENIZER}{word}_token_id", NO_TOKEN) for word, name in IDS.items()}
    return ModelSizes(
        model_type=arch,
        hidden_size=values.size(f"{arch}.embedding_length"),
        num_layers=values.size(f"{arch}.block_count"),
        vocab_size=rows,
        max_position=values.size(f"{arch}.context_length"),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        raw={name: token for name, token in ids.items() if token != NO_TOKEN},
    )


def _value_heads(values: GgufValues, arch: str) -> tuple[int, int]:
    """How many heads the values have, and of how many channels; 0 if that is not the same in every layer."""
    heads, kv_heads = (values.get(f"{arch}.attention.{key}", 0) for key in ("head_count", "head_count_kv"))
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and heads > 0 and kv_heads > 0):
        return 0, 0
    channels = values.size(f"{arch}.attention.value_length", values.size(f"{arch}.embedding_length") // heads)
    return kv_heads, channels

"""Files as other tools write them: llama-quantize's GGUF, by libggml's own quantizer, and the folder of genai's builder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from runtime_checks.reference.gguf import decode_gguf, read_gguf
from runtime_checks.runtimes.ggml_quantizer import ggml_quantize


def llama_quantize(source: Path, out: Path, kind: str) -> Path:
    """The matrices of a GGUF again, each as ``kind``; of its metadata all that is not ours."""
    reader = GGUFReader(source)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, item in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture", "adadim.")):
            sub_type = item.types[-1] if item.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, item.contents(), item.types[0], sub_type=sub_type)
    for name, tensor in read_gguf(source).tensors.items():
        values = decode_gguf(tensor)
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, ggml_quantize(kind, values), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def genai_builder(model: Path, out: Path) -> Path:
    """onnxruntime-genai's own model builder, int4 in groups of 32."""
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    options = ["-p", "int4", "-e", "cpu", "-c", out.with_name("cache"), "--extra_options", "int4_block_size=32"]
    command = [*builder, "-m", "tiny", "-i", model, "-o", out, *options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=environment)
    return out

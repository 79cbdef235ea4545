"""Things of other tools, known by how a file begins, its ending, or what is in a folder: what they are, and what to do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from quantize.outside import open_regular

TO_CONVERT = "transformers' AutoModelForCausalLM.from_pretrained('{}').save_pretrained('NEW_DIR') writes safetensors"
TO_MERGE = "merge it (peft: merge_and_unload, save_pretrained), or move it away if these weights are merged already"
ORIGINAL = "use the model that it was made from: a Hugging Face folder or a GGUF"
WHOLE_MODEL = "download the model whole: hf download ORG/NAME --local-dir {folder}"
UNPACK = "unpack it: {}"
LFS = b"version https://git-lfs"
BEGINNING = 300  # bytes; the mark of a tar lies at 257


class Foreign(NamedTuple):
    """``told``: what it is. ``mend``: what to do where a model is wanted, ``other``: where a file is; "" where that is the same.

    {path} stands for the path, {folder} for the one that it is in, {out} for the path without its ending, as a shell takes them.
    """

    told: str
    mend: str = ORIGINAL
    other: str = ""

    def next(self, path: Path, model: bool) -> str:
        """What to do."""
        text = self.mend if model or not self.other else self.other
        names = {"path": path, "folder": path.parent, "out": path.with_suffix("")}
        return text.format(**{key: shlex.quote(str(name)) for key, name in names.items()})


PICKLE = Foreign("a file of pickled weights", "they are never loaded; convert them: " + TO_CONVERT.format("{folder}"))
GGML = Foreign("a ggml file of the time before GGUF", "download the model as safetensors or GGUF")
LITERT = Foreign("a model for LiteRT (TensorFlow Lite)")
COREML = Foreign("a Core ML model")
KERAS = Foreign("a checkpoint for Keras or TensorFlow", "download the model as safetensors")
OPENVINO = Foreign("an OpenVINO model")
MEDIAPIPE = Foreign("a MediaPipe task")
EXECUTORCH = Foreign("an ExecuTorch program")
ORT = Foreign("an ONNX model in ORT's own format")
LITERTLM = Foreign("a LiteRT-LM model")
TENSORRT = Foreign("a TensorRT engine")
NUMPY = Foreign("arrays of NumPy", "download the model as safetensors")
FLAX = Foreign("a checkpoint for Flax", "download the model as safetensors")
TAR = Foreign("a tar archive", UNPACK.format("tar -xf {path}"))
ORIGINAL_LAYOUT = Foreign("a model in its maker's own layout", "download its Hugging Face layout: config.json and safetensors")
SAFETENSORS = Foreign(
    "a part of a Hugging Face model",
    "name the folder that holds them and config.json: {folder}",
    "make a file of their folder: adadim run {folder} --out OUT",
)
ONNX_FILE = Foreign(
    "an ONNX file",
    ORIGINAL,
    "a folder is wanted: put it there as model.onnx, with its data beside it, and name the folder",
)
ONNX_FILES = Foreign(
    "a folder of ONNX files",
    ORIGINAL,
    "put the one that is meant into a folder as model.onnx, with its data beside it, and name the folder",
)
BEGINNINGS = {  # place and bytes there
    (0, b"lmgg"): GGML,
    (0, b"fmgg"): GGML,
    (0, b"tjgg"): GGML,
    (0, b"algg"): Foreign("a LoRA adapter of the time before GGUF", TO_MERGE),
    (0, b"\x89HDF"): KERAS,
    (4, b"TFL3"): LITERT,
    (0, b"LITERTLM"): LITERTLM,
    (4, b"ET12"): EXECUTORCH,
    (4, b"ORTM"): ORT,
    (0, b"ftrt"): TENSORRT,
    (0, b"\x93NUMPY"): NUMPY,
    (0, LFS): Foreign("a Git LFS pointer", "fetch what it points to: git lfs pull, or hf download"),
    (0, b"<!DOCTYPE"): Foreign("a web page", "download the file itself: its address has /resolve/ where the page's has /blob/"),
    (0, b"<html"): Foreign("a web page", "download the file itself: its address has /resolve/ where the page's has /blob/"),
    (257, b"ustar"): TAR,
    (0, b"\x1f\x8b"): Foreign("a gzip archive", UNPACK.format("tar -xf {path}, or gunzip {path} if it is a single file")),
    (0, b"BZh"): Foreign("a bzip2 archive", UNPACK.format("tar -xf {path}, or bunzip2 {path} if it is a single file")),
    (0, b"\xfd7zXZ"): Foreign("an xz archive", UNPACK.format("tar -xf {path}, or unxz {path} if it is a single file")),
    (0, b"\x28\xb5\x2f\xfd"): Foreign("a zstd archive", UNPACK.format("tar -xf {path}, or unzstd {path} if it is a single file")),
    (0, b"7z\xbc\xaf"): Foreign("a 7z archive", UNPACK.format("7z x {path}")),
    (0, b"Rar!"): Foreign("a RAR archive", UNPACK.format("unrar x {path}")),
    **{(0, bytes((0x80, number))): PICKLE for number in (2, 3, 4, 5)},
}
ENDINGS = {  # where the beginning says nothing, or that it is a zip
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl"), PICKLE),
    **dict.fromkeys((".h5", ".keras"), KERAS),
    **dict.fromkeys((".npz", ".npy"), NUMPY),
    **dict.fromkeys((".mlmodel", ".mlpackage", ".mlmodelc"), COREML),
    **dict.fromkeys((".engine", ".plan"), TENSORRT),
    ".tflite": LITERT,
    ".task": MEDIAPIPE,
    ".litertlm": LITERTLM,
    ".pte": EXECUTORCH,
    ".ort": ORT,
    ".msgpack": FLAX,
    ".dat": Foreign(
        "a file of data, perhaps an old llama.cpp's importance matrix",
        "if so, make one anew: adadim imatrix MODEL --calibration FILE --out imatrix.gguf",
    ),
    ".nemo": Foreign("a NeMo archive"),
    ".onnx": ONNX_FILE,
    ".safetensors": SAFETENSORS,
    ".json": Foreign("a JSON file", "name the model's folder, not a file in it"),
}
MARKS = {  # of a folder, as glob has them; the first that is there tells
    "adapter_config.json": Foreign("a LoRA adapter", TO_MERGE),
    "model_index.json": Foreign("a diffusers pipeline", "language models alone are quantized here"),
    "mlc-chat-config.json": Foreign("a model for MLC"),
    "openvino_model.xml": OPENVINO,
    "saved_model.pb": KERAS,
    "params.json": ORIGINAL_LAYOUT,
    "consolidated.*": ORIGINAL_LAYOUT,
    "*.mlpackage": COREML,
    "*.tflite": LITERT,
    "*.task": MEDIAPIPE,
    "*.litertlm": LITERTLM,
    "*.pte": EXECUTORCH,
    "*.engine": TENSORRT,
    "*.onnx": ONNX_FILES,
    "onnx/*.onnx": ONNX_FILES,
    "tf_model.h5": KERAS,
    "flax_model.msgpack": FLAX,
}
WITHOUT_CONFIG = {  # of a folder, where none of these is there
    "*.safetensors": Foreign(
        "a folder of safetensors without the config.json that says what they are", WHOLE_MODEL.replace("{folder}", "{path}")
    ),
    "*.bin": Foreign(
        "a folder of pickled weights without a config.json", WHOLE_MODEL.replace("{folder}", "NEW_DIR") + ", as safetensors"
    ),
    "*.pt*": Foreign(
        "a folder of pickled weights without a config.json", WHOLE_MODEL.replace("{folder}", "NEW_DIR") + ", as safetensors"
    ),
    "tokenizer.json": Foreign("a tokenizer without a model", WHOLE_MODEL.replace("{folder}", "{path}")),
}
GGUFS = {  # general.type or general.architecture of what is no language model
    "mmproj": Foreign("a vision projector (mmproj)", "it goes beside a language model; name that one's GGUF"),
    "clip": Foreign("a vision projector (mmproj)", "it goes beside a language model; name that one's GGUF"),
    "adapter": Foreign("a LoRA adapter", "merge it: llama-export-lora -m MODEL.gguf --lora {path} -o MERGED.gguf"),
    "controlvector": Foreign("a control vector", "name the GGUF of the model that it steers"),
    "imatrix": Foreign("an importance matrix", "it is for a model: adadim quantize MODEL --imatrix {path} --out STORE"),
}
OTHER_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json")  # of which transformers can make a tokenizer.json
METHODS = ("quant_method", "quant_algo", "quantization_method")  # keys of config.json's quantization_config


def foreign_file(path: Path) -> Foreign | None:
    """By how it begins, then by its ending; None for what is not known, and for a GGUF whatever it is called. Raises OSError."""
    with open_regular(path) as file:
        data = file.read(BEGINNING)
    if data.startswith(b"GGUF"):
        return None
    found = next((kind for (at, mark), kind in BEGINNINGS.items() if data[at : at + len(mark)] == mark), None)
    return found or ENDINGS.get(path.suffix.lower())


def foreign_folder(path: Path) -> Foreign | None:
    """By what is in it, or its ending; None for what is not known. Raises OSError."""
    if path.suffix in ENDINGS:
        return ENDINGS[path.suffix]
    marks = MARKS if (path / "config.json").is_file() else MARKS | WITHOUT_CONFIG
    return next((kind for mark, kind in marks.items() if any(path.glob(mark))), None)


def foreign_gguf(path: Path, general: Mapping[str, object]) -> str | None:
    """What to say of a GGUF that is no language model, by general.type and general.architecture; else None."""
    for key in ("general.type", "general.architecture"):
        found = GGUFS.get(str(general.get(key)))
        if found is not None:
            return f"{path}: is {found.told}, not a language model; {found.next(path, model=True)}"
    return None


def quantized_by(raw: Mapping[str, object]) -> str | None:
    """The tool or the method that config.json says these weights were quantized by, "" if it names none; None if they are not."""
    config, mlx = raw.get("quantization_config"), raw.get("quantization")
    if not config and isinstance(mlx, dict) and "bits" in mlx:
        return "MLX"
    if not config:
        return None
    named = [config[key] for key in METHODS if key in config] if isinstance(config, dict) else []
    return next((name for name in named if isinstance(name, str)), "")


def tokenizer_mend(folder: Path) -> str:
    """What to do where a model has no tokenizer.json."""
    found = next((name for name in OTHER_TOKENIZERS if (folder / name).is_file()), None)
    if found is None:
        return "get it from the original model"
    return f"transformers' AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}') makes it from {found}"

"""Words that people bring from other tools, and what they are called here: tables alone, read by ``advice``.

A word is first looked for in ALIASES, which mean the same. One that does not is an error, whose line has the right word in it.
In a text {prog} is the command, {first} its first operand, {format} what `adadim export` calls the value; {model}, {file}, {out},
{number}, {any}, {grid} and {repo} are the value where it can be one, else a word that stands for it. {quantized} and {target} are
whole phrases made of the value.
"""

from __future__ import annotations

from typing import NamedTuple

ALIASES = {  # on every command that has the option
    "-o": "--out",
    "--output": "--out",
    "--license": "--licence",
    "--license-text": "--licence-text",
    "--split-max-size": "--split-size",
    "--max-shard-size": "--split-size",
    "-help": "--help",
    "-?": "--help",
}
TARGETS = {  # in any case
    "gguf": "llama.cpp",
    "ggml": "llama.cpp",
    "llamacpp": "llama.cpp",
    "llama-cpp": "llama.cpp",
    "llama_cpp": "llama.cpp",
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
    "genai": "onnxruntime",
    "onnxruntime-genai": "onnxruntime",
}
FORMATS = {"llama.cpp": "gguf", "gguf-adadim": "gguf"} | dict.fromkeys(
    ("onnxruntime", "onnxruntime+adadim", "onnxruntime-w8a8"), "onnx"
)


class Row(NamedTuple):
    """``words``, with spaces between them, mean ``says`` on a command that has the option ``needs`` or is called so."""

    words: str
    needs: str
    says: str


_TYPES = (
    "--type --qtype --outtype --ftype --quant --quants --quant-type --quantization --quantize --precision --scheme --dtype "
    "--data-type --weight-dtype --weight-format --weight-type --mode --preset -p"
)
_FORMATS = "--format --out-format --output-format --export-format --export --backend --runtime --engine --framework --to"
_MODELS = (
    "--model -m --model-path --model-name --model-name-or-path --model-id --model-dir --model-file --hf-model --hf-path "
    "--pretrained --pretrained-model-name-or-path --base-model --checkpoint --input -i --in --infile --input-model --input-dir "
    "--input-path --path --src"
)
_OUTS = (
    "--output-dir --outdir --out-dir --outfile --out-file --output-file --output-path --output-model --outputs --save --save-dir "
    "--save-path --save-to --dest --destination --dst --export-dir --export-path --mlx-path --dir --folder"
)
_TEXTS = (
    "--dataset --datasets --dataset-name --dataset-path --dataset-file --calib --calib-data --calib-dataset --calib-file "
    "--calib-path --calibration-data --calibration-dataset --calibration-file --data --data-path --training-data --train-file "
    "--corpus --text-file --text --wikitext"
)
_SAMPLES = (
    "--nsamples --n-samples --num-samples --samples --max-samples --calib-size --calib-samples --num-calib-samples "
    "--max-calib-samples --calibration-samples --num-calibration-samples --seqlen --seq-len --seq-length --sequence-length "
    "--max-seq-len --max-seq-length --max-seqlen --calib-seqlen --chunks"
)
_THREADS = "--threads -t --n-threads --nthreads --num-threads -j --jobs --workers --num-workers"
_OF_QUANTIZE = (
    "--bits --grid --group-size --method --effort --target-size --target-bpw --symmetric --scale-dtype --transforms --embedding "
    "--head --recipe --sensitivity --imatrix --selection --token-weight --block-steps --tune-steps"
)
OPTIONS = (  # the first row that fits tells
    Row(_TYPES, "--grid", "{quantized}"),
    Row("-p", "--prompt", "use --prompt TEXT"),
    Row(
        _TYPES.removesuffix(" -p"), "", "that is chosen where a model is quantized, by adadim run or adadim quantize: {quantized}"
    ),
    Row("--w-bit --w-bits --wbits --nbits --n-bits --q-bits --num-bits --weight-bits", "--bits", "use --bits {number}"),
    Row("--groupsize --gs --q-group-size --w-group-size --block-size --blocksize", "--group-size", "use --group-size {number}"),
    Row("--sym", "--symmetric", "use --symmetric"),
    Row("--asym --asymmetric --zero-point", "--symmetric", "it is so without --symmetric; drop it"),
    Row(_FORMATS, "--target", "{target}"),
    Row(f"{_FORMATS} --target", "export", "the format is the word after export: adadim export {format} STORE --out OUT"),
    Row("--target --os --device-type", "--platform", "use --platform android, ios or web"),
    Row(
        f"{_FORMATS} --target", "", "that is chosen where a model is quantized, by adadim run or adadim quantize: --target {any}"
    ),
    Row(_MODELS, "--source", "what is measured comes first, without an option; the model it was made from: --source {model}"),
    Row(f"{_MODELS} --store", "operand", "{first} comes first, without an option: {prog} {model}"),
    Row("--source", "operand", "{first} comes first, without an option: {prog} {first}"),
    Row(_MODELS, "", "a model is given to a command: adadim run {model} --out DIR"),
    Row(_OUTS, "--out", "use --out {out}"),
    Row(f"{_OUTS} --out", "--html", "use --json {out} for the numbers, or --html FILE.html for a page"),
    Row(f"{_OUTS} --out", "inspect", "it prints, and with --json prints JSON: adadim inspect {first} --json > {out}"),
    Row(f"{_OUTS} --out", "--json", "use --json {out}"),
    Row(
        "--device --devices --device-map -d --gpu --gpus --cuda --cpu --npu --provider --execution-provider --ep -e -ngl "
        "--n-gpu-layers --gpu-layers",
        "",
        "all is done on the CPU here, and a file runs wherever its runtime does; drop it",
    ),
    Row(_THREADS, "--threads", "use --threads {number}"),
    Row(_THREADS, "", "threads are set before the command: OMP_NUM_THREADS={number} {prog}"),
    Row("--iters --iterations --n-iters --max-steps --num-steps", "--steps", "use --steps {number}"),
    Row("--epochs --num-epochs", "--steps", "use --steps N, of one sequence each"),
    Row("--lr", "--learning-rate", "use --learning-rate {any}"),
    Row(
        "--iters --iterations --n-iters --steps --max-steps --num-steps --epochs --num-epochs",
        "--block-steps",
        "use --block-steps {number} (rounding learned by each decoder block's output), or --effort best",
    ),
    Row(
        "--lr --learning-rate --minmax-lr --batch-size --batch -b --damp --damp-percent --percdamp --desc-act --act-order "
        "--actorder --true-sequential --optimize --optimization-level",
        "--effort",
        "that is set as a whole: --effort fast, default or best",
    ),
    Row("--algorithm --algo --quant-method --quantizer --gptq --rtn --awq", "--method", "use --method gptq-ada, or another one"),
    Row("-f --file", "imatrix", "use --calibration {file}, a UTF-8 text"),
    Row(_TEXTS, "--calibration", "use --calibration {file}, a UTF-8 text"),
    Row(f"{_TEXTS} -f --file", "--text", "use --text {file}, a UTF-8 text that was not calibrated on"),
    Row("--sizes", "quantize", "adadim run MODEL --sizes 80MB,92MB makes several files; for one use --target-size SIZE"),
    Row("--calibration", "--text", "use --text {file}; a file is measured on what it was not calibrated on"),
    Row(_SAMPLES, "--calibration-tokens", "use --calibration-tokens N: samples times the tokens of each"),
    Row(_SAMPLES, "--chunks", "use --chunks N, of so many tokens each: --context N"),
    Row(
        "-c --ctx --ctx-size --n-ctx --num-ctx --context-size --context-length --context-len --max-context --max-length "
        "--max-seq-len --max-seq-length --seq-len --seq-length",
        "--context",
        "use --context {number}",
    ),
    Row("--lm-head --quant-lm-head --lm-head-type --output-tensor-type", "--head", "use --head {grid}"),
    Row("--leave-output-tensor", "--head", "use --head source"),
    Row("--token-embedding-type --embedding-type --embed-type --embd-type", "--embedding", "use --embedding {grid}"),
    Row("--pure", "--grid", "one grid for all is the rule here; drop it"),
    Row(
        "--tensor-type --tensor-types --layer-config --ignore --ignore-layers --modules-to-not-convert --exclude "
        "--exclude-weights --exclude-layers --nodes-to-exclude --skip --skip-layers --include-weights --config --config-file "
        "--quant-config --quantization-config",
        "--recipe",
        "use --recipe FILE.toml, rules for single tensors",
    ),
    Row("--size --max-size --file-size --model-size --disk-size", "--target-size", "use --target-size {any}, as 105MB"),
    Row("--bpw --avg-bits --average-bits --target-bits --bits-per-weight", "--target-bpw", "use --target-bpw {any}"),
    Row("-y --yes -f --overwrite --replace", "--force", "use --force, which replaces an output"),
    Row("-q --silent --no-progress --disable-tqdm", "--quiet", "use --quiet"),
    Row(
        "-v -vv --verbose --debug --log-level --progress",
        "--quiet",
        "progress is shown without it, and --quiet hides it; drop it",
    ),
    Row("-n --plan --simulate", "--dry-run", "use --dry-run"),
    Row("--license-file --licence-file", "--licence-text", "use --licence-text {file}"),
    Row("--platform", "", "a file is packed for a platform once it is written: adadim bundle FILE --platform {any} --out DIR"),
    Row("--html --page --plot", "", "a page is made by: adadim compare FILE --source MODEL --html FILE.html"),
    Row("--trust-remote-code", "", "a model's own code is never run; drop it"),
    Row(
        "-hf -hfr --hf-repo -hff --hf-file --hub --repo --repo-id --download --token --hf-token --use-auth-token --revision "
        "--cache-dir",
        "",
        "nothing is downloaded here; first: hf download {repo} --local-dir DIR",
    ),
    Row(
        "--push-to-hub --upload --upload-repo --hub-model-id", "", "nothing is uploaded here; afterwards: hf upload ORG/NAME DIR"
    ),
    Row(_OF_QUANTIZE, "", "that is chosen where a model is quantized, by adadim run or adadim quantize"),
)
COMMANDS = (  # {any} is the word after it
    Row(
        "conv make build create process transform optimize",
        "",
        "adadim run {model} --out DIR quantizes a model, writes a file for each target and checks it",
    ),
    Row(
        "quant awq gptq rtn compress mix",
        "",
        "adadim quantize {model} --out STORE, or every step at once: adadim run {model} --out DIR",
    ),
    Row(
        "pack package deploy ship zip publish release app android ios web",
        "",
        "adadim bundle {file} --platform android --out DIR packs a file for an app (or ios, web)",
    ),
    Row(
        "measure perplexity ppl kld kl score benchmark rank diff",
        "",
        "adadim compare {file} --source MODEL measures files side by side, adadim eval one of them",
    ),
    Row("test check validate prove", "", "adadim verify {file} --source MODEL checks a file in its runtime"),
    Row("info show list ls dump view describe stat print", "", "adadim inspect {file} shows what a file or a store holds"),
    Row(
        "serve server chat generate infer inference prompt ask complete cli",
        "",
        "adadim writes files, and a runtime runs them: llama-cli -m {file} for a GGUF, onnxruntime-genai for a folder",
    ),
    Row("gguf llama.cpp ggml", "", "adadim export gguf {any} --out model.gguf writes a store as GGUF"),
    Row("onnx onnxruntime ort genai", "", "adadim export onnx {any} --out DIR writes a store as ONNX"),
    Row(
        "download pull get fetch",
        "",
        "nothing is downloaded here; first: hf download {repo} --local-dir DIR, then adadim run DIR --out OUT",
    ),
    Row("upload push", "", "nothing is uploaded here: hf upload ORG/NAME DIR"),
    Row(
        "train fine-tune tune qat",
        "",
        "adadim finetune {model} --out DIR trains a model for inputs of few bits",
    ),
    Row("calibrate", "", "every command that quantizes calibrates: adadim run {model} --out DIR --calibration FILE"),
    Row("plot html page", "", "adadim compare {file} --source MODEL --html FILE.html, or adadim report {file} --out FILE.html"),
    Row("plan size budget", "", "adadim quantize {model} --dry-run --target-size 105MB shows what fits a size"),
    Row("setup install init env", "", "adadim doctor shows what is installed, and what is still needed"),
)
START = """\
adadim makes a language model small, writes it for llama.cpp or ONNX Runtime, and proves the file equal to what was computed.

  adadim run MODEL --out DIR                             quantize a model, write a file for each target, check each
  adadim compare FILE... --source MODEL                  measure files side by side, of any tool
  adadim bundle FILE --platform android --out DIR        put a file, and all that an app needs with it, into a folder

MODEL is a Hugging Face folder or a GGUF file. `adadim --help` shows every command, `adadim COMMAND --help` its options.
"""

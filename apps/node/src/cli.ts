#!/usr/bin/env node
/** adadim-node BUNDLE: checks a bundle, then continues a prompt by its most likely tokens. */

import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";

import { BundleError, checkBundle, TextStream } from "@adadim/shared";

import { openFolder, wholeModel } from "./folder";
import type { Model } from "./model";

const USAGE = `usage: adadim-node BUNDLE [--digest HEX] [--prompt TEXT] [--tokens N] [--threads N] [--json]

BUNDLE      a folder that \`adadim bundle\` wrote
--digest    the sha256 that its SHA256SUMS must have (default: not compared)
--prompt    the text to continue (default: The capital of France is)
--tokens    at most so many (default: 64)
--threads   of the processor (default: its cores, at most 4)
--json      one line of JSON with prompt and answer as token ids, instead of text as it comes`;

interface Options {
  readonly folder: string;
  readonly digest: string | undefined;
  readonly prompt: string;
  readonly count: number;
  readonly threads: number;
  readonly json: boolean;
}

function readOptions(): Options {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      digest: { type: "string" },
      prompt: { type: "string", default: "The capital of France is" },
      tokens: { type: "string", default: "64" },
      threads: { type: "string", default: String(Math.min(4, availableParallelism())) },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    console.log(USAGE);
    process.exit(0);
  }
  const [folder, ...more] = positionals;
  if (folder === undefined || more.length > 0) throw new Error("give one bundle");
  if (values.digest !== undefined && !/^[0-9a-f]{64}$/i.test(values.digest)) throw new Error(`--digest ${values.digest}: is no sha256: 64 digits of 0 to 9 and a to f`);
  const [count, threads] = [positive("--tokens", values.tokens), positive("--threads", values.threads)];
  return { folder, digest: values.digest, prompt: values.prompt, count, threads, json: values.json };
}

function positive(option: string, word: string): number {
  if (!/^[1-9][0-9]{0,5}$/.test(word)) throw new Error(`${option} ${word}: give a number from 1 on`);
  return Number(word);
}

/** Checks all of it first: a runtime is loaded for a whole bundle only. Throws BundleError. */
async function run(options: Options): Promise<void> {
  const { manifest } = await checkBundle(await openFolder(options.folder), options.digest);
  const { context, eos_token_ids } = manifest.generation;
  const path = await wholeModel(options.folder, manifest);
  const model =
    manifest.runtime.name === "llama.cpp"
      ? await (await import("./llama")).openLlama(path, context, options.threads)
      : await (await import("./onnx")).openOnnx(path, eos_token_ids, options.threads);
  await answer(model, options, context);
  await model.close();
}

async function answer(model: Model, options: Options, context: number): Promise<void> {
  const prompt = model.encode(options.prompt);
  if (prompt.length === 0 || prompt.length >= context) {
    throw new Error(`--prompt: ${prompt.length} tokens; give 1 to ${context - 1}, the bundle has a context of ${context}`);
  }
  const tokens: number[] = [];
  const stream = new TextStream((ids) => model.decode(ids));
  const print = (text: string) => options.json || process.stdout.write(text);
  let first = 0;
  for await (const token of model.greedy(prompt, Math.min(options.count, context - prompt.length))) {
    if (tokens.push(token) === 1) first = performance.now();
    print(stream.push(token));
  }
  print(`${stream.end()}\n`);
  const rate = (1000 * (tokens.length - 1)) / (performance.now() - first);
  if (options.json) console.log(JSON.stringify({ prompt, tokens, text: model.decode(tokens) }));
  else console.error(`${tokens.length} tokens, ${rate.toFixed(1)} tokens/s after the first`);
}

let options: Options;
try {
  options = readOptions();
} catch (error) {
  console.error(`adadim-node: ${(error as Error).message}; --help says more`);
  process.exit(2);
}
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130)); // clears up, as every exit
try {
  await run(options);
} catch (error) {
  console.error(error instanceof BundleError ? error.message : `${options.folder}: ${(error as Error).message}`);
  process.exit(1);
}

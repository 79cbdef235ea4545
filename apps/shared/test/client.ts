/** What the tests ask of apps/shared: a JSON request in each line of stdin, a JSON answer in each of stdout. */

import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { createInterface } from "node:readline";

import { BundleError, Chat, checkBundle, type Source, TextStream } from "../src";

function folder(path: string, listed: boolean): Source {
  const entries = readdirSync(path, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = entries.map((entry) => relative(path, join(entry.parentPath, entry.name)));
  return {
    paths: listed ? paths : null,
    read: async (name) => (paths.includes(name) ? new Uint8Array(readFileSync(join(path, name))) : null),
  };
}

async function check(request: { path: string; digest?: string; listed: boolean }): Promise<unknown> {
  try {
    const { manifest, digest } = await checkBundle(folder(request.path, request.listed), request.digest);
    return { problems: [], digest, model: manifest.model };
  } catch (error) {
    if (!(error instanceof BundleError)) throw error;
    return { problems: error.problems };
  }
}

function tokenize(request: { path: string; texts: string[] }): unknown {
  const read = (name: string) => readFileSync(join(request.path, name), "utf-8");
  const chat = new Chat({ tokenizer: read("tokenizer.json"), config: read("tokenizer_config.json") });
  return request.texts.map((text) => {
    const ids = chat.encode(text);
    const stream = new TextStream((some) => chat.decode(some));
    return { ids, prompt: chat.prompt(text), decoded: chat.decode(ids), pieces: [...ids.map((id) => stream.push(id)), stream.end()] };
  });
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  const answer = request.texts === undefined ? await check(request) : tokenize(request);
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

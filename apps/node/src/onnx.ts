/** An ONNX bundle in onnxruntime-node. It can register no native library, so MatMulAdaDim runs by the body that the model carries. */

import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";

import { Chat, greedy } from "@adadim/shared";

import type { Model } from "./model";

export async function openOnnx(path: string, ends: readonly number[], threads: number): Promise<Model> {
  const text = (name: string) => readFile(join(dirname(path), name), "utf8");
  const [tokenizer, config] = await Promise.all([text("tokenizer.json"), text("tokenizer_config.json")]);
  const chat = new Chat({ tokenizer, config });
  process.env.ORT_DISABLE_TELEMETRY = "1"; // before it is loaded: it keeps a device id and reports each session to its maker
  const { InferenceSession, Tensor } = await import("onnxruntime-node");
  const session = await InferenceSession.create(path, { intraOpNumThreads: threads, logSeverityLevel: 3 });
  return {
    encode: (prompt) => chat.encode(prompt),
    decode: (ids) => chat.decode(ids),
    greedy: (prompt, count) => greedy(session, Tensor, prompt, { ends, count }),
    close: () => session.release(),
  };
}

/** onnxruntime in a worker of its own, so that the page stays quick. */

import { Chat, count, greedy, TextStream } from "@adadim/shared";
import * as ort from "onnxruntime-web/wasm";

import { type FromWorker, type ToWorker } from "./onnx_messages";

interface Opened {
  readonly session: ort.InferenceSession;
  readonly chat: Chat;
  readonly ends: readonly number[];
  readonly context: number;
}

let opened: Opened | null = null;
let stopped = false;

function say(message: FromWorker): void {
  self.postMessage(message);
}

async function open(request: Extract<ToWorker, { kind: "open" }>): Promise<void> {
  const at = (name: string) => new URL(name, self.location.href).href;
  ort.env.wasm.wasmPaths = { mjs: at("ort-wasm-simd-threaded.mjs"), wasm: at("ort-wasm-simd-threaded.wasm") };
  ort.env.wasm.numThreads = request.threads;
  const session = await ort.InferenceSession.create(new Uint8Array(await request.model.arrayBuffer()), {
    executionProviders: ["wasm"],
    externalData: request.data.map(([path, data]) => ({ path, data })),
    // As adadim's own checks run it: what the file says decides how a DequantizeLinear before a MatMul is computed.
    extra: { session: { qdq_matmulnbits_accuracy_level: "0" } },
  });
  opened = { session, chat: new Chat(request.tokenizer), ends: request.ends, context: request.context };
  say({ kind: "open", version: ort.env.versions.web ?? "" });
}

async function answer({ session, chat, ends, context }: Opened, question: string, most: number): Promise<void> {
  const prompt = chat.prompt(question);
  const room = context - prompt.length;
  if (room < 1) {
    throw new Error(`the question takes ${count(prompt.length)} tokens, and there is room for ${count(context)}; ask a shorter one`);
  }
  const text = new TextStream((ids) => chat.decode(ids));
  stopped = false;
  for await (const id of greedy(session, ort.Tensor, prompt, { ends, count: Math.min(most, room) })) {
    if (stopped) break;
    const last = ends.includes(id);
    say({ kind: "token", token: { id, text: last ? text.end() : text.push(id) } });
    await pause();
  }
  say({ kind: "end" });
}

/** Lets a message to stop come in: onnxruntime without threads computes in one go. */
function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

self.onmessage = async ({ data: message }: MessageEvent<ToWorker>) => {
  try {
    if (message.kind === "open") await open(message);
    else if (message.kind === "stop") stopped = true;
    else if (opened !== null) await answer(opened, message.question, message.most);
  } catch (error) {
    say({ kind: "error", message: error instanceof Error ? error.message : String(error) });
  }
};

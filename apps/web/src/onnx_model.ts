/** An ONNX folder in onnxruntime, compiled to WebAssembly. */

import { type LoadedBundle } from "./load";
import { type Model, THREADS, type Token } from "./model";
import { type FromWorker, type ToWorker } from "./onnx_messages";

const NOT_WEIGHTS = /\.(onnx|json|jinja)$/;

export async function openOnnx(bundle: LoadedBundle): Promise<Model> {
  const worker = new Conversation(new Worker(new URL("onnx_worker.js", document.baseURI), { type: "module" }));
  const { model, generation } = bundle.manifest;
  const folder = model.slice(0, model.lastIndexOf("/") + 1);
  const inside = bundle.paths.filter((path) => path.startsWith(folder)).map((path) => path.slice(folder.length));
  const text = (name: string) => bundle.file(folder + name).text();
  worker.say({
    kind: "open",
    model: bundle.file(model),
    data: inside.filter((name) => !NOT_WEIGHTS.test(name)).map((name) => [name, bundle.file(folder + name)] as const),
    tokenizer: {
      tokenizer: await text("tokenizer.json"),
      config: await text("tokenizer_config.json"),
      template: inside.includes("chat_template.jinja") ? await text("chat_template.jinja") : undefined,
    },
    ends: generation.eos_token_ids,
    context: generation.context,
    threads: THREADS,
  });
  const ready = await worker.hear();
  if (ready.kind !== "open") throw new Error(`onnxruntime's worker says ${ready.kind}`);
  return {
    runtime: `onnxruntime-web ${ready.version}, ${THREADS} ${THREADS === 1 ? "thread" : "threads"}`,
    answer: (question, most) => answer(worker, question, most),
    close: async () => worker.end(),
  };
}

async function* answer(worker: Conversation, question: string, most: number): AsyncGenerator<Token, void> {
  worker.say({ kind: "ask", question, most });
  let running = false;
  try {
    while (true) {
      const heard = await worker.hear();
      running = heard.kind === "token";
      if (heard.kind !== "token") return;
      yield heard.token;
      running = false;
    }
  } finally {
    if (running) {
      worker.say({ kind: "stop" });
      while ((await worker.hear()).kind !== "end"); // what was on its way is nobody's answer
    }
  }
}

/** Messages to a worker, and its own one after another. */
class Conversation {
  readonly #heard: FromWorker[] = [];
  #wake: () => void = () => undefined;

  constructor(private readonly worker: Worker) {
    worker.onmessage = ({ data }: MessageEvent<FromWorker>) => this.#hear(data);
    worker.onerror = (event) => this.#hear({ kind: "error", message: event.message || "onnxruntime's worker did not start" });
  }

  say(message: ToWorker): void {
    this.worker.postMessage(message);
  }

  /** Its next message. Throws what it reports as an error. */
  async hear(): Promise<Exclude<FromWorker, { kind: "error" }>> {
    while (this.#heard.length === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
    const message = this.#heard.shift() as FromWorker;
    if (message.kind === "error") throw new Error(message.message);
    return message;
  }

  end(): void {
    this.worker.terminate();
  }

  #hear(message: FromWorker): void {
    this.#heard.push(message);
    this.#wake();
  }
}

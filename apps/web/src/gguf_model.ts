/** A GGUF in llama.cpp, compiled to WebAssembly. */

import { Wllama } from "@wllama/wllama";

import { type LoadedBundle } from "./load";
import { type Model, THREADS, type Token } from "./model";

const WASM = { default: "wllama.wasm" };

export async function openGguf(bundle: LoadedBundle): Promise<Model> {
  const silent = () => undefined;
  const wllama = new Wllama(WASM, { suppressNativeLog: true, logger: { debug: silent, log: silent, warn: silent, error: console.error } });
  wllama.setCompat(null); // by default it would fetch another build elsewhere for older browsers
  const { context } = bundle.manifest.generation;
  await wllama.loadModel([bundle.file(bundle.manifest.model)], {
    n_ctx: context,
    n_gpu_layers: 0,
    n_parallel: 1,
    n_threads: THREADS,
    warmup: false,
    jinja: true,
    skip_chat_parsing: true,
  });
  const threads = wllama.getNumThreads();
  return {
    runtime: `llama.cpp ${Wllama.getLibllamaVersion()} (wllama), ${threads} ${threads === 1 ? "thread" : "threads"}`,
    answer: (question, most) => answer(wllama, question, most),
    close: () => wllama.exit(),
  };
}

/** llama.cpp renders the GGUF's own chat template; a model without one is given the text as it is. */
async function* answer(wllama: Wllama, question: string, most: number): AsyncGenerator<Token, void> {
  const greedy = { temperature: 0, top_k: 1, max_tokens: most, cache_prompt: false };
  if (wllama.getChatTemplate() === null) {
    const chunks = await wllama.createCompletion({ ...greedy, prompt: question, logprobs: 1, stream: true });
    for await (const chunk of chunks) yield* tokens(chunk.choices[0]?.text, chunk.choices[0]?.logprobs);
    return;
  }
  const messages = [{ role: "user" as const, content: question }];
  const chunks = await wllama.createChatCompletion({ ...greedy, messages, logprobs: true, top_logprobs: 1, stream: true });
  for await (const chunk of chunks) yield* tokens(chunk.choices[0]?.delta.content, chunk.choices[0]?.logprobs);
}

/** The server's own form of a token's probability has its number too, which the package's types leave out. */
function* tokens(text: string | null | undefined, logprobs: unknown): Generator<Token> {
  const listed = (logprobs as { content?: { id: number }[] } | null)?.content ?? [];
  yield* listed.map(({ id }, index) => ({ id, text: index === listed.length - 1 ? text ?? "" : "" }));
}

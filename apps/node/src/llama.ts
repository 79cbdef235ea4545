/** A GGUF bundle in llama.cpp, by node-llama-cpp's prebuilt binary: nothing is fetched or built. */

import { getLlama, type Token } from "node-llama-cpp";

import type { Model } from "./model";

export async function openLlama(path: string, context: number, threads: number): Promise<Model> {
  const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, progressLogs: false, maxThreads: threads });
  const model = await llama.loadModel({ modelPath: path });
  const { bos, shouldPrependBosToken } = model.tokens; // a text begins as the file says; tokenize leaves that out
  const start = shouldPrependBosToken && bos !== null ? [bos] : [];
  const sequence = (await model.createContext({ contextSize: context, threads })).getSequence();
  return {
    encode: (text) => [...start, ...model.tokenize(text, true)],
    decode: (ids) => model.detokenize(ids as Token[]),
    async *greedy(prompt, count) {
      await sequence.clearHistory();
      let given = 0;
      for await (const token of sequence.evaluate(prompt as Token[], { temperature: 0 })) {
        yield token;
        if (++given === count || model.isEogToken(token)) return;
      }
    },
    close: () => llama.dispose(),
  };
}

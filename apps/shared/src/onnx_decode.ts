/** Greedy decoding of an exported ONNX graph, in whichever onnxruntime opened it. */

import type { InferenceSession, Tensor, TensorConstructor } from "onnxruntime-common";

/** The prompt is fed in pieces: the graph gives logits of every position, which for 500 tokens of SmolLM2 would be 100 MB. */
const PROMPT_PIECE = 32;
const PAST = /^past[a-z_]*(?=\.)/;
const PRESENT = "present";

type Cache = Record<string, Tensor>;

export interface GreedyOptions {
  /** Any of these tokens ends the answer; it is given too, as the last one. */
  readonly ends: readonly number[];
  /** At most so many tokens are given. */
  readonly count: number;
}

/** The most likely token after `prompt`, the one after that, and so on. Stop by leaving the loop over it. */
export async function* greedy(
  session: InferenceSession,
  tensor: TensorConstructor,
  prompt: readonly number[],
  options: GreedyOptions,
): AsyncGenerator<number, void> {
  let cache = emptyCache(session, tensor);
  let total = 0;
  const step = async (tokens: readonly number[]): Promise<number> => {
    total += tokens.length;
    const results = await session.run({ ...inputs(session, tensor, tokens, total), ...cache });
    for (const old of Object.values(cache)) old.dispose();
    cache = Object.fromEntries(Object.keys(cache).map((name) => [name, result(results, name.replace(PAST, PRESENT))]));
    return argmaxOfLast(result(results, "logits"));
  };
  try {
    let token = -1;
    for (let start = 0; start < prompt.length; start += PROMPT_PIECE) {
      token = await step(prompt.slice(start, start + PROMPT_PIECE));
    }
    for (let given = 1; ; given++) {
      yield token;
      if (given >= options.count || options.ends.includes(token)) return;
      token = await step([token]);
    }
  } finally {
    for (const old of Object.values(cache)) old.dispose();
  }
}

function emptyCache(session: InferenceSession, tensor: TensorConstructor): Cache {
  const cache: Cache = {};
  for (const input of session.inputMetadata) {
    if (!PAST.test(input.name) || !input.isTensor) continue;
    // Keys and values are [batch, heads, tokens, size] and grow; a state of a convolution is of fixed size.
    const [, ...rest] = input.shape;
    const dims = [1, ...rest.map((length) => (typeof length === "number" ? length : 0))];
    const count = dims.reduce((product, length) => product * length, 1);
    cache[input.name] = new tensor(input.type, input.type === "float16" ? new Uint16Array(count) : new Float32Array(count), dims);
  }
  return cache;
}

/** Those that the graph has of the three: `tokens` are the last of `total`. */
function inputs(session: InferenceSession, tensor: TensorConstructor, tokens: readonly number[], total: number): Cache {
  const int64 = (values: number[]) => new tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const all: Cache = {
    input_ids: int64([...tokens]),
    attention_mask: int64(new Array<number>(total).fill(1)),
    position_ids: int64(tokens.map((_, index) => total - tokens.length + index)),
  };
  return Object.fromEntries(Object.entries(all).filter(([name]) => session.inputNames.includes(name)));
}

function result(results: InferenceSession.ReturnType, name: string): Tensor {
  const value = results[name];
  if (value === undefined) throw new Error(`the graph has no output ${name}; export it again`);
  return value;
}

function argmaxOfLast(logits: Tensor): number {
  const data = logits.data as Float32Array | Uint16Array;
  const last = data.subarray(data.length - Number(logits.dims.at(-1)));
  const row = last instanceof Uint16Array ? Int32Array.from(last, rank) : last;
  let best = 0;
  for (let index = 1; index < row.length; index++) if ((row[index] as number) > (row[best] as number)) best = index;
  return best;
}

/** Of a float16 by its bits, where JavaScript has no such numbers: larger for a larger number. */
function rank(bits: number): number {
  return bits & 0x8000 ? 0x8000 - bits : bits;
}

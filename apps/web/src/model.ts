/** What the page asks of a model, whichever runtime runs it. */

export interface Token {
  readonly id: number;
  /** What it adds to the answer; empty where a character takes several tokens, and for the token that ends it. */
  readonly text: string;
}

export interface Model {
  /** The runtime, its version and threads. */
  readonly runtime: string;
  /** The most probable tokens after the question, in the bundle's chat template, `most` at most. Stop by leaving the loop. */
  answer(question: string, most: number): AsyncGenerator<Token, void>;
  close(): Promise<void>;
}

/** Threads need memory that they share, which a page has only if its server isolates it (headers.json). */
export const THREADS = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

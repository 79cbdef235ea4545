/** What both runtimes are to the command line. */

export interface Model {
  encode(text: string): number[];
  decode(ids: readonly number[]): string;
  /** The most likely token after `prompt`, the one after that, and so on; one that ends the answer is the last. */
  greedy(prompt: readonly number[], count: number): AsyncIterable<number>;
  close(): Promise<void>;
}

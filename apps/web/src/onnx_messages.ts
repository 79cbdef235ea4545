/** What the page and the worker that runs onnxruntime say to each other. */

import { type TokenizerFiles } from "@adadim/shared";

import { type Token } from "./model";

export type ToWorker =
  | {
      readonly kind: "open";
      readonly model: Blob;
      /** Name, as the graph has it, and content of each file of weights. */
      readonly data: readonly (readonly [string, Blob])[];
      readonly tokenizer: TokenizerFiles;
      readonly ends: readonly number[];
      readonly context: number;
      readonly threads: number;
    }
  | { readonly kind: "ask"; readonly question: string; readonly most: number }
  | { readonly kind: "stop" };

export type FromWorker =
  | { readonly kind: "open"; readonly version: string }
  | { readonly kind: "token"; readonly token: Token }
  | { readonly kind: "end" }
  | { readonly kind: "error"; readonly message: string };

/** What every JavaScript client of a bundle needs: no DOM, no file system, no runtime. */

export { type BundleFile, type Manifest, type StoredFile, stored, storedFiles } from "./manifest";
export { isPlain } from "./names";
export { greedy, type GreedyOptions } from "./onnx_decode";
export { BundleError, count } from "./problems";
export { Chat, TextStream, type TokenizerFiles } from "./tokenizer";
export { type Bundle, checkBundle, sha256, type Source } from "./verify";

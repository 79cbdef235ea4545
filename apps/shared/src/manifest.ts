/** What a client reads of a bundle's manifest.json (docs/reference/bundle.schema.json has all of it). */

import { isPlain, isSha256 } from "./names";
import { cut, Unusable } from "./problems";

const FORMAT = "adadim-bundle";
const VERSION = 1;
const PLATFORMS = ["android", "ios", "web"];
const MANIFEST = "manifest.json";

type Kinds = Readonly<Record<string, (value: any) => boolean>>;

const isText = (value: any) => typeof value === "string";
const isObject = (value: any) => typeof value === "object" && value !== null && !Array.isArray(value);
const isSize = (value: any) => Number.isSafeInteger(value) && value >= 0; // above 2^53 a number is not the one that was written
const isSmall = (value: any) => isSize(value) && value < 2 ** 31; // as the runtimes count tokens

/** What verify_bundle.py asks of every manifest, in its order. */
const KEYS: Kinds = {
  ...Object.fromEntries(["name", "platform", "model", "bundled_by"].map((key) => [key, isText])),
  ...Object.fromEntries(["runtime", "generation", "quantization", "licence", "source", "provenance"].map((key) => [key, isObject])),
  libraries: Array.isArray,
  files: Array.isArray,
  evaluation: (value) => value === undefined || value === null || isObject(value),
};
const FILE: Kinds = { path: isPlain, bytes: isSize, sha256: isSha256 };

/** And what the clients read besides. */
const RUNTIME: Kinds = { name: (value) => ["onnxruntime", "llama.cpp"].includes(value), minimum_version: isText };
const GENERATION: Kinds = { eos_token_ids: (value) => Array.isArray(value) && value.every(isSmall), context: isSmall };
const QUANTIZATION: Kinds = {
  target: (value) => value === null || isText(value),
  bytes: isSize,
  bits_per_weight: Number.isFinite,
};

export interface StoredFile {
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
}

/** A file of the bundle; one with parts is what they give one after another, and lies in them alone. */
export interface BundleFile extends StoredFile {
  readonly parts?: readonly StoredFile[];
}

export interface Manifest {
  readonly name: string;
  readonly platform: string;
  readonly runtime: { readonly name: "onnxruntime" | "llama.cpp"; readonly minimum_version: string };
  /** The file that the runtime opens. */
  readonly model: string;
  readonly generation: {
    readonly eos_token_ids: readonly number[];
    /** Tokens of prompt and answer to make room for. */
    readonly context: number;
  };
  readonly libraries: readonly { readonly abi: string; readonly path: string }[];
  readonly quantization: { readonly target: string | null; readonly bytes: number; readonly bits_per_weight: number };
  readonly files: readonly BundleFile[];
}

/** The files that lie in the bundle: parts where there are some. */
export function stored(file: BundleFile): readonly StoredFile[] {
  return file.parts ?? [file];
}

/** The same of the whole bundle, but for the manifest and SHA256SUMS. */
export function storedFiles(manifest: Manifest): StoredFile[] {
  return manifest.files.flatMap(stored);
}

/** Throws Unusable for anything but a manifest of this version, with all that is declared above. */
export function readManifest(data: Uint8Array): Manifest {
  const manifest = parsed(data);
  const version = manifest?.format === FORMAT ? manifest.version : null;
  if (!isSmall(version) || version < 1) throw new Unusable(`${MANIFEST}: is no manifest of ${FORMAT}`);
  if (version > VERSION) {
    throw new Unusable(`${MANIFEST}: version ${version} is from the future, ${VERSION} is known here; get a newer app`);
  }
  checkFiles(typed(manifest, KEYS, ""));
  typed(manifest.runtime, RUNTIME, "runtime's ");
  typed(manifest.generation, GENERATION, "generation's ");
  typed(manifest.quantization, QUANTIZATION, "quantization's ");
  return manifest;
}

/** Whatever the JSON says, null if it is none. JSON.parse keeps the last of a key twice, and reads 1.0 as 1. */
function parsed(data: Uint8Array): any {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data));
  } catch {
    return null;
  }
}

/** An object of the manifest, its values of these kinds. Throws Unusable. */
function typed(held: any, kinds: Kinds, where: string): any {
  for (const [key, fits] of Object.entries(kinds)) {
    if (!fits(held?.[key])) throw new Unusable(`${MANIFEST}: lacks what every manifest has (${where}${key})`);
  }
  return held;
}

function checkFiles(manifest: Manifest): void {
  for (const file of manifest.files) typed(file, FILE, "a file's ");
  for (const file of manifest.files) if (file.parts !== undefined) typed(file, { parts: Array.isArray }, "a file's ");
  const lying = storedFiles(manifest);
  for (const file of lying) typed(file, FILE, "a part's ");
  for (const library of manifest.libraries) typed(library, { abi: isText, path: isPlain }, "a library's ");
  const [files, paths] = [manifest.files, lying].map((list) => new Set(list.map((file) => file.path))) as [Set<string>, Set<string>];
  const unlisted = manifest.libraries.map((library) => library.path).filter((path) => !paths.has(path));
  if (!files.has(manifest.model)) unlisted.push(cut(manifest.model, 200));
  if (unlisted.length > 0 || files.size !== manifest.files.length || paths.size !== lying.length) {
    throw new Unusable(`${MANIFEST}: ${unlisted[0] ?? "a file"} is not once in its list of files`);
  }
  if (!PLATFORMS.includes(manifest.platform)) {
    throw new Unusable(`${MANIFEST}: platform '${cut(manifest.platform, 99)}' is none of ${PLATFORMS.join(", ")}`);
  }
}

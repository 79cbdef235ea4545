/** What a client reads of a bundle's manifest.json (docs/bundle.schema.json has all of it). */

import { Unusable } from "./problems";

const FORMAT = "adadim-bundle";
const VERSION = 1;
const PLATFORMS = ["android", "ios", "web"];
const FILE = "manifest.json";

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
  if (!Number.isInteger(version) || version < 1) throw new Unusable(`${FILE}: is no manifest of ${FORMAT}`);
  if (version > VERSION) {
    throw new Unusable(`${FILE}: version ${version} is from the future, ${VERSION} is known here; get a newer app`);
  }
  try {
    checkShape(manifest);
  } catch (error) {
    if (error instanceof Unusable) throw error;
    throw new Unusable(`${FILE}: lacks what every manifest has (${String(error)})`);
  }
  return manifest;
}

/** Whatever the JSON says, null if it is none. */
function parsed(data: Uint8Array): any {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data));
  } catch {
    return null;
  }
}

function checkShape(manifest: Manifest): void {
  const files = storedFiles(manifest);
  const paths = new Set(files.map((file) => file.path));
  const shapes = [
    [...manifest.files, ...files].every((f) => typeof f.path === "string" && Number.isInteger(f.bytes) && typeof f.sha256 === "string"),
    typeof manifest.name === "string",
    ["onnxruntime", "llama.cpp"].includes(manifest.runtime.name),
    manifest.generation.eos_token_ids.every(Number.isInteger) && Number.isInteger(manifest.generation.context),
    Number.isInteger(manifest.quantization.bytes) && Number.isFinite(manifest.quantization.bits_per_weight),
  ];
  const wrong = shapes.indexOf(false);
  if (wrong >= 0) throw new Error(["files", "name", "runtime", "generation", "quantization"][wrong]);
  const unlisted = manifest.libraries.map((library) => library.path).filter((path) => !paths.has(path));
  if (!manifest.files.some((file) => file.path === manifest.model)) unlisted.push(manifest.model);
  if (unlisted.length > 0 || paths.size !== files.length) {
    throw new Unusable(`${FILE}: ${unlisted[0] ?? "a file"} is not once in its list of files`);
  }
  if (!PLATFORMS.includes(manifest.platform)) {
    throw new Unusable(`${FILE}: platform '${manifest.platform}' is none of ${PLATFORMS.join(", ")}`);
  }
}

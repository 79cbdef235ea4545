/**
 * Checks a bundle as its own verify_bundle.py does, and says the same of it: SHA256SUMS against the digest that the app
 * pins, every file against SHA256SUMS and the manifest, and what parts join to. Nothing of the bundle is run.
 */

import { createSHA256 } from "hash-wasm";

import { type Manifest, readManifest, type StoredFile, stored, storedFiles } from "./manifest";
import { isPlain, oddStart } from "./names";
import { BundleError, count, cut, Unusable } from "./problems";

const SUMS = "SHA256SUMS";
const MANIFEST = "manifest.json";
const LARGEST_TEXT = 1 << 26; // of these two: more is not read
const LONGEST_NAME = 2000; // characters shown: more than any that is plain up to its last part
const LINE = /^([0-9a-f]{64}) {2}(.+)$/;

type Bytes = Uint8Array<ArrayBuffer>;

/** Where a bundle comes from. */
export interface Source {
  /** The paths of all files that are there; null where nothing can be listed, as on a web server. */
  readonly paths: readonly string[] | null;
  /** A file's bytes, null if it is not there. `expected`: what the bundle says of it, null before that is known. */
  read(path: string, expected: StoredFile | null): Promise<Bytes | null>;
  /** Told once what all files are, before they are read. */
  announce?(files: readonly StoredFile[]): void;
}

export interface Bundle {
  readonly manifest: Manifest;
  /** The sha256 of its SHA256SUMS: what an app pins. */
  readonly digest: string;
}

/** The bundle, if it is whole and, with a `digest`, the one asked for. Throws BundleError. */
export async function checkBundle(source: Source, digest?: string): Promise<Bundle> {
  const problems = oddNames(source.paths ?? []);
  try {
    const sums = await readSums(source, digest);
    const manifest = await checkFiles(source, sums.listed, problems);
    if (manifest !== null && problems.length === 0) return { manifest, digest: sums.digest };
  } catch (error) {
    if (!(error instanceof Unusable)) throw error;
    problems.push(error.message);
  }
  throw new BundleError(problems);
}

/** Path -> sha256. Throws Unusable unless the text is exactly as it is written. */
async function readSums(source: Source, digest?: string): Promise<{ listed: Map<string, string>; digest: string }> {
  const data = await readText(source, SUMS);
  const found = await sha256(data);
  if (digest !== undefined && found !== digest.toLowerCase()) {
    throw new Unusable(`${SUMS}: ${otherwise(found, digest.toLowerCase())}: not the bundle asked for`);
  }
  const lines = new TextDecoder("utf-8", { ignoreBOM: true }).decode(data).split("\n");
  const last = lines.pop();
  const listed = new Map<string, string>();
  lines.forEach((line, index) => {
    const [, sum, path] = LINE.exec(line) ?? [];
    if (sum === undefined || path === undefined || !isPlain(path) || path === SUMS || listed.has(path)) {
      throw new Unusable(`${SUMS}: line ${index + 1} is not a sha256, two spaces and a plain name that is there once`);
    }
    listed.set(path, sum);
  });
  const paths = [...listed.keys()];
  if (last !== "" || paths.join() !== [...paths].sort().join()) {
    throw new Unusable(`${SUMS}: its lines are not in order, or the last one is cut off`);
  }
  return { listed, digest: found };
}

async function readText(source: Source, path: string): Promise<Bytes> {
  const data = await source.read(path, null);
  if (data === null) throw new Unusable(`${path}: missing`);
  if (data.length > LARGEST_TEXT) {
    throw new Unusable(`${path}: ${count(data.length)} bytes, at most ${count(LARGEST_TEXT)} are read`);
  }
  return data;
}

/** The manifest, unless it is damaged; what is wrong is added to `problems`. Each file is read once, one at a time. */
async function checkFiles(source: Source, sums: Map<string, string>, problems: string[]): Promise<Manifest | null> {
  const found = new Map<string, StoredFile>();
  const note = async (path: string, data: Bytes) => found.set(path, { path, bytes: data.length, sha256: await sha256(data) });

  const text = await readText(source, MANIFEST);
  await note(MANIFEST, text);
  const whole = found.get(MANIFEST)?.sha256 === (sums.get(MANIFEST) ?? found.get(MANIFEST)?.sha256);
  const manifest = whole ? readManifest(text) : null;
  if (manifest !== null) source.announce?.(storedFiles(manifest));
  const stated = new Map(manifest === null ? [] : storedFiles(manifest).map((file) => [file.path, file]));

  const read = async (path: string): Promise<Bytes | null> => {
    const data = await source.read(path, stated.get(path) ?? null);
    if (data !== null) await note(path, data);
    return data;
  };
  const joined = manifest === null ? [] : await readParts(manifest, sums, read);
  for (const path of source.paths ?? sums.keys()) {
    if (path !== SUMS && isPlain(path) && !found.has(path)) await read(path);
  }

  problems.push(...strangers(sums, found), ...damages(sums, found, stated));
  if (manifest === null) return null;
  problems.push(...disagreements(sums, found, stated));
  if (problems.length === 0) problems.push(...joined, ...libraryProblems(manifest));
  return manifest;
}

/** Reads every file in parts; what is wrong with what they join to. Only what SHA256SUMS lists is read: names are plain there. */
async function readParts(
  manifest: Manifest,
  sums: Map<string, string>,
  read: (path: string) => Promise<Bytes | null>,
): Promise<string[]> {
  const problems: string[] = [];
  for (const file of manifest.files.filter((file) => file.parts !== undefined)) {
    const hash = await createSHA256();
    let size = 0;
    for (const part of stored(file).filter((part) => sums.has(part.path))) {
      const data = await read(part.path);
      if (data !== null) hash.update(data);
      size += part.bytes;
    }
    const digest = hash.digest();
    if (digest !== file.sha256 || size !== file.bytes) {
      problems.push(`${file.path}: its parts join to ${count(size)} bytes with sha256 ${digest}, not to the file stated`);
    }
  }
  return problems;
}

function oddNames(paths: readonly string[]): string[] {
  const odd = new Set(paths.filter((path) => !isPlain(path)).map(oddStart));
  return [...odd].sort().map((path) => `${cut(path, LONGEST_NAME)}: is no plain name (letters, digits, '.', '_' and '-')`);
}

/** Files that are too many or too few; one of each with the same bytes was renamed. */
function strangers(sums: Map<string, string>, found: Map<string, StoredFile>): string[] {
  const missing = new Set([...sums.keys()].filter((path) => !found.has(path)));
  const extra = [...found.values()].filter((file) => !sums.has(file.path));
  const lines = extra.sort(byPath).map((file) => {
    const was = [...missing].find((path) => sums.get(path) === file.sha256);
    if (was === undefined) return `${file.path}: extra, ${SUMS} does not list it`;
    missing.delete(was);
    return `${file.path}: renamed, it should be ${was}`;
  });
  return [...lines, ...[...missing].map((path) => `${path}: missing`)];
}

function damages(sums: Map<string, string>, found: Map<string, StoredFile>, stated: Map<string, StoredFile>): string[] {
  const damaged = [...found.values()].filter((file) => (sums.get(file.path) ?? file.sha256) !== file.sha256);
  return damaged.sort(byPath).map(({ path, bytes, sha256 }) => {
    const expected = stated.get(path)?.bytes ?? bytes;
    if (bytes === expected) return `${path}: ${otherwise(sha256, sums.get(path) ?? "")}`;
    return `${path}: ${count(bytes)} bytes instead of ${count(expected)}: ${bytes < expected ? "truncated" : "too long"}`;
  });
}

/** Where the two lists differ: somebody changed one and not the other. */
function disagreements(sums: Map<string, string>, found: Map<string, StoredFile>, stated: Map<string, StoredFile>): string[] {
  const lines: string[] = [];
  for (const path of [...new Set([...stated.keys(), ...sums.keys()])].filter((path) => path !== MANIFEST).sort()) {
    const said = stated.get(path);
    const sum = sums.get(path);
    const there = found.get(path);
    if (said === undefined) lines.push(`${path}: only in ${SUMS}, not in ${MANIFEST}`);
    else if (sum === undefined) lines.push(`${path}: only in ${MANIFEST}, not in ${SUMS}`);
    else if (said.sha256 !== sum) lines.push(`${path}: ${MANIFEST} and ${SUMS} state different sha256`);
    else if (there !== undefined && there.sha256 === sum && there.bytes !== said.bytes) {
      lines.push(`${path}: ${MANIFEST} states ${count(said.bytes)} bytes, ${count(there.bytes)} are there`);
    }
  }
  return lines;
}

/** JavaScript runtimes load no native libraries of a bundle, so that of other platforms are checked by their sums alone. */
function libraryProblems(manifest: Manifest): string[] {
  if (manifest.platform !== "web") return [];
  return manifest.libraries.map(({ path, abi }) => `${path}: web takes no library for '${cut(abi, 99)}'; it takes none`);
}

function byPath(one: StoredFile, other: StoredFile): number {
  return one.path < other.path ? -1 : 1;
}

function otherwise(found: string, expected: string): string {
  return `its sha256 is ${found}, not ${expected}`;
}

/** In lower-case hex. */
export async function sha256(data: Bytes): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

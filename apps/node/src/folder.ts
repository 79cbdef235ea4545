/** A bundle as a folder on this machine. */

import { createHash } from "node:crypto";
import { createReadStream, rmSync } from "node:fs";
import { copyFile, lstat, mkdtemp, open, readdir, readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";

import { BundleError, type BundleFile, isPlain, type Manifest, type Source, stored } from "@adadim/shared";

/** The folder as `checkBundle` reads it. Throws BundleError for what no bundle holds: links, pipes, empty folders. */
export async function openFolder(folder: string): Promise<Source> {
  const status = await lstat(folder).catch(() => null);
  if (!status?.isDirectory()) throw new BundleError([`${folder}: is no folder; give the bundle's`]);
  const paths: string[] = [];
  const problems: string[] = [];
  await walk(folder, "", paths, problems);
  if (problems.length > 0) throw new BundleError(problems);
  return {
    paths,
    read: async (path) => (paths.includes(path) ? new Uint8Array(await readFile(join(folder, path))) : null),
  };
}

async function walk(folder: string, inside: string, paths: string[], problems: string[]): Promise<void> {
  const entries = await readdir(join(folder, inside), { withFileTypes: true });
  if (inside !== "" && entries.length === 0) problems.push(`${inside}: is an empty folder`);
  for (const entry of entries.sort((one, other) => (one.name < other.name ? -1 : 1))) {
    const path = inside + entry.name;
    if (!isPlain(path)) paths.push(path); // `checkBundle` names it; into such a folder nobody looks
    else if (entry.isDirectory()) await walk(folder, `${path}/`, paths, problems);
    else if (entry.isFile()) paths.push(path);
    else problems.push(`${path}: ${entry.isSymbolicLink() ? "is a link" : "is no plain file"}`);
  }
}

/**
 * Path of the file that the runtime opens, its neighbours beside it: in the checked bundle itself, or in a temporary folder
 * where its parts are joined, each byte checked once more.
 */
export async function wholeModel(folder: string, manifest: Manifest): Promise<string> {
  const beside = manifest.files.filter((file) => dirname(file.path) === dirname(manifest.model));
  if (beside.every((file) => file.parts === undefined)) return join(folder, manifest.model);
  const scratch = await mkdtemp(join(tmpdir(), "adadim-"));
  process.once("exit", () => rmSync(scratch, { recursive: true, force: true }));
  for (const file of beside) await place(folder, file, join(scratch, basename(file.path)));
  return join(scratch, basename(manifest.model));
}

async function place(folder: string, file: BundleFile, target: string): Promise<void> {
  if (file.parts === undefined) return copyFile(join(folder, file.path), target);
  const hash = createHash("sha256");
  const out = await open(target, "wx");
  try {
    for (const part of stored(file)) {
      for await (const chunk of createReadStream(join(folder, part.path))) {
        hash.update(chunk);
        await out.write(chunk);
      }
    }
  } finally {
    await out.close();
  }
  if (hash.digest("hex") !== file.sha256) throw new BundleError([`${file.path}: changed while it was read`]);
}

/** A bundle, checked and ready: its manifest, and its files as blobs. */

import { type Bundle, checkBundle, type StoredFile, stored } from "@adadim/shared";

import { type BlobSource } from "./sources";

export interface LoadedBundle extends Bundle {
  /** A file, its parts joined without a copy. Throws for one that the manifest does not list. */
  file(path: string): Blob;
  /** The paths that the manifest lists. */
  readonly paths: readonly string[];
}

export interface Progress {
  readonly file: string;
  readonly bytes: number;
  /** Null before the manifest has told it. */
  readonly ofBytes: number | null;
}

/** Reads and checks everything. Throws BundleError for what is wrong with the bundle. */
export async function loadBundle(
  source: BlobSource,
  digest: string | undefined,
  tell: (progress: Progress) => void,
): Promise<LoadedBundle> {
  const blobs = new Map<string, Blob>();
  let [bytes, ofBytes]: [number, number | null] = [0, null];
  const bundle = await checkBundle(
    {
      paths: source.paths,
      announce: (files: readonly StoredFile[]) => {
        [bytes, ofBytes] = [0, files.reduce((total, file) => total + file.bytes, 0)];
      },
      read: async (path, expected) => {
        const before = bytes;
        const blob = await source.open(path, expected, (piece) => tell({ file: path, bytes: (bytes += piece), ofBytes }));
        if (blob === null) return null;
        tell({ file: path, bytes: (bytes = before + blob.size), ofBytes });
        blobs.set(path, blob);
        return new Uint8Array(await blob.arrayBuffer());
      },
    },
    digest,
  );
  const files = new Map(bundle.manifest.files.map((file) => [file.path, file]));
  return {
    ...bundle,
    paths: [...files.keys()],
    file: (path) => {
      const file = files.get(path);
      if (file === undefined) throw new Error(`${path}: the bundle has no such file; export it again`);
      return new Blob(stored(file).map((part) => blobs.get(part.path) as Blob));
    },
  };
}

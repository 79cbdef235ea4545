/** Where a bundle's files come from: a server, a folder that the person picked, or the zip. */

import { type StoredFile } from "@adadim/shared";

import { kept, keep } from "./kept";

export interface BlobSource {
  /** Null where nothing can be listed. */
  readonly paths: readonly string[] | null;
  /** Null if it is not there. `arrived` is told of every piece that comes over a network. */
  open(path: string, expected: StoredFile | null, arrived: (bytes: number) => void): Promise<Blob | null>;
}

/** A folder of a server. What is named by its sha256 is kept, so that an interrupted download goes on where it was. */
export function serverSource(address: string): BlobSource {
  const base = new URL(address.endsWith("/") ? address : `${address}/`, document.baseURI);
  return {
    paths: null,
    open: async (path, expected, arrived) => {
      const here = expected === null ? null : await kept(expected.sha256);
      if (here !== null) {
        arrived(here.size);
        return here;
      }
      const blob = await download(new URL(path, base), arrived);
      if (blob === null || expected === null) return blob;
      return (await keep(expected.sha256, blob)) ?? blob;
    },
  };
}

async function download(address: URL, arrived: (bytes: number) => void): Promise<Blob | null> {
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  try {
    const response = await fetch(address, { cache: "no-store" });
    if (response.status === 404) return null;
    if (!response.ok || response.body === null) throw new TypeError(`the server answers ${response.status}`);
    for await (const piece of response.body) {
      pieces.push(piece);
      arrived(piece.length);
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // what fetch says of a connection
    throw new Error(`${address.pathname}: did not arrive (${error.message}); load again to go on: whole files are kept`);
  }
  return new Blob(pieces);
}

/** A picked folder: its own name is no part of the paths. */
export function folderSource(files: readonly File[]): BlobSource {
  const inside = files.map((file) => [file.webkitRelativePath.split("/").slice(1).join("/"), file] as const);
  return fixedSource(new Map(inside));
}

export function fixedSource(files: ReadonlyMap<string, Blob>): BlobSource {
  return { paths: [...files.keys()], open: async (path) => files.get(path) ?? null };
}

/** Files kept by the browser between visits, each under its sha256: none is taken or given that has another. */

import { sha256 } from "@adadim/shared";

const CACHE = "adadim-files";

function address(sum: string): string {
  return new URL(`kept/${sum}`, document.baseURI).href;
}

export async function kept(sum: string): Promise<Blob | null> {
  const cache = await caches.open(CACHE);
  const held = await cache.match(address(sum));
  if (held === undefined) return null;
  const blob = await held.blob();
  if ((await sumOf(blob)) === sum) return blob;
  await cache.delete(address(sum));
  return null;
}

/** The blob as it is kept, which need not stay in memory; null if it is another, or there is no room. */
export async function keep(sum: string, blob: Blob): Promise<Blob | null> {
  if ((await sumOf(blob)) !== sum) return null;
  try {
    const cache = await caches.open(CACHE);
    await cache.put(address(sum), new Response(blob));
    return (await (await cache.match(address(sum)))?.blob()) ?? null;
  } catch (error) {
    if (error instanceof DOMException) return null; // no room: it is downloaded again next time
    throw error;
  }
}

/** Bytes of all that is kept. */
export async function keptBytes(): Promise<number> {
  const cache = await caches.open(CACHE);
  const answers = await Promise.all((await cache.keys()).map((key) => cache.match(key)));
  const sizes = await Promise.all(answers.map(async (answer) => (await answer?.blob())?.size ?? 0));
  return sizes.reduce((total, size) => total + size, 0);
}

export async function forgetAll(): Promise<void> {
  await caches.delete(CACHE);
}

async function sumOf(blob: Blob): Promise<string> {
  return sha256(new Uint8Array(await blob.arrayBuffer()));
}

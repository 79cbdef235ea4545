/** The names and sums that a bundle may hold: no path of these climbs, starts at a root, or goes on without end. */

const NAME = "[A-Za-z0-9_][A-Za-z0-9._-]{0,99}";
const PLAIN = new RegExp(`^${NAME}(/${NAME}){0,15}$`);
const SHA256 = /^[0-9a-f]{64}$/;

export function isPlain(path: unknown): path is string {
  return typeof path === "string" && PLAIN.test(path);
}

export function isSha256(sum: unknown): sum is string {
  return typeof sum === "string" && SHA256.test(sum);
}

/** "a/.b/c" -> "a/.b", where the path ceases to be plain. */
export function oddStart(path: string): string {
  const parts = path.split("/");
  const count = parts.findIndex((_, index) => !isPlain(parts.slice(0, index + 1).join("/")));
  return parts.slice(0, count + 1).join("/");
}

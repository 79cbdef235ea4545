/** Everything that is wrong with a bundle, each in one line that names the file. */
export class BundleError extends Error {
  override readonly name = "BundleError";

  constructor(readonly problems: readonly string[]) {
    super(problems.join("\n"));
  }
}

/** A problem after which nothing more can be said. */
export class Unusable extends Error {
  override readonly name = "Unusable";
}

/** 1234567 -> "1,234,567" */
export function count(value: number): string {
  return value.toLocaleString("en-US");
}

/** Everything that is wrong with a bundle, each in one line that names the file. */
export class BundleError extends Error {
  override readonly name = "BundleError";
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    const lines = problems.map(escaped);
    super(lines.join("\n"));
    this.problems = lines;
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

/** Its first characters, none of them in half. */
export function cut(text: string, most: number): string {
  return [...text.slice(0, 2 * most)].slice(0, most).join("");
}

const NOT_PRINTABLE = /(?! )[\p{C}\p{Z}]/gu;
const SHORT = new Map([["\t", "\\t"], ["\n", "\\n"], ["\r", "\\r"]]);

/** As verify_bundle.py writes what cannot be printed: a line break as \n, others as \x00, \u0000 or \U00000000. */
function escaped(text: string): string {
  return text.replace(NOT_PRINTABLE, (character) => {
    const code = character.codePointAt(0) as number;
    const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return SHORT.get(character) ?? `\\${letter}${code.toString(16).padStart(digits as number, "0")}`;
  });
}

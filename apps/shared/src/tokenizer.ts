/** Text to token ids and back, and the chat template, from the Hugging Face files of an ONNX bundle. */

import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";

export interface TokenizerFiles {
  /** tokenizer.json */
  readonly tokenizer: string;
  /** tokenizer_config.json */
  readonly config: string;
  /** chat_template.jinja, if there is one. */
  readonly template?: string | undefined;
}

export class Chat {
  readonly #tokenizer: Tokenizer;
  readonly #template: Template | null;
  readonly #special: Record<string, string>;

  constructor(files: TokenizerFiles) {
    const config = JSON.parse(files.config);
    const template = files.template ?? defaultTemplate(config.chat_template);
    this.#tokenizer = new Tokenizer(JSON.parse(files.tokenizer), config);
    this.#template = template === null ? null : new Template(template);
    this.#special = specialTokens(config);
  }

  /** Token ids of a question as the model was taught to be asked; of the text itself if it has no chat template. */
  prompt(question: string): number[] {
    if (this.#template === null) return this.encode(question);
    const messages = [{ role: "user", content: question }];
    const text = this.#template.render({ ...this.#special, messages, tools: null, documents: null, add_generation_prompt: true });
    return this.encode(text, false);
  }

  encode(text: string, addSpecial = true): number[] {
    return this.#tokenizer.encode(text, { add_special_tokens: addSpecial }).ids;
  }

  decode(ids: readonly number[]): string {
    if (ids.length === 0) return ""; // the library refuses none
    return this.#tokenizer.decode([...ids], { skip_special_tokens: true, clean_up_tokenization_spaces: false });
  }
}

/** Turns a growing list of tokens into text, piece by piece: what may still change with the next token is held back. */
export class TextStream {
  readonly #ids: number[] = [];
  #given = "";

  constructor(private readonly decode: (ids: readonly number[]) => string) {}

  /** What this token adds to the text, perhaps nothing: a character may take several tokens. */
  push(id: number): string {
    this.#ids.push(id);
    return this.#next(this.decode(this.#ids).replace(/\ufffd+$/, ""));
  }

  /** What was held back. */
  end(): string {
    return this.#next(this.decode(this.#ids));
  }

  #next(text: string): string {
    const piece = text.slice(this.#given.length);
    if (piece !== "") this.#given = text;
    return piece;
  }
}

function defaultTemplate(template: unknown): string | null {
  if (typeof template === "string") return template;
  if (!Array.isArray(template)) return null;
  return template.find((item) => item.name === "default")?.template ?? null;
}

/** bos_token, eos_token and their like, which templates may name. */
function specialTokens(config: Record<string, unknown>): Record<string, string> {
  const named = Object.entries(config).filter(([key, value]) => key.endsWith("_token") && value !== null);
  const text = (value: unknown) => (typeof value === "object" ? (value as { content: string }).content : String(value));
  return Object.fromEntries(named.filter(([, value]) => typeof value !== "boolean").map(([key, value]) => [key, text(value)]));
}

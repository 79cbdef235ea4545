/** The parts of the page, and what may be shown in them. */

import { BundleError, count } from "@adadim/shared";

import { type LoadedBundle, type Progress } from "./load";

function part<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

export const parts = {
  choose: part<HTMLFormElement>("choose"),
  serverField: part("server-field"),
  served: part<HTMLSelectElement>("served"),
  load: part<HTMLButtonElement>("load"),
  folder: part<HTMLInputElement>("folder"),
  zip: part<HTMLInputElement>("zip"),
  digest: part<HTMLInputElement>("digest"),
  forget: part<HTMLButtonElement>("forget"),
  kept: part("kept"),
  ask: part<HTMLFormElement>("ask"),
  question: part<HTMLTextAreaElement>("question"),
  most: part<HTMLInputElement>("most"),
  send: part<HTMLButtonElement>("send"),
  stop: part<HTMLButtonElement>("stop"),
};
const loading = part("loading");
const progressBar = part<HTMLProgressElement>("progress");
const progressText = part("progress-text");
const status = part("status");
const trouble = part("trouble");
const facts = part("facts");
const answer = part("answer");
const speed = part("speed");
const tokens = part("tokens");

export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Told politely to those who hear the page. */
export function say(text: string): void {
  status.textContent = text;
}

export function showLoading(shown: boolean): void {
  loading.hidden = !shown;
  for (const control of [parts.load, parts.folder, parts.zip, parts.forget]) control.disabled = shown;
  progressBar.removeAttribute("value");
  progressText.textContent = "";
}

export function showProgress({ file, bytes, ofBytes }: Progress): void {
  if (ofBytes !== null) [progressBar.max, progressBar.value] = [ofBytes, Math.min(bytes, ofBytes)];
  progressText.textContent = `${megabytes(bytes)}${ofBytes === null ? "" : ` of ${megabytes(ofBytes)}`}: ${file}`;
}

export function showFacts(bundle: LoadedBundle, runtime: string): void {
  const { name, quantization, generation } = bundle.manifest;
  const rows = [
    ["Model", name],
    ["Size", `${megabytes(quantization.bytes)}, ${quantization.bits_per_weight.toFixed(2)} bits a weight`],
    ["Runs in", runtime],
    ["Context", `${count(generation.context)} tokens`],
    ["Digest", bundle.digest],
  ];
  facts.replaceChildren(...rows.flatMap(([term, text]) => [element("dt", term), element("dd", text)]));
  facts.hidden = false;
}

export function hideFacts(): void {
  facts.hidden = true;
}

/** What went wrong, in one line or, for a bundle, one for each file. */
export function showTrouble(heading: string, error: unknown): void {
  const lines = error instanceof BundleError ? error.problems : [error instanceof Error ? error.message : String(error)];
  part("trouble-heading").textContent = heading;
  part("problems").replaceChildren(...lines.map((line) => element("li", line)));
  trouble.hidden = false;
  trouble.focus();
}

export function hideTrouble(): void {
  trouble.hidden = true;
}

/** A new answer, growing. */
export class AnswerView {
  readonly #ids: number[] = [];
  readonly #start = performance.now();
  #first = 0;

  constructor() {
    answer.textContent = "";
    answer.setAttribute("aria-busy", "true"); // heard as a whole once it is there, not word by word
    speed.textContent = "Reading the question…";
    tokens.textContent = "";
  }

  add(id: number, text: string): void {
    this.#ids.push(id);
    if (this.#ids.length === 1) this.#first = performance.now();
    answer.append(text);
    tokens.textContent = this.#ids.join(" ");
    speed.textContent = this.#measured();
  }

  end(): void {
    answer.setAttribute("aria-busy", "false");
    speed.textContent = this.#measured();
  }

  #measured(): string {
    const given = this.#ids.length;
    const seconds = (performance.now() - this.#first) / 1000;
    if (given < 2) return `${given} tokens`;
    return `${given} tokens, ${((given - 1) / seconds).toFixed(1)} tokens/s, the first after ${((this.#first - this.#start) / 1000).toFixed(1)} s`;
  }
}

function element(name: string, text: string | undefined): HTMLElement {
  const made = document.createElement(name);
  made.textContent = text ?? "";
  return made;
}

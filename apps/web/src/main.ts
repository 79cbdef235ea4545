/** The page: a bundle is chosen, checked and opened; a question is asked, its answer read as it comes. */

import { openGguf } from "./gguf_model";
import { forgetAll, keptBytes } from "./kept";
import { loadBundle } from "./load";
import { type Model } from "./model";
import { openOnnx } from "./onnx_model";
import { AnswerView, hideFacts, hideTrouble, megabytes, parts, say, showFacts, showLoading, showProgress, showTrouble } from "./page";
import { type BlobSource, fixedSource, folderSource, serverSource } from "./sources";
import { zipFiles } from "./zip";

/** What bundles.json beside the page lists. */
interface Served {
  readonly name: string;
  readonly path: string;
  readonly digest?: string;
}

let model: Model | null = null;
let stopped = false;

async function load(makeSource: () => Promise<BlobSource>, pinned?: string): Promise<void> {
  hideTrouble();
  hideFacts();
  say("");
  if (!parts.digest.reportValidity()) return;
  parts.send.disabled = true;
  showLoading(true);
  try {
    await model?.close();
    model = null;
    const bundle = await loadBundle(await makeSource(), parts.digest.value || pinned, showProgress);
    say("Every file is as it should be. Starting the model…");
    model = await (bundle.manifest.runtime.name === "llama.cpp" ? openGguf : openOnnx)(bundle);
    showFacts(bundle, model.runtime);
    say("Ready: ask something.");
    parts.send.disabled = false;
    parts.question.focus();
  } catch (error) {
    say("");
    showTrouble("This bundle was not started", error);
  } finally {
    showLoading(false);
    await showKept();
  }
}

async function ask(question: string, most: number): Promise<void> {
  if (model === null || question.trim() === "") return;
  hideTrouble();
  stopped = false;
  parts.send.disabled = true;
  parts.stop.disabled = false;
  const view = new AnswerView();
  try {
    for await (const { id, text } of model.answer(question, most)) {
      view.add(id, text);
      if (stopped) break;
    }
    say(stopped ? "Stopped." : "");
  } catch (error) {
    showTrouble("The answer was broken off", error);
  } finally {
    view.end();
    const away = [document.body, parts.send, parts.stop].includes(document.activeElement as HTMLElement);
    if (away) parts.question.focus(); // the focus was on a button that is disabled now
    parts.stop.disabled = true;
    parts.send.disabled = false;
  }
}

async function showKept(): Promise<void> {
  parts.kept.textContent = `${megabytes(await keptBytes())} of downloads are kept in this browser, so that nothing is fetched twice.`;
}

async function showServed(): Promise<void> {
  const response = await fetch("bundles.json", { cache: "no-store" });
  const served: Served[] = response.ok ? await response.json() : [];
  parts.served.replaceChildren(...served.map(({ name }, index) => new Option(name, String(index))));
  parts.serverField.hidden = served.length === 0;
  parts.choose.onsubmit = (event) => {
    event.preventDefault();
    const chosen = served[parts.served.selectedIndex];
    if (chosen !== undefined) void load(async () => serverSource(chosen.path), chosen.digest);
  };
}

parts.folder.onchange = () => {
  const files = [...(parts.folder.files ?? [])];
  if (files.length > 0) void load(async () => folderSource(files));
};
parts.zip.onchange = () => {
  const zip = parts.zip.files?.[0];
  if (zip !== undefined) void load(async () => fixedSource(await zipFiles(zip)));
};
parts.forget.onclick = async () => {
  await forgetAll();
  await showKept();
};
parts.ask.onsubmit = (event) => {
  event.preventDefault();
  void ask(parts.question.value, parts.most.valueAsNumber);
};
parts.question.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!parts.send.disabled) parts.ask.requestSubmit();
};
parts.stop.onclick = () => {
  stopped = true;
};
await showServed();
await showKept();

/** Writes the page into build/apps/web: scripts bundled, WebAssembly copied from the packages, nothing left to fetch elsewhere. */

import { build } from "esbuild";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const HERE = import.meta.dirname;
const OUT = join(HERE, "..", "..", "build", "apps", "web");
const { resolve } = createRequire(import.meta.url);
const ORT = dirname(resolve("onnxruntime-web/ort-wasm-simd-threaded.wasm"));

mkdirSync(OUT, { recursive: true });
await build({
  entryPoints: ["src/main.ts", "src/onnx_worker.ts"],
  absWorkingDir: HERE,
  bundle: true,
  format: "esm",
  target: "es2022",
  conditions: ["onnxruntime-web-use-extern-wasm"], // its glue stays a file of its own: threads start from it
  legalComments: "linked",
  minify: true,
  outdir: OUT,
  logLevel: "warning",
});
copyFileSync(resolve("@wllama/wllama/esm/wasm/wllama.wasm"), join(OUT, "wllama.wasm"));
for (const name of ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]) copyFileSync(join(ORT, name), join(OUT, name));
for (const name of ["style.css", "icon.svg", "headers.json"]) copyFileSync(join(HERE, name), join(OUT, name));

const policy = JSON.parse(readFileSync(join(HERE, "headers.json"), "utf-8"))["Content-Security-Policy"];
const page = readFileSync(join(HERE, "index.html"), "utf-8").replace("CONTENT-SECURITY-POLICY", policy);
writeFileSync(join(OUT, "index.html"), page);

// The page of an exported model: a worker on this machine answers.

import { start } from "./view.js";

const worker = new Worker(new URL("engine.js", import.meta.url), { type: "module" });
const waiting = new Map();
let count = 0;

worker.onmessage = ({ data }) => {
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error === undefined) resolve(data.answer);
  else reject(new Error(data.error));
};
worker.onerror = () => {
  for (const { reject } of waiting.values()) reject(new Error("engine.js: cannot be started; copy the whole folder that unet-export wrote"));
  waiting.clear();
};

function ask(name, parts = {}) {
  return new Promise((resolve, reject) => {
    waiting.set(++count, { resolve, reject });
    worker.postMessage({ id: count, ask: name, ...parts });
  });
}

/** Open the model. */
async function open() {
  const { card, threads, error } = await ask("open");
  const isAlone = threads === 1 && (navigator.hardwareConcurrency || 1) > 1;
  const device = `this browser (WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}); golden sample off by ${error.toExponential(1)}`;
  const note = isAlone ? "For several threads the web server has to send the headers Cross-Origin-Opener-Policy: same-origin " +
    "and Cross-Origin-Embedder-Policy: require-corp." : "";
  return { models: [{ card, device, note }], place: "Pictures stay on this machine: the model runs in this browser." };
}

start({
  open,
  answer: (model, file, side) => ask("answer", { file, side }),
  save: (model, file, look) => ask("save", { file, look }),
  atOnce: 1,
});

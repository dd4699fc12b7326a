// The page of unet-serve: the server answers, and the page draws its probabilities. See docs/serving.md.

import { restored } from "./answer.js";
import { within } from "./resample.js";
import { start } from "./view.js";

const LARGEST = 400e6; // bytes of probabilities that are asked for; larger pictures are reduced before they are sent
const TRIES = 20; // of a request that a busy server refuses

let key, limits;

/** Ask the server; raises an error with the server's own words, and waits where it is busy. */
async function request(path, options = {}) {
  for (let tried = 1; ; tried++) {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await fetch(path, { ...options, headers }).catch(() => {
      throw new Error("the server does not answer; see whether it still runs");
    });
    if (answer.ok) return answer;
    if (answer.status === 429 && tried < TRIES) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(seconds, 30)));
      continue;
    }
    const { error } = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(error ?? `the server answered ${answer.status}`), { needsKey: answer.status === 401 });
  }
}

/** Ask for all models that the server has. */
async function open(given) {
  key = given;
  const found = await (await request("v1/models")).json();
  limits = found.limits;
  const models = found.models.map(({ name, sha256, device, provider, golden_error, card }) => ({
    card: { ...card, name },
    sha256,
    device: `${device} (${provider}); golden sample off by ${golden_error.toExponential(1)}`,
    note: "",
  }));
  return { models, place: "Pictures are sent to this server, which does not keep them." };
}

/** Decode a file where the browser can: an ImageBitmap, upright, or null. */
function shownBy(file) {
  return createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" }).catch(() => null);
}

/** A picture that is small enough for its probabilities to be sent back: {body, notes}. */
async function sendable(model, file, bitmap) {
  const classes = model.card.output.classes.length, pixels = bitmap ? bitmap.width * bitmap.height : 0;
  if (4 * classes * pixels <= LARGEST) return { body: file, notes: [] };
  const side = Math.floor(Math.max(bitmap.width, bitmap.height) * Math.sqrt(LARGEST / (4 * classes * pixels)));
  const [height, width] = within([bitmap.height, bitmap.width], side), canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, width, height);
  const note = `sent to the server at ${width}x${height} for this page; what is saved has the full size`;
  return { body: await canvas.convertToBlob({ type: "image/png" }), notes: [note] };
}

async function predicted(model, body, format, threshold) {
  if (body.size > limits.bytes) {
    throw new Error(`has ${(body.size / 1e6).toFixed(0)} MB, the server takes at most ${(limits.bytes / 1e6).toFixed(0)} MB`);
  }
  const options = new URLSearchParams({ model: model.card.name, format });
  if (threshold !== undefined) options.set("threshold", threshold);
  const answer = await request(`v1/predict?${options}`, { method: "POST", body });
  if (answer.headers.get("X-Model-Sha256") !== model.sha256) { // its classes may be others
    throw new Error("the server has another file of this model now; reload the page");
  }
  return answer;
}

/** Read a .npy file of float32 [classes, height, width]. */
function arrayOf(buffer) {
  const head = new TextDecoder("latin1").decode(buffer.slice(0, 128));
  const shape = head.match(/'shape': \((\d+), (\d+), (\d+)\)/)?.slice(1).map(Number);
  if (!head.includes("'<f4'") || !shape) throw new Error("the server sent something that this page does not read");
  return { shape, planes: new Float32Array(buffer, buffer.byteLength - 4 * shape[0] * shape[1] * shape[2]) };
}

/** The stages and their milliseconds, from the header Server-Timing. */
function timesOf(answer) {
  const found = (answer.headers.get("Server-Timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g);
  return Object.fromEntries([...found].map(([, name, time]) => [name, Number(time)]).filter(([name]) => name !== "total"));
}

async function answer(model, file, side) {
  const bitmap = await shownBy(file), { body, notes } = await sendable(model, file, bitmap);
  const found = await predicted(model, body, "npy"), { shape, planes } = arrayOf(await found.arrayBuffer());
  if (found.headers.has("X-Warning")) notes.push(found.headers.get("X-Warning"));
  const size = within(shape.slice(1), side), whole = { top: 0, left: 0, inner: shape.slice(1) };
  let shown = bitmap;
  if (!shown) {
    shown = await createImageBitmap(await (await predicted(model, file, "overlay")).blob());
    notes.push("this browser does not show the format, so the picture has the server's overlay in it");
  }
  const original = bitmap ? [bitmap.height, bitmap.width] : shape.slice(1);
  const resize = { resizeWidth: size[1], resizeHeight: size[0], resizeQuality: "high" };
  const small = await createImageBitmap(shown, resize);
  shown.close(); // the memory of a large picture would wait for the garbage collector
  return {
    shown: small,
    planes: size[0] === shape[1] ? planes : restored(planes, shape, whole, size),
    size, original, times: timesOf(found), notes,
  };
}

/** A file to save, at the picture's own size; classes that overlap have a page each, in a TIFF. */
async function save(model, file, { view, threshold }) {
  const { output } = model.card, thresholded = output.activation !== "softmax" && view !== "probability";
  const format = output.activation === "sigmoids" && view === "mask" ? "tiff" : view;
  return (await predicted(model, file, format, thresholded ? threshold : undefined)).blob();
}

start({ open, answer, save, atOnce: 4 });

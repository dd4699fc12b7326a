// A worker that runs the model of an exported page: it decodes, fits, asks ONNX Runtime, and draws files to save.
// Messages: {id, ask, ...} in, {id, answer} or {id, error} out; `ask` is one of the names in `ANSWERS`.

import { drawn, maskPixels, restored } from "./answer.js";
import { channelsOf, fitted } from "./fit.js";
import { within } from "./resample.js";
import { isCut } from "./whole.js";

const RUNTIME = new URL("../ort/", import.meta.url);

let ort, session, card;

/** Open the model and replay its golden sample. Returns {card, threads, error}. */
async function open() {
  const answer = await fetch(new URL("../model.json", import.meta.url));
  if (!answer.ok) throw new Error(`model.json: is missing (${answer.status}); copy the whole folder that unet-export wrote`);
  const content = await answer.json(), { file, golden } = content;
  card = content.card;
  try {
    ort = await import(new URL("ort.wasm.min.mjs", RUNTIME));
  } catch {
    throw new Error(MISSING);
  }
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
  Object.assign(ort.env.wasm, { wasmPaths: RUNTIME.href, numThreads: threads });
  const model = new URL(`../${file}`, import.meta.url);
  session = await ort.InferenceSession.create(model.href).catch((error) => {
    throw new Error(`${file}: cannot be opened by onnxruntime-web (${error.message})`);
  });
  const { image, probability, shape, limit } = golden;
  const found = await run(unpacked(image, Uint8Array), shape);
  const expected = unpacked(probability, Float32Array);
  let error = 0;
  for (let index = 0; index < expected.length; index++) {
    const [y, x, plane] = goldenPlace(golden, index);
    const off = Math.abs(found.data[(plane * found.dims[2] + y) * found.dims[3] + x] - expected[index]);
    error = off <= error ? error : off;
  }
  if (!(error <= limit)) {
    throw new Error(`${file}: answers its golden sample wrongly here (off by ${error.toPrecision(2)}, expected at ` +
      `most ${limit}); the file and model.json may be of two exports, so copy the whole folder again`);
  }
  return { card, threads, error };
}

const MISSING = "ort/: onnxruntime-web is missing; run `npm install onnxruntime-web` and copy ort.wasm.min.mjs, " +
  "ort-wasm-simd-threaded.mjs and ort-wasm-simd-threaded.wasm from node_modules/onnxruntime-web/dist to the folder ort " +
  "of this page, or export again with --onnxruntime-web node_modules/onnxruntime-web";

/** Row, column and plane of a value of the golden sample's probabilities. */
function goldenPlace({ size: [height, width] }, index) {
  return [Math.floor(index / width) % height, index % width, Math.floor(index / (width * height))];
}

/** Decode base64 of little-endian values. */
function unpacked(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

/** Ask the network about bytes of one picture, `shape` (height, width, channels). */
async function run(bytes, shape) {
  const count = card.input.fixed_batch ?? 1, batch = new Uint8Array(count * bytes.length);
  for (let index = 0; index < count; index++) batch.set(bytes, index * bytes.length);
  const image = new ort.Tensor("uint8", batch, [count, ...shape]);
  return (await session.run({ image })).probability;
}

/** Decode a file, upright and without colour management, to {rgba, size, notes}. */
async function decoded(file) {
  const bytes = new Uint8Array(await file.arrayBuffer()), notes = [];
  if (isCut(bytes)) throw new Error("is truncated: its file ends before the picture does; copy it again");
  if (bytes[0] === 0x89 && bytes[24] === 16 && card.input.levels) {
    throw new Error("has 16 bits, of which a browser keeps 8, and this model needs all; use unet-predict or unet-serve");
  }
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, options).catch(() => {
    throw new Error("is damaged, or of a format that this browser does not show; give a JPEG, PNG or WebP");
  });
  const size = [bitmap.height, bitmap.width], canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = pen.getImageData(0, 0, size[1], size[0]).data;
  for (let index = 3; index < rgba.length; index += 4) {
    if (rgba[index] === 255) continue;
    notes.push("has transparent pixels, whose hidden colours a browser does not give; they count as black");
    break;
  }
  return { rgba, size, canvas, notes };
}

/** Run one file through all stages. Returns {picture, output, times}. */
async function answered(file) {
  const times = {}, clock = (name, start) => (times[name] = performance.now() - start);
  let start = performance.now();
  const picture = await decoded(file);
  clock("decode", start);
  start = performance.now();
  const input = fitted(channelsOf(picture.rgba, card.input), [...picture.size, card.input.channels.length], card.input);
  clock("fit", start);
  start = performance.now();
  const found = await run(input.bytes, input.shape);
  clock("infer", start);
  return { picture, input, found, times };
}

/** The answer for one file as the page shows it, at most `side` pixels long. */
async function answer({ file, side }) {
  const { picture, input, found, times } = await answered(file);
  const start = performance.now(), size = within(picture.size, side), classes = found.dims[1];
  const planes = restored(found.data, [classes, ...found.dims.slice(2)], input, size);
  times.restore = performance.now() - start;
  const shown = await createImageBitmap(picture.canvas, { resizeWidth: size[1], resizeHeight: size[0], resizeQuality: "high" });
  return { shown, planes, size, original: picture.size, times, notes: picture.notes };
}

/** A file to save, at the picture's own size: a PNG of a view, or of the mask. */
async function save({ file, look }) {
  const { picture, input, found } = await answered(file);
  const planes = restored(found.data, found.dims.slice(1), input, picture.size), { output } = card;
  const pixels = look.view === "mask"
    ? maskPixels(planes, picture.size, output, look.threshold, look.chosen)
    : drawn(picture.rgba, planes, picture.size, output, look);
  const canvas = new OffscreenCanvas(picture.size[1], picture.size[0]);
  canvas.getContext("2d").putImageData(new ImageData(pixels, picture.size[1]), 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

const ANSWERS = { open, answer, save };
let before = Promise.resolve();

self.onmessage = ({ data }) => {
  before = before.then(async () => {
    try {
      self.postMessage({ id: data.id, answer: await ANSWERS[data.ask](data) });
    } catch (error) {
      self.postMessage({ id: data.id, error: error.message });
    }
  });
};

// What is made of the probabilities of one picture: its mask, shares of the classes, and pictures to look at.
// The same as `Segmentation` in runtime/result.py. Planes are a Float32Array [classes, height, width].

import { resampled } from "./resample.js";

/** Views of an answer, in the order of the page: the name in files, and what a person reads. */
export const VIEWS = { overlay: "Overlay", cutout: "Cut-out", probability: "Probability", mask: "Mask", image: "Image" };

const REACH = 2; // pixels: an edge is soft where the border is so near

/** Bring planes back to a picture's size, (height, width), first cutting off the bars of a letterbox. */
export function restored(planes, [classes, height, width], { top, left, inner }, size) {
  const found = new Float32Array(classes * size[0] * size[1]), part = new Float32Array(inner[0] * inner[1]);
  for (let index = 0; index < classes; index++) {
    for (let y = 0; y < inner[0]; y++) {
      const start = (index * height + top + y) * width + left;
      part.set(planes.subarray(start, start + inner[1]), y * inner[1]);
    }
    let plane = part, shape = [...inner, 1];
    for (const step of [[Math.min(inner[0], size[0]), Math.min(inner[1], size[1])], size]) {
      if (step[0] === shape[0] && step[1] === shape[1]) continue;
      plane = resampled(plane, shape, step);
      shape = [...step, 1];
    }
    found.set(plane, index * size[0] * size[1]);
  }
  return found;
}

/**
 * The number of each pixel's class, from 1, Uint16Array [height * width]; 0 is background.
 *
 * Where several classes overlap, a pixel has the most probable one. `chosen` are the indices of the classes to see.
 */
export function labelsOf(planes, pixels, output, threshold, chosen) {
  const classes = output.classes.length, first = output.activation === "softmax" ? 1 : 0;
  const labels = new Uint16Array(pixels), least = Math.fround(threshold), seen = new Uint8Array(classes);
  for (const index of chosen) seen[index] = 1;
  for (let pixel = 0; pixel < pixels; pixel++) {
    let best = -1, most = first ? -Infinity : least;
    for (let index = 0; index < classes; index++) {
      const value = planes[index * pixels + pixel];
      if (value > most && (first || seen[index])) {
        most = value;
        best = index;
      }
    }
    if (best >= first && seen[best]) labels[pixel] = best - first + 1;
  }
  return labels;
}

/** The share of each class of the foreground: [{name, share, colour number}]. */
export function sharesOf(planes, pixels, output, threshold) {
  const softmax = output.activation === "softmax", counts = new Float64Array(output.classes.length);
  if (softmax) {
    for (const label of labelsOf(planes, pixels, output, threshold, output.classes.keys())) counts[label]++;
  } else {
    const least = Math.fround(threshold);
    for (let index = 0; index < planes.length; index++) if (planes[index] > least) counts[Math.floor(index / pixels)]++;
  }
  return foreground(output).map((index) => ({ name: output.classes[index], share: counts[index] / pixels, index }));
}

/** Indices of the classes of the foreground: the first one of a softmax is the background. */
export function foreground(output) {
  return [...output.classes.keys()].slice(output.activation === "softmax" ? 1 : 0);
}

/** The probability of the chosen classes at each pixel: their sum, or where classes overlap the largest one. */
function together(planes, pixels, output, chosen) {
  const found = new Float32Array(pixels), sum = output.activation === "softmax";
  for (const index of chosen) {
    for (let pixel = 0; pixel < pixels; pixel++) {
      const value = planes[index * pixels + pixel];
      found[pixel] = sum ? found[pixel] + value : Math.max(found[pixel], value);
    }
  }
  return found;
}

/** The amount by which each pixel belongs to the chosen classes: positive inside. */
function marginOf(planes, pixels, output, threshold, chosen) {
  const margin = new Float32Array(pixels).fill(-Infinity), others = new Float32Array(pixels).fill(0);
  for (let index = 0; index < output.classes.length; index++) {
    const into = chosen.includes(index) ? margin : others;
    for (let pixel = 0; pixel < pixels; pixel++) into[pixel] = Math.max(into[pixel], planes[index * pixels + pixel]);
  }
  for (let pixel = 0; pixel < pixels; pixel++) {
    margin[pixel] -= output.activation === "softmax" ? others[pixel] : Math.fround(threshold);
  }
  return margin;
}

/** Alpha with a soft edge along the border, `edge` pixels wide; see runtime/images/cutout.py. */
function edgeAlpha(margin, labels, [height, width], edge) {
  const alpha = new Uint8ClampedArray(height * width);
  const at = (y, x) => margin[Math.min(Math.max(y, 0), height - 1) * width + Math.min(Math.max(x, 0), width - 1)];
  const near = (y, x) => {
    const inside = labels[y * width + x] > 0;
    for (let down = -REACH; down <= REACH; down++) {
      const reach = Math.abs(down) === REACH ? 0 : REACH;
      for (let right = -reach; right <= reach; right++) {
        const row = y + down, column = x + right;
        if (row < 0 || column < 0 || row >= height || column >= width) continue;
        if (labels[row * width + column] > 0 !== inside) return true;
      }
    }
    return false;
  };
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const pixel = y * width + x, inside = labels[pixel] > 0;
      alpha[pixel] = inside ? 255 : 0;
      if (margin[pixel] > 0 !== inside || !near(y, x)) continue;
      const [a, b, c, d, e, f, g, h] = [at(y - 1, x - 1), at(y - 1, x), at(y - 1, x + 1), at(y, x - 1), at(y, x + 1),
        at(y + 1, x - 1), at(y + 1, x), at(y + 1, x + 1)];
      const slope = Math.hypot(c + 2 * e + h - a - 2 * d - f, f + 2 * g + h - a - 2 * b - c) / 8;
      const opacity = Math.min(Math.max(0.5 + margin[pixel] / Math.max(slope, 1e-38) / edge, 0), 1);
      alpha[pixel] = inside ? Math.ceil(255 * opacity) : Math.floor(255 * opacity);
    }
  }
  return alpha;
}

/**
 * Draw a view of an answer as RGBA bytes.
 *
 * `picture` are RGBA bytes of `size`, (height, width), `planes` have that size too. `look` is {view, threshold, chosen,
 * colours, opacity, edge}: `chosen` are indices of classes, the others are what runtime/page/files.py tells.
 */
export function drawn(picture, planes, size, output, look) {
  const pixels = size[0] * size[1], rgba = new Uint8ClampedArray(picture);
  for (let index = 3; index < rgba.length; index += 4) rgba[index] = 255;
  if (look.view === "image") return rgba;
  if (look.view === "probability") {
    const shares = together(planes, pixels, output, look.chosen);
    for (let pixel = 0; pixel < pixels; pixel++) rgba.fill(Math.round(255 * shares[pixel]), 4 * pixel, 4 * pixel + 3);
    return rgba;
  }
  const labels = labelsOf(planes, pixels, output, look.threshold, look.chosen);
  if (look.view === "cutout") {
    const margin = marginOf(planes, pixels, output, look.threshold, look.chosen);
    const alpha = edgeAlpha(margin, labels, size, look.edge);
    for (let pixel = 0; pixel < pixels; pixel++) rgba[4 * pixel + 3] = alpha[pixel];
    return rgba;
  }
  for (let pixel = 0; pixel < pixels; pixel++) {
    const colour = labels[pixel] ? look.colours[(labels[pixel] - 1) % look.colours.length] : null;
    for (let channel = 0; channel < 3; channel++) {
      const place = 4 * pixel + channel;
      if (look.view === "mask") rgba[place] = colour ? colour[channel] : 0;
      else if (colour) rgba[place] += look.opacity * (colour[channel] - rgba[place]);
    }
  }
  return rgba;
}

/**
 * The mask as a file holds it, RGBA bytes: 0 and 255 for one class, indices of classes for several.
 *
 * Where classes overlap, which no picture can hold, it is 0 and 255 for the `chosen` ones together.
 */
export function maskPixels(planes, size, output, threshold, chosen) {
  const pixels = size[0] * size[1], rgba = new Uint8ClampedArray(4 * pixels).fill(255);
  const indices = output.activation === "softmax", all = indices ? foreground(output) : chosen;
  const labels = labelsOf(planes, pixels, output, threshold, all);
  for (let pixel = 0; pixel < pixels; pixel++) {
    rgba.fill(indices ? labels[pixel] : labels[pixel] && 255, 4 * pixel, 4 * pixel + 3);
  }
  return rgba;
}

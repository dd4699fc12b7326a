// A decoded picture as the network takes it; the same as `fit` in runtime/image.py.

import { resizedBytes } from "./resample.js";

/** Round half to even, as Python does. */
function rounded(value) {
  const below = Math.floor(value), part = value - below;
  return part > 0.5 || (part === 0.5 && below % 2) ? below + 1 : below;
}

/** Turn RGBA bytes into the channels of the card, "RGB" or "L" (grey by Pillow's weights), and apply its levels. */
export function channelsOf(rgba, { channels, levels }) {
  const pixels = rgba.length / 4, grey = channels === "L", bytes = new Uint8ClampedArray(pixels * (grey ? 1 : 3));
  for (let pixel = 0, from = 0, to = 0; pixel < pixels; pixel++, from += 4) {
    if (grey) {
      bytes[to++] = (19595 * rgba[from] + 38470 * rgba[from + 1] + 7471 * rgba[from + 2] + 0x8000) >> 16;
    } else {
      bytes[to++] = rgba[from];
      bytes[to++] = rgba[from + 1];
      bytes[to++] = rgba[from + 2];
    }
  }
  if (levels && levels[1] <= 255) {
    const [black, white] = levels;
    for (let index = 0; index < bytes.length; index++) {
      bytes[index] = Math.floor(((Math.min(Math.max(bytes[index], black), white) - black) * 255) / (white - black));
    }
  }
  return bytes;
}

/** Raise an error that a person can act on if the network does not take a picture of this size. */
function checkSize([height, width], input) {
  const [least, leastWidth] = input.min_size;
  if (height < least || width < leastWidth) {
    throw new Error(`is ${width}x${height} pixels, the network takes at least ${leastWidth}x${least}; give a larger picture`);
  }
}

/**
 * Bring bytes [height, width, channels] to the size that the card names.
 *
 * Returns {bytes, shape, top, left, inner}: the part of `shape` from (`top`, `left`) of the size `inner` shows the
 * whole picture.
 */
export function fitted(bytes, [height, width, channels], input) {
  if (input.fit === "native") {
    const size = [height, width].map((side) => Math.max(1, Math.floor(input.scale * side)));
    checkSize(size, input);
    return { bytes: resizedBytes(bytes, [height, width, channels], size), shape: [...size, channels], top: 0, left: 0, inner: size };
  }
  const shape = [...input.size, channels];
  if (input.fit === "stretch") {
    return { bytes: resizedBytes(bytes, [height, width, channels], input.size), shape, top: 0, left: 0, inner: input.size };
  }
  const scale = Math.min(input.size[0] / height, input.size[1] / width);
  const inner = [height, width].map((side) => Math.max(1, rounded(scale * side)));
  const [top, left] = inner.map((side, axis) => Math.floor((input.size[axis] - side) / 2));
  const canvas = new Uint8ClampedArray(input.size[0] * input.size[1] * channels);
  const bars = input.mean.map((mean) => Math.min(Math.max(rounded(255 * mean), 0), 255));
  for (let index = 0; index < canvas.length; index++) canvas[index] = bars[index % channels];
  const picture = resizedBytes(bytes, [height, width, channels], inner), line = inner[1] * channels;
  for (let y = 0; y < inner[0]; y++) {
    canvas.set(picture.subarray(y * line, (y + 1) * line), ((top + y) * input.size[1] + left) * channels);
  }
  return { bytes: canvas, shape, top, left, inner };
}

// Resizing as OpenCV does it in runtime/image.py: by area along sides that shrink, else bilinearly.

/** Return what each of `count` new samples is made of: its first old sample, and the weights of those from there on. */
function taps(old, count) {
  const first = new Int32Array(count), weights = new Array(count), scale = old / count;
  for (let index = 0; index < count; index++) {
    if (old === count) {
      first[index] = index;
      weights[index] = [1];
    } else if (count < old) {
      const begin = index * scale, end = Math.min(begin + scale, old), width = end - begin;
      const from = Math.floor(begin + 1e-3), to = Math.min(Math.ceil(end - 1e-3), old);
      first[index] = from;
      weights[index] = [];
      for (let sample = from; sample < to; sample++) {
        weights[index].push((Math.min(sample + 1, end) - Math.max(sample, begin)) / width);
      }
    } else {
      const place = Math.min(Math.max((index + 0.5) * scale - 0.5, 0), old - 1);
      first[index] = Math.min(Math.floor(place), Math.max(0, old - 2));
      const share = place - first[index];
      weights[index] = old === 1 ? [1] : [1 - share, share];
    }
  }
  return { first, weights };
}

/**
 * Resize [height, width, channels] to `size`, (height, width), in one step.
 *
 * `values` is any typed array; the answer is a Float32Array of the rows `from` to `to` (without the last one).
 */
export function resampled(values, [height, width, channels], [newHeight, newWidth], from = 0, to = newHeight) {
  const down = taps(height, newHeight), right = taps(width, newWidth);
  const line = width * channels, row = new Float32Array(line), found = new Float32Array((to - from) * newWidth * channels);
  let place = 0;
  for (let y = from; y < to; y++) {
    row.fill(0);
    down.weights[y].forEach((weight, index) => {
      const start = (down.first[y] + index) * line;
      for (let x = 0; x < line; x++) row[x] += weight * values[start + x];
    });
    for (let x = 0; x < newWidth; x++) {
      const shares = right.weights[x], start = right.first[x] * channels;
      for (let channel = 0; channel < channels; channel++) {
        let sum = 0;
        for (let index = 0; index < shares.length; index++) sum += shares[index] * row[start + index * channels + channel];
        found[place++] = sum;
      }
    }
  }
  return found;
}

/** Resize a picture, bytes [height, width, channels], to `size`, (height, width). Returns bytes. */
export function resizedBytes(values, [height, width, channels], [newHeight, newWidth]) {
  const smaller = [Math.min(height, newHeight), Math.min(width, newWidth)];
  let picture = values, shape = [height, width, channels];
  for (const size of [smaller, [newHeight, newWidth]]) {
    if (size[0] === shape[0] && size[1] === shape[1]) continue;
    picture = Uint8ClampedArray.from(resampled(picture, shape, size)); // rounds half to even, as OpenCV does
    shape = [...size, channels];
  }
  return picture;
}

/** Return (height, width) of a picture whose longer side is at most `side`. */
export function within([height, width], side) {
  const scale = Math.min(1, side / Math.max(height, width));
  return [Math.max(1, Math.round(scale * height)), Math.max(1, Math.round(scale * width))];
}

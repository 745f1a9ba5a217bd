"use strict";
// From the pixels of a picture to a model's input, with the bits that repzoo's Python makes.
// `spec` is the model's preprocessing; repzoo/report/demo.py lists its fields.

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = { // [support, weight at a distance within it], as Pillow defines them
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => { // Keys, with a = -0.5
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const BITS = 22; // of Pillow's fixed-point weights for 8-bit pixels
const MAX_RESIZED = 64e6; // pixels, as in Python

function roundHalfToEven(value) {
  const low = Math.floor(value);
  if (value - low !== 0.5) return Math.round(value);
  return low % 2 ? low + 1 : low;
}

function targetSize(width, height, spec) { // [width, height] after resizing, before the crop
  const [rows, columns] = spec.resize_to;
  if (spec.resize === "squash") return [columns, rows];
  if (rows === columns) {
    if (width <= height) return [columns, Math.trunc(columns * height / width)];
    return [Math.trunc(rows * width / height), rows];
  }
  const ratio = Math.min(height / rows, width / columns);
  const cover = (side, least) => Math.max(roundHalfToEven(side / ratio), least);
  return [cover(width, columns), cover(height, rows)];
}

// For each of the `size` pixels in the middle of `target`, which are made of `side` pixels:
// the first of those it is made of, and their weights.
function windows(side, target, size, filter) {
  const start = roundHalfToEven((target - size) / 2);
  const scale = side / target;
  if (filter === "nearest") return nearest(scale, start, size);
  const [support, weightAt] = FILTERS[filter];
  const stretch = Math.max(scale, 1); // antialiasing: a filter as wide as an output pixel
  const reach = support * stretch;
  const found = [];
  for (let i = start; i < start + size; i++) {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(side, Math.trunc(center + reach + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) weights.push(weightAt((x - center + 0.5) * (1 / stretch)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const fixed = weights.map((weight) => {
      const scaled = (weight / total) * 2 ** BITS;
      return Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    });
    found.push([first, fixed]);
  }
  return found;
}

function nearest(scale, start, size) {
  const found = [];
  let position = scale * 0.5; // Pillow adds up, with what that rounds
  for (let i = 0; i < start + size; i++, position += scale) {
    if (i >= start) found.push([Math.trunc(position), [2 ** BITS]]);
  }
  return found;
}

const clip = (sum) => Math.min(255, Math.max(0, sum >> BITS));

// One pass along `axis`, rounded to bytes: an image [height, width, depth] becomes RGB with a pixel for each of `taps`.
// Of the lines across it, those from `start` to `end` are made.
function pass({ data, width, depth }, axis, taps, start, end) {
  const count = end - start;
  const isAlongRows = axis === "x";
  const outWidth = isAlongRows ? taps.length : count;
  const [step, line] = isAlongRows ? [depth, width * depth] : [width * depth, depth];
  const [outStep, outLine] = isAlongRows ? [3, outWidth * 3] : [outWidth * 3, 3];
  const made = new Uint8Array(taps.length * count * 3);
  for (let i = 0; i < count; i++) {
    for (let k = 0; k < taps.length; k++) {
      const [first, weights] = taps[k];
      for (let channel = 0; channel < 3; channel++) {
        let sum = 1 << (BITS - 1), at = (start + i) * line + first * step + channel;
        for (let n = 0; n < weights.length; n++, at += step) sum += data[at] * weights[n];
        made[i * outLine + k * outStep + channel] = clip(sum);
      }
    }
  }
  return { data: made, width: outWidth, depth: 3 };
}

// RGBA pixels as resized and cropped RGB: bytes [height, width, 3] of the model's size.
function resizedAndCropped({ data, width, height }, spec) {
  const [targetWidth, targetHeight] = targetSize(width, height, spec);
  if (targetWidth * targetHeight > MAX_RESIZED) throw new Complaint("too_narrow", { width, height });
  const passes = [
    ["x", windows(width, targetWidth, spec.width, spec.interpolation)],
    ["y", windows(height, targetHeight, spec.height, spec.interpolation)],
  ];
  // Of a picture that loses far more rows than columns, Pillow 13 and later make the columns first.
  const isTall = height > targetHeight && height - targetHeight > 2 * (width - targetWidth);
  if (isTall && spec.tall_first) passes.reverse();
  const [[axis, taps], [lastAxis, lastTaps]] = passes;
  const start = Math.min(...lastTaps.map(([first]) => first)); // only what the crop needs
  const end = Math.max(...lastTaps.map(([first, weights]) => first + weights.length));
  const once = pass({ data, width, depth: 4 }, axis, taps, start, end);
  const moved = lastTaps.map(([first, weights]) => [first - start, weights]);
  return pass(once, lastAxis, moved, 0, taps.length).data;
}

function inColor(pixels, color) { // RGB pixels in another order, or as gray
  if (color === "RGB") return pixels;
  const count = pixels.length / 3;
  const changed = new Uint8Array(color === "GRAY" ? count : pixels.length);
  for (let i = 0; i < count; i++) {
    const [red, green, blue] = pixels.subarray(3 * i, 3 * i + 3);
    if (color === "GRAY") changed[i] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >>> 16;
    else changed.set([blue, green, red], 3 * i);
  }
  return changed;
}

function normalized(pixels, spec) { // float32 at every step, as numpy does it
  const { mean, std, layout } = spec;
  const channels = mean.length, count = pixels.length / channels;
  const values = new Float32Array(pixels.length);
  const round = Math.fround;
  for (let channel = 0; channel < channels; channel++) {
    for (let i = 0; i < count; i++) {
      const scaled = round(round(round(pixels[i * channels + channel] / 255) - mean[channel]) / std[channel]);
      values[layout === "NHWC" ? i * channels + channel : channel * count + i] = scaled;
    }
  }
  return values;
}

function nv12(pixels, { width, height, matrix, offset }) {
  const count = width * height;
  const bytes = new Uint8Array(count * 3 / 2);
  const chroma = [new Float64Array(count / 4), new Float64Array(count / 4)];
  const toByte = (value) => Math.min(255, Math.max(0, roundHalfToEven(value)));
  for (let i = 0; i < count; i++) {
    const [red, green, blue] = pixels.subarray(3 * i, 3 * i + 3);
    const [y, u, v] = matrix.map((row, k) => row[0] * red + row[1] * green + row[2] * blue + offset[k]);
    const block = (Math.floor(i / width / 2) * width >> 1) + (i % width >> 1);
    bytes[i] = toByte(y);
    chroma[0][block] += u / 4;
    chroma[1][block] += v / 4;
  }
  for (let i = 0; i < count / 2; i++) bytes[count + i] = toByte(chroma[i % 2][i >> 1]);
  return bytes;
}

function modelInput(pixels, spec) { // the tensor of one image that spec.input names
  if (spec.input === "nv12") return nv12(pixels, spec);
  const ordered = inColor(pixels, spec.color);
  return spec.input === "uint8" ? ordered : normalized(ordered, spec);
}

"use strict";
// From a file to its pixels, with the bits that Pillow decodes, or to a complaint.

const MAX_PIXELS = 64e6; // as in Python
const MAX_BYTES = 2 ** 28;
const TILE = 2048; // pixels: some browsers have canvases of no more than 16 million
const SIGNATURES = {
  JPEG: /^\xff\xd8\xff/, PNG: /^\x89PNG\r\n\x1a\n/, GIF: /^GIF8/, BMP: /^BM/, WebP: /^RIFF....WEBP/s, AVIF: /^....ftypavi[fs]/s,
};

class Complaint extends Error { // a sentence of the words, with what stands in its braces
  constructor(key, fields = {}) { super(key); Object.assign(this, { key, fields }); }
}

const textAt = (bytes, at, count) => String.fromCharCode(...bytes.subarray(at, at + count));

function* pieces(bytes, kind) { // [type, start, end] of the segments of a JPEG file, or of the chunks of a PNG file
  const numbers = new DataView(bytes.buffer);
  let at = kind === "JPEG" ? 2 : 8;
  while (at + 12 <= bytes.length) {
    const type = kind === "JPEG" ? bytes[at + 1] : textAt(bytes, at + 4, 4);
    if (type === 0xda) return; // the rest are coefficients
    const size = kind === "JPEG" ? 2 + numbers.getUint16(at + 2) : 12 + numbers.getUint32(at);
    yield [type, at, at + size];
    at += size;
  }
}

// { blob, isExact }: the file as it is decoded, and whether all programs decode it alike.
function prepared(bytes, kind) {
  const parts = [];
  let from = 0;
  let isExact = kind !== "AVIF" && (spec.orientation === "ignore" || ["JPEG", "PNG"].includes(kind));
  if (kind === "PNG" && bytes[24] > 8) isExact = false; // 16 bits
  for (const [type, start, end] of ["JPEG", "PNG"].includes(kind) ? pieces(bytes, kind) : []) {
    const isFrame = type === 0xc0 || (type > 0xc0 && type < 0xd0 && type % 4);
    if (isFrame && bytes[start + 9] > 3) isExact = false; // CMYK
    const isExif = type === "eXIf" || (type === 0xe1 && textAt(bytes, start + 4, 4) === "Exif");
    if (!isExif || spec.orientation === "apply") continue;
    parts.push(bytes.subarray(from, start)); // browsers turn a picture as its EXIF tag says
    from = end;
  }
  return { blob: new Blob([...parts, bytes.subarray(from)]), isExact };
}

async function sizeOf(blob) { // without decoding it
  const picture = new Image();
  picture.src = URL.createObjectURL(blob);
  try {
    await new Promise((resolve, reject) => Object.assign(picture, { onload: resolve, onerror: reject }));
  } finally { URL.revokeObjectURL(picture.src); }
  return [picture.naturalWidth, picture.naturalHeight];
}

async function open(file) { // { bitmap, isExact, isGif }
  if (file.size > MAX_BYTES) throw new Complaint("too_many_bytes", { mb: MAX_BYTES / 2 ** 20 });
  const bytes = new Uint8Array(await file.arrayBuffer());
  const head = textAt(bytes, 0, 16);
  const kind = Object.keys(SIGNATURES).find((name) => SIGNATURES[name].test(head));
  if (!kind) throw new Complaint("no_picture", { name: file.name });
  const { blob, isExact } = prepared(bytes, kind);
  const broken = () => { throw new Complaint("broken", { name: file.name }); };
  const [width, height] = await sizeOf(blob).catch(broken);
  if (width * height > MAX_PIXELS) throw new Complaint("too_many_pixels", { width, height });
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  return { bitmap: await createImageBitmap(blob, options).catch(broken), isExact, isGif: kind === "GIF" };
}

function pixelsOf(bitmap) { // RGBA
  const { width, height } = bitmap;
  const data = new Uint8ClampedArray(width * height * 4);
  const canvas = document.createElement("canvas");
  canvas.width = Math.min(width, TILE);
  canvas.height = Math.min(height, TILE);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += TILE) {
    for (let left = 0; left < width; left += TILE) {
      const columns = Math.min(TILE, width - left), rows = Math.min(TILE, height - top);
      pen.clearRect(0, 0, TILE, TILE);
      pen.drawImage(bitmap, -left, -top);
      const tile = pen.getImageData(0, 0, columns, rows).data;
      for (let y = 0; y < rows; y++) {
        data.set(tile.subarray(y * columns * 4, (y + 1) * columns * 4), ((top + y) * width + left) * 4);
      }
    }
  }
  return { data, width, height };
}

function isOpaque({ data }) {
  for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return false;
  return true;
}

// A canvas multiplies colors by their opacity, and a texture does not. Null where the graphics cannot do it.
function transparentPixels(bitmap) {
  const { width, height } = bitmap;
  const gl = document.createElement("canvas").getContext("webgl");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const data = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  return gl.getError() ? null : { data, width, height };
}

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

// [type, start, end, content] of the segments of a JPEG file, or of the chunks of a PNG or WebP file.
function* pieces(bytes, kind) {
  const numbers = new DataView(bytes.buffer);
  let at = { JPEG: 2, PNG: 8, WebP: 12 }[kind] ?? bytes.length;
  while (at + 12 <= bytes.length) {
    const type = kind === "JPEG" ? bytes[at + 1] : textAt(bytes, kind === "PNG" ? at + 4 : at, 4);
    if (type === 0xda) return; // the rest are coefficients
    let size;
    if (kind === "JPEG") size = 2 + numbers.getUint16(at + 2);
    else if (kind === "PNG") size = 12 + numbers.getUint32(at);
    else size = 8 + 2 * Math.ceil(numbers.getUint32(at + 4, true) / 2);
    const content = bytes.subarray(at + (kind === "JPEG" ? 4 : 8), at + size - (kind === "PNG" ? 4 : 0));
    yield [type, at, at + size, content];
    at += size;
  }
}

const isExif = (type, content) =>
  type === "eXIf" || type === "EXIF" || (type === 0xe1 && textAt(content, 0, 4) === "Exif");

// 1 to 8: how EXIF data, a TIFF header with its tags, says that a picture is turned; 0 where it does not.
function exifOrientation(content) {
  const tiff = textAt(content, 0, 6) === "Exif\0\0" ? content.subarray(6) : content;
  const numbers = new DataView(tiff.buffer, tiff.byteOffset, tiff.length);
  const isLittle = textAt(tiff, 0, 2) === "II";
  try {
    const start = numbers.getUint32(4, isLittle);
    for (let i = 0; i < numbers.getUint16(start, isLittle); i++) {
      const at = start + 2 + 12 * i;
      if (numbers.getUint16(at, isLittle) === 0x112) return numbers.getUint16(at + 8, isLittle);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the data ends before its tags do
  }
  return 0;
}

// As Pillow: of the EXIF data, else of Adobe's metadata (XMP).
function orientationOf(parts) {
  for (const [type, , , content] of parts) {
    const orientation = isExif(type, content) ? exifOrientation(content) : 0;
    if (orientation) return orientation;
  }
  for (const [type, , , content] of parts) {
    if (![0xe1, "iTXt", "XMP "].includes(type)) continue;
    const match = /tiff:Orientation(?:="|>)([0-9])/.exec(new TextDecoder("latin1").decode(content));
    if (match) return Number(match[1]);
  }
  return 0;
}

// { blob, isExact, orientation }: the file without the tag, which browsers obey or not, whether all programs decode it
// alike, and how it is to be turned.
function prepared(bytes, kind) {
  const kept = [];
  let from = 0;
  let isExact = kind !== "AVIF";
  if (kind === "PNG" && bytes[24] > 8) isExact = false; // 16 bits
  const parts = [...pieces(bytes, kind)];
  for (const [type, start, end, content] of parts) {
    const isFrame = type === 0xc0 || (type > 0xc0 && type < 0xd0 && type % 4);
    if (isFrame && bytes[start + 9] > 3) isExact = false; // CMYK
    const isOldExif = ["tEXt", "zTXt", "iTXt"].includes(type) && textAt(content, 0, 16) === "Raw profile type";
    if (isOldExif && spec.orientation === "apply") isExact = false; // ImageMagick's; Pillow reads it
    if (!isExif(type, content)) continue;
    kept.push(bytes.subarray(from, start));
    // A WebP file states its length, so the chunk stays, under a name that nobody reads.
    from = kind === "WebP" ? start + 4 : end;
    if (kind === "WebP") kept.push(new TextEncoder().encode("none"));
  }
  const orientation = spec.orientation === "apply" ? orientationOf(parts) : 0;
  return { blob: new Blob([...kept, bytes.subarray(from)]), isExact, orientation };
}

async function sizeOf(blob) { // without decoding it
  const picture = new Image();
  picture.src = URL.createObjectURL(blob);
  try {
    await new Promise((resolve, reject) => Object.assign(picture, { onload: resolve, onerror: reject }));
  } finally { URL.revokeObjectURL(picture.src); }
  return [picture.naturalWidth, picture.naturalHeight];
}

async function open(file) { // { bitmap, isExact, isGif, orientation }
  if (file.size > MAX_BYTES) throw new Complaint("too_many_bytes", { mb: MAX_BYTES / 2 ** 20 });
  const bytes = new Uint8Array(await file.arrayBuffer());
  const head = textAt(bytes, 0, 16);
  const kind = Object.keys(SIGNATURES).find((name) => SIGNATURES[name].test(head));
  if (!kind) throw new Complaint("no_picture", { name: file.name });
  const { blob, isExact, orientation } = prepared(bytes, kind);
  const broken = () => { throw new Complaint("broken", { name: file.name }); };
  const [width, height] = await sizeOf(blob).catch(broken);
  if (width * height > MAX_PIXELS) throw new Complaint("too_many_pixels", { width, height });
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(broken);
  return { bitmap, isExact, isGif: kind === "GIF", orientation };
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

// A picture of RGBA, turned and mirrored as the EXIF tag says: 1 to 8, others mean nothing.
function upright(picture, orientation) {
  if (!(orientation > 1 && orientation < 9)) return picture;
  const { width, height } = picture;
  const isTurned = orientation > 4; // rows become columns
  const isMirrored = [2, 3, 7, 8].includes(orientation);
  const isFlipped = [3, 4, 6, 7].includes(orientation);
  const [columns, rows] = isTurned ? [height, width] : [width, height];
  const from = new Uint32Array(picture.data.buffer);
  const to = new Uint32Array(from.length);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const [left, top] = isTurned ? [y, x] : [x, y];
      const column = isMirrored ? width - 1 - left : left;
      to[y * columns + x] = from[(isFlipped ? height - 1 - top : top) * width + column];
    }
  }
  return { data: new Uint8ClampedArray(to.buffer), width: columns, height: rows };
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

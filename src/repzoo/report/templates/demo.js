"use strict";
// The demo: a picture or the camera, through the model, to classes. Runs after the other demo_*.js.
// All text of others reaches the page by textContent, never as HTML.

const byId = (id) => document.getElementById(id);
const { spec, words, labels, facts } = JSON.parse(byId("data").textContent);
const system = matchMedia("(prefers-color-scheme: dark)");
const state = new URLSearchParams(location.hash.slice(1));
const CALM = ["loading", "ready", "working", "done", "inexact"]; // messages that are no complaints
const CAMERA_PAUSE_MS = 200; // between two frames, so that the page can be used meanwhile

let message = new Complaint("loading");
let result = null; // what `classify` says of the last picture
let camera = null;
let newest = 0; // the number of the picture that was chosen last

const language = () => (state.get("lang") === "zh" ? "zh" : "en");
// What is put into a sentence is isolated from it (Unicode UAX 9), so that no name turns the rest of it around.
const word = (key, fields = {}) =>
  words[language()][key].replace(/{(\w+)}/g, (all, name) => `\u2068${fields[name]}\u2069`);

async function unpacked(id) { // the bytes of an element: base64 of gzip
  const bytes = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function openSession() { // after the script before this one, a module, has set `ort`
  if (!globalThis.ort || !globalThis.DecompressionStream) throw new Complaint("old_browser");
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: await unpacked("wasm") });
  ort.env.logLevel = "fatal";
  return ort.InferenceSession.create(await unpacked("model"), { executionProviders: ["wasm"] });
}
const session = new Promise((resolve) => addEventListener("DOMContentLoaded", resolve)).then(openSession);

function probabilities(outputs) {
  if (spec.head === "binary" && outputs.length === 1) return [1 - outputs[0], outputs[0]];
  const sum = outputs.reduce((total, value) => total + value, 0);
  const areThey = Math.abs(sum - 1) <= spec.sum_tolerance && outputs.every((value) => value >= 0);
  if (spec.head !== "logits" || areThey) return outputs;
  const largest = Math.max(...outputs);
  const powers = outputs.map((value) => Math.exp(value - largest));
  const total = powers.reduce((all, value) => all + value, 0);
  return powers.map((value) => value / total);
}

async function classify({ bitmap, isExact, isGif, orientation }) {
  const opened = await session;
  let picture = pixelsOf(bitmap);
  let isAsPillow = isExact;
  if (!isOpaque(picture)) {
    const exact = transparentPixels(bitmap);
    picture = exact ?? picture;
    isAsPillow &&= exact !== null && !isGif;
  }
  bitmap.close();
  const pixels = resizedAndCropped(upright(picture, orientation), spec);
  const values = modelInput(pixels, spec);
  const batch = new values.constructor(values.length * spec.dims[0]); // where the graph fixes N, the first counts
  batch.set(values);
  const input = new ort.Tensor(spec.input === "float" ? "float32" : "uint8", batch, spec.dims);
  const all = Object.values(await opened.run({ [spec.input_name]: input }))[0].data;
  const outputs = [...all.subarray(0, all.length / spec.dims[0])];
  if (!outputs.every(Number.isFinite)) throw new Complaint("not_finite");
  const chances = probabilities(outputs);
  const ranked = [...chances.keys()].sort((a, b) => chances[b] - chances[a] || a - b)
    .map((index) => [labels[index] ?? String(index), chances[index]]);
  return { pixels, values, outputs, ranked, isAsPillow };
}

async function answer(source) { // the classes of what `source` resolves to, unless a newer one was chosen
  const number = ++newest;
  try {
    const opened = await source;
    const answered = await classify(opened);
    const sentence = new Complaint(answered.isAsPillow ? "done" : "inexact", { label: answered.ranked[0][0] });
    if (number === newest) [result, message] = [answered, sentence];
  } catch (error) {
    const complaint = error instanceof Complaint ? error : new Complaint("failed", { why: error?.message ?? error });
    if (number === newest) [result, message] = [null, complaint];
  }
  show();
}

function choose(files) {
  stopCamera();
  message = new Complaint("working");
  show();
  const file = files[0];
  return answer(file ? open(file) : Promise.reject(new Complaint("no_file")));
}

async function watch() { // the camera, frame after frame, until it is stopped
  const video = byId("video");
  byId("camera").disabled = true; // while the browser asks whether it may
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.srcObject = camera;
    await video.play();
  } catch (error) {
    stopCamera();
    [result, message] = [null, new Complaint("no_camera", { why: error.message })];
  }
  byId("camera").disabled = false;
  show();
  const stream = camera;
  if (!stream) return;
  while (camera === stream) {
    await answer(createImageBitmap(video).then((bitmap) => ({ bitmap, isExact: true })));
    await new Promise((resume) => setTimeout(resume, CAMERA_PAUSE_MS));
  }
}

function stopCamera() {
  for (const track of camera?.getTracks() ?? []) track.stop();
  camera = byId("video").srcObject = null;
  newest += 1; // what is still computed of its last frame is not shown
}

function add(parent, name, text, attributes = {}) {
  const child = document.createElement(name);
  child.textContent = text;
  for (const [key, value] of Object.entries(attributes)) child.setAttribute(key, value);
  return parent.appendChild(child);
}

function showResult() {
  const view = byId("view");
  byId("result").hidden = !result;
  if (!result) return;
  [view.width, view.height] = [spec.width, spec.height];
  const image = new ImageData(spec.width, spec.height);
  for (let i = 0; i < image.data.length; i++) {
    image.data[i] = i % 4 === 3 ? 255 : result.pixels[(i >> 2) * 3 + (i % 4)];
  }
  view.getContext("2d").putImageData(image, 0, 0);
  const above = spec.head === "sigmoid" ? result.ranked.filter(([, chance]) => chance > spec.threshold) : [];
  const list = byId("classes");
  list.replaceChildren();
  for (const [label, chance] of above.length ? above : result.ranked.slice(0, 5)) {
    const line = add(list, "li", "");
    add(line, "span", label, { dir: "auto", class: "label" });
    add(line, "span", (100 * chance).toFixed(1) + " %", { class: "chance" });
    add(line, "div", "", { class: "bar", "aria-hidden": "true" }).style.width = 100 * chance + "%";
  }
}

function show() {
  document.documentElement.dataset.theme = state.get("theme") ?? (system.matches ? "dark" : "light");
  document.documentElement.lang = language() === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  byId("camera").textContent = word(camera ? "stop" : "camera");
  byId("status").textContent = word(message.key, message.fields);
  byId("status").dataset.message = message.key;
  byId("status").setAttribute("aria-live", camera ? "off" : "polite"); // not every frame is read aloud
  byId("status").classList.toggle("wrong", !CALM.includes(message.key));
  showResult();
}

function set(key, value) {
  state.set(key, value);
  history.replaceState(null, "", "#" + state);
  show();
}
for (const [key, value] of facts) {
  add(byId("facts"), "dt", "", { "data-word": key });
  add(byId("facts"), "dd", value, { dir: "auto" });
}
byId("language").onclick = () => set("lang", language() === "zh" ? "en" : "zh");
byId("theme").onclick = () => set("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
byId("file").onchange = (event) => event.target.files.length && choose(event.target.files);
byId("camera").onclick = () => (camera ? (stopCamera(), show()) : watch());
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); choose(event.dataTransfer.files); });
system.addEventListener("change", show);
session.then(() => message.key === "loading" && (message = new Complaint("ready")),
  (error) => (message = error instanceof Complaint ? error : new Complaint("failed", { why: error.message }))).then(show);
show();

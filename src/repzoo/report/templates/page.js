"use strict";
// Table, filters and address of the page; page_views.js draws its charts and models.
// All text of others reaches the page by textContent, never as HTML.

const page = JSON.parse(document.getElementById("data").textContent);
const rows = page.rows.map((cells) => Object.fromEntries(page.fields.map((name, i) => [name, cells[i]])));
const models = new Map(page.models.map((model) => [model.name, model.sections]));
const filters = document.forms.filters;
const body = document.querySelector("#table tbody");
const dialog = document.getElementById("model");
const system = matchMedia("(prefers-color-scheme: dark)");
const order = new Intl.Collator("en", { numeric: true });
const defaults = { lang: "en", theme: "", x: page.measures[0], sort: page.sort, model: "" };
const texts = new Map(); // the lines of rows; made once, since making them takes longest
const AT_ONCE = 40; // lines, more than a screen; the layout of more would hold up the frame that shows them
const PAUSE_MS = 30; // for that frame
let most = 200; // lines that are drawn: of thousands a browser takes seconds for each sort
let waiting = []; // lines that follow
let state = new URLSearchParams(location.hash.slice(1));

const get = (key) => state.get(key) ?? defaults[key] ?? "";
const word = (key) => page.words[get("lang") === "zh" ? "zh" : "en"][key] ?? key;
const byId = (id) => document.getElementById(id);

function set(changes, isStep = false) {
  for (const [key, value] of Object.entries(changes)) {
    if (value === (defaults[key] ?? "")) state.delete(key);
    else state.set(key, value);
  }
  // Going back closes a model; it does not undo letter after letter of a filter.
  history[isStep ? "pushState" : "replaceState"](null, "", "#" + state);
  show();
}

function add(parent, name, text = "", attributes = {}) {
  const child = document.createElement(name);
  child.textContent = text;
  for (const [key, value] of Object.entries(attributes)) child.setAttribute(key, value);
  return parent.appendChild(child);
}

function cellText(cell) { // of a section: text, a key of the words, or text in each language
  if (typeof cell === "string") return cell;
  return cell.w ? word(cell.w) : cell[get("lang")] ?? cell.en;
}

function figure(value, name) { // with the digits that cards print
  if (value === null) return "";
  if (["top1", "ratio", "mb", "parameters"].includes(name)) return value.toFixed(2);
  if (name === "macs") return value.toFixed(1);
  if (name === "ms" || name === "fps") return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
  return String(value);
}

function rowText(row, name) {
  const [low, high] = [row[name + "_low"] ?? null, row[name + "_high"] ?? null];
  const text = figure(row[name], name);
  return low === null || high === null ? text : `${text} (${figure(low, name)} … ${figure(high, name)})`;
}

function tableRow(row) {
  const line = document.createElement("tr");
  for (const { name, number } of page.columns) {
    if (name === "model") {
      const link = add(add(line, "th", "", { scope: "row" }), "a", row.model, { dir: "auto" });
      link.href = "#" + new URLSearchParams({ model: row.model });
      continue;
    }
    const cell = add(line, "td", rowText(row, name), number ? { class: "number" } : { dir: "auto" });
    if (name === "top1" && row.accuracy_on) {
      add(cell, "small", " †", { title: `${word("accuracy_on")} ${row.accuracy_on}` });
    }
  }
  return line;
}

function selected() { // the rows that pass all filters, in the order of the table
  const chosen = Object.fromEntries(new FormData(filters));
  const choices = page.choices.filter((name) => chosen[name]);
  const part = chosen.q.trim().toLowerCase();
  const isWithin = (value, limit, sign) => limit === "" || (value !== null && sign * value <= sign * Number(limit));
  return sorted(rows.filter((row) => choices.every((name) => row[name] === chosen[name])
    && row.model.toLowerCase().includes(part) && isWithin(row.ms, chosen.max_ms, 1)
    && isWithin(row.top1, chosen.min_top1, -1) && isWithin(row.mb, chosen.max_mb, 1)));
}

function sorted(shown) {
  const sign = get("sort").startsWith("-") ? -1 : 1;
  const name = get("sort").replace(/^-/, "");
  const isUnknown = (row) => row[name] === null || row[name] === undefined || row[name] === "";
  return shown.sort((a, b) => { // what is not known comes last, either way
    if (isUnknown(a) || isUnknown(b)) return isUnknown(a) - isUnknown(b);
    return sign * (typeof a[name] === "number" ? a[name] - b[name] : order.compare(a[name], b[name]));
  });
}

function showTable() {
  const shown = selected();
  const lines = shown.slice(0, most).map((row) => texts.get(row) ?? texts.set(row, tableRow(row)).get(row));
  body.replaceChildren(...lines.slice(0, AT_ONCE));
  const rest = waiting = lines.slice(AT_ONCE);
  requestAnimationFrame(() => setTimeout(() => rest === waiting && body.append(...rest.splice(0)), PAUSE_MS));
  byId("more").hidden = lines.length === shown.length;
  byId("more").textContent = word("more").replace("{left}", shown.length - lines.length);
  byId("count").textContent = word("count").replace("{shown}", shown.length).replace("{all}", rows.length);
  for (const heading of document.querySelectorAll("#table thead th")) {
    const direction = { [heading.dataset.name]: "ascending", ["-" + heading.dataset.name]: "descending" };
    heading.setAttribute("aria-sort", direction[get("sort")] ?? "none");
    heading.querySelector("span").textContent = { ascending: " ▲", descending: " ▼" }[direction[get("sort")]] ?? "";
  }
  return shown;
}

function showWords() {
  const language = get("lang") === "zh" ? "zh" : "en";
  if (document.documentElement.dataset.shown === language) return;
  document.documentElement.dataset.shown = language;
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  document.title = document.querySelector("h1").textContent = word("title");
  byId("language").textContent = word("language");
  byId("language").lang = language === "zh" ? "en" : "zh-Hans";
  for (const place of document.querySelectorAll("[data-word]")) place.textContent = word(place.dataset.word);
  for (const place of document.querySelectorAll("[data-label]")) place.setAttribute("aria-label", word(place.dataset.label));
  const notes = document.querySelector("#notes ul");
  notes.replaceChildren();
  for (const note of page.notes) add(notes, "li", cellText(note));
  byId("notes").hidden = !page.notes.length;
  texts.clear();
  const head = document.querySelector("#table thead tr");
  head.replaceChildren();
  for (const { name, number } of page.columns) {
    const button = add(add(head, "th", "", { scope: "col", "data-name": name, class: number ? "number" : "" }), "button", word(name), { type: "button" });
    add(button, "span", "", { "aria-hidden": "true" });
    button.onclick = () => set({ sort: get("sort") === name ? "-" + name : name });
  }
  for (const name of page.choices) filters[name].options[0].textContent = word("all");
}

function show() {
  document.documentElement.dataset.theme = get("theme") || (system.matches ? "dark" : "light");
  showWords();
  // An address may name what is not offered, or a limit that is no number.
  for (const control of filters.elements) {
    const value = control.type === "number" && !Number.isFinite(Number(get(control.name))) ? "" : get(control.name);
    if (control.name && control.value !== value) control.value = value;
  }
  for (const name of page.choices) if (filters[name].selectedIndex < 0) filters[name].value = "";
  showChart(showTable());
  showModel();
}

function save(name, type, text) {
  const link = add(document.body, "a", "", { download: name });
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.click();
  link.remove();
}

function csvCell(value) { // a sheet must not run a name that begins like a formula
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? "'" + value : String(value ?? "");
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

for (const name of page.choices) {
  add(filters[name], "option", "", { value: "" });
  const values = [...new Set(rows.map((row) => row[name]))].filter(Boolean).sort(order.compare);
  for (const value of values) add(filters[name], "option", value, { value });
}
filters.oninput = (event) => set({ [event.target.name]: event.target.value });
filters.onsubmit = (event) => event.preventDefault();
filters.onreset = (event) => {
  event.preventDefault();
  set(Object.fromEntries([...filters.elements].filter((item) => item.name).map((item) => [item.name, ""])));
};
byId("language").onclick = () => set({ lang: get("lang") === "zh" ? "en" : "zh" });
byId("theme").onclick = () => set({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" });
if (byId("x")) byId("x").onchange = (event) => set({ x: event.target.value });
body.onclick = (event) => {
  if (event.target.tagName !== "A" || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  set({ model: event.target.textContent }, true);
};
byId("more").onclick = () => { most += 1000; show(); };
byId("close").onclick = () => dialog.close();
dialog.onclose = () => get("model") && set({ model: "" });
byId("csv").onclick = () => {
  const lines = selected().map((row) => page.fields.map((name) => csvCell(row[name])).join(","));
  save("models.csv", "text/csv", [page.fields.join(","), ...lines].join("\r\n") + "\r\n");
};
byId("json").onclick = () => save("models.json", "application/json", JSON.stringify(selected(), null, 1));
addEventListener("keydown", (event) => {
  if (event.key !== "/" || dialog.open || /INPUT|SELECT/.test(event.target.tagName)) return;
  event.preventDefault();
  filters.q.focus();
});
addEventListener("hashchange", () => { state = new URLSearchParams(location.hash.slice(1)); show(); });
system.addEventListener("change", show);
show();

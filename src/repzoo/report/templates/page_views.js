"use strict";
// Charts of the page, and what it shows of one model. Runs before page.js, which calls it.

let drawn = ""; // what the chart shows now
let drawing = Promise.resolve();

function markFronts(points, x) { // only what ran under the same conditions is compared
  const best = {};
  for (const row of points.sort((a, b) => a[x] - b[x] || b.top1 - a.top1)) {
    const group = [row.images, row.host, row.threads].join(", ");
    row.front = row.top1 > (best[group] ?? -Infinity) ? group : null;
    if (row.front !== null) best[group] = row.top1;
  }
}

const chartOf = (name) => page.charts[get("lang") === "zh" ? "zh" : "en"][name];

async function draw(place, chart, values, onClick) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line };
  const legend = { labelColor: ink, symbolStrokeColor: ink, symbolFillColor: ink, symbolOpacity: 1, orient: "top",
    columns: place.clientWidth < 500 ? 1 : 0 }; // on a phone one below the other
  // Of the points the table says more: a reader of the screen hears of the chart as one picture.
  const config = { aria: false, background: "transparent", axis, legend, view: { stroke: line }, range: { category: page.colors } };
  const isDark = document.documentElement.dataset.theme === "dark";
  // With `ast` Vega interprets its expressions: the page forbids to run text as code.
  const options = { actions: false, ast: true, renderer: "svg", config, tooltip: { theme: isDark ? "dark" : "light" } };
  const result = await vegaEmbed(place, { ...chart, data: { values } }, options);
  place.querySelector("svg").setAttribute("aria-hidden", "true"); // `place` has the label
  result.view.addEventListener("click", (event, item) => {
    if (item?.datum?.model !== undefined) onClick?.(item.datum);
  });
}

function showChart(shown) {
  const place = byId("chart");
  if (!place) return;
  const x = page.measures.includes(get("x")) ? get("x") : defaults.x;
  byId("x").value = x;
  const points = shown.filter((row) => row[x] !== null && row.top1 !== null).map((row) => ({ ...row }));
  // Sorting the table changes no point.
  const chosen = Object.fromEntries(new FormData(filters));
  const wanted = JSON.stringify([x, get("lang"), document.documentElement.dataset.theme, chosen]);
  if (wanted === drawn) return;
  drawn = wanted;
  markFronts(points, x);
  if (!points.length) place.textContent = word("nothing_drawn");
  // One after the other, and of several only the last.
  else drawing = drawing.then(() => wanted === drawn
    && draw(place, chartOf(x), points, (row) => set({ model: row.model }, true)));
}

function showSection(place, section) {
  add(place, "h3", word(section.title));
  if (section.chart && window.vegaEmbed) {
    const chart = chartOf(section.chart);
    const values = section.values.map((value) => ({ ...value, side: word(value.side) }));
    const label = { class: "chart", role: "img", "aria-label": word(section.title) };
    draw(add(place, "div", "", label), chart, values);
  }
  const frame = { class: "scroll", tabindex: "0", role: "region", "aria-label": word(section.title) };
  const table = add(add(place, "div", "", frame), "table");
  const head = add(add(table, "thead"), "tr");
  // A column that no row fills would only take room.
  const isFilled = section.head.map((_, i) => !section.rows.length || section.rows.some((cells) => cellText(cells[i]) !== ""));
  for (const name of section.head.filter((_, i) => isFilled[i])) add(head, "th", word(name), { scope: "col" });
  const lines = add(table, "tbody");
  for (const [index, cells] of section.rows.entries()) {
    const line = add(lines, "tr");
    for (const text of cells.map(cellText).filter((_, i) => isFilled[i])) {
      add(line, "td", text, { dir: "auto", class: text.length > 32 ? "wide" : "short" });
    }
    const picture = section.images?.[index];
    if (picture) add(line.firstChild, "img", "", { src: picture, alt: "" });
  }
  if (section.note) add(place, "p", cellText(section.note), { class: "note" });
}

function showModel() {
  const sections = models.get(get("model"));
  if (!sections) return dialog.close();
  const place = byId("sections");
  place.replaceChildren();
  byId("name").textContent = get("model");
  const missing = sections.filter((section) => !section.rows).map((section) => word(section.title));
  if (!dialog.open) dialog.showModal(); // before the charts, which need a width
  for (const section of sections) if (section.rows) showSection(place, section);
  if (missing.length) add(place, "p", `${word("missing")} ${missing.join(", ")}.`, { class: "note" });
}

"use strict";

const byId = (id) => document.getElementById(id);
const about = JSON.parse(byId("about").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

// What was written; there is no cost in a full-precision model's page.
const TYPES = {
  index: Uint32Array, label: Uint32Array, prediction: Uint32Array, topClasses: Uint32Array,
  chosen: Uint8Array, confidence: Float32Array, topProbs: Float32Array, scores: Float32Array,
  cost: Float64Array,
};
const data = {};
for (const [name, Type] of Object.entries(TYPES)) {
  const script = byId(`array-${name}`);
  if (script) data[name] = new Type(bytes(script.textContent).buffer);
}
const { layers, widths, classes } = about;
const ROWS = 6; // of cards on a page
const STEPS = 1000; // of the cost sliders

const showCost = (cost) => `${(cost / about.unit.divisor).toPrecision(4)} ${about.unit.letter}`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const signed = (score) => score.toFixed(2).replace("-", "−");
const isRight = (i) => data.label[i] === data.prediction[i];
const widthOf = (i, layer) => widths[data.chosen[i * layers.length + layer]];

function meanWidth(i) {
  let sum = 0;
  for (let layer = 0; layer < layers.length; layer++) sum += widthOf(i, layer).width;
  return sum / layers.length;
}

// The last layer is of the second pass, whose first candidate is not to run.
const passes = (i) => (data.chosen[(i + 1) * layers.length - 1] ? 2 : 1);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/* Pictures: a sheet is decoded when the first of its images is shown. */

const sheetTexts = document.querySelectorAll("script.sheet");
const sheets = new Map();

function sheetOf(i) {
  const number = Math.floor(i / (about.sheet.columns * about.sheet.rows));
  if (!sheets.has(number)) {
    const image = new Image();
    image.src = `data:image/webp;base64,${sheetTexts[number].textContent}`;
    sheets.set(number, image.decode().then(() => image));
  }
  return sheets.get(number);
}

async function drawImage(canvas, i, size) {
  canvas.dataset.drawn = i;
  const sheet = await sheetOf(i);
  if (Number(canvas.dataset.drawn) !== i) return; // another image has come since
  const context = canvas.getContext("2d");
  const { width, height } = about.image;
  const { columns, rows } = about.sheet;
  const place = i % (columns * rows);
  const scale = size / Math.max(width, height);
  context.imageSmoothingEnabled = scale < 2;
  context.drawImage(
    sheet, (place % columns) * width, Math.floor(place / columns) * height, width, height,
    (size - width * scale) / 2, (size - height * scale) / 2, width * scale, height * scale,
  );
}

/* The gallery: images are numbered by their place in the order of cost. */

const grid = byId("grid");
const filters = byId("filters");
const cardSize = parseFloat(getComputedStyle(grid).getPropertyValue("--card")) * 16;
// Both passes of a cascade, one above the other.
const stripRows = about.cascade
  ? 2 * Math.ceil(layers.length / 60) : Math.ceil(layers.length / 30);
const stripHeight = stripRows * 9;
let selected = [];
let page = 0;
let perPage = 1;

function drawCard(canvas, i) {
  const dpr = window.devicePixelRatio || 1;
  canvas.width = Math.round(cardSize * dpr);
  canvas.height = Math.round((cardSize + stripHeight) * dpr);
  const context = canvas.getContext("2d");
  context.scale(dpr, dpr);
  const perRow = Math.ceil(layers.length / stripRows);
  const step = cardSize / perRow;
  for (let layer = 0; layer < layers.length; layer++) {
    context.fillStyle = widthOf(i, layer).fill;
    context.fillRect(
      (layer % perRow) * step, cardSize + 1 + Math.floor(layer / perRow) * 9, step - 1, 8,
    );
  }
  drawImage(canvas, i, cardSize);
}

function card(i) {
  const made = element("button", `card ${isRight(i) ? "right" : "wrong"}`);
  const [label, prediction] = [classes[data.label[i]], classes[data.prediction[i]]];
  const canvas = element("canvas");
  made.append(
    canvas,
    element("span", "label", label),
    element("span", "answer", `${isRight(i) ? "✓" : "✗"} ${prediction}`),
  );
  if (data.cost) made.append(element("span", "cost", showCost(data.cost[i])));
  made.type = "button";
  made.dataset.image = data.index[i];
  made.dataset.place = i;
  made.tabIndex = -1;
  const answer = isRight(i) ? "right" : `wrong, predicted ${prediction}`;
  const cost = data.cost ? `, ${showCost(data.cost[i])} Bit-FLOPs` : "";
  let width = layers.length ? `, mean width ${meanWidth(i).toFixed(2)} bits` : "";
  if (about.cascade) width = passes(i) === 1 ? ", ran once" : ", ran twice";
  made.setAttribute("aria-label", `image ${data.index[i]}: ${label}, ${answer}${cost}${width}`);
  made.title = `${label} → ${prediction}`;
  drawCard(canvas, i);
  return made;
}

function columns() {
  return getComputedStyle(grid).gridTemplateColumns.split(" ").length;
}

function pages() {
  return Math.max(1, Math.ceil(selected.length / perPage));
}

function showPage(number, focused = 0) {
  page = Math.min(Math.max(number, 0), pages() - 1);
  const shown = selected.slice(page * perPage, (page + 1) * perPage);
  grid.replaceChildren(...shown.map(card));
  const focusable = grid.children[Math.min(focused, shown.length - 1)];
  if (focusable) focusable.tabIndex = 0;
  const slider = byId("page");
  slider.max = pages();
  slider.value = page + 1;
  slider.disabled = pages() === 1;
  byId("first").disabled = byId("previous").disabled = page === 0;
  byId("last").disabled = byId("next").disabled = page === pages() - 1;
  const range = about.costsDiffer && shown.length
    ? ` · ${showCost(data.cost[shown[0]])} to ${showCost(data.cost[shown.at(-1)])} Bit-FLOPs` : "";
  byId("place").textContent = `page ${page + 1} of ${pages()}${range}`;
  slider.setAttribute("aria-valuetext", byId("place").textContent);
}

function costAt(slider) {
  const value = Number(byId(slider).value);
  const [least, largest] = [data.cost[0], data.cost.at(-1)];
  if (value === STEPS) return largest; // exactly, which the sum below need not be
  return least + ((largest - least) * value) / STEPS;
}

function select() {
  const answer = filters.elements.answer.value;
  const wanted = Number(byId("class").value);
  const [low, high] = about.costsDiffer ? [costAt("low"), costAt("high")] : [];
  selected = [];
  for (let i = 0; i < about.count; i++) {
    if (wanted >= 0 && data.label[i] !== wanted) continue;
    if (answer !== "all" && (answer === "right") !== isRight(i)) continue;
    if (about.costsDiffer && (data.cost[i] < low || data.cost[i] > high)) continue;
    selected.push(i);
  }
  if (about.costsDiffer) {
    for (const [name, cost] of [["low", low], ["high", high]]) {
      byId(`${name}-value`).textContent = showCost(cost);
      byId(`${name}-value`).dataset.cost = cost;
      byId(name).setAttribute("aria-valuetext", `${showCost(cost)} Bit-FLOPs`);
    }
  }
  byId("count").textContent =
    `${selected.length.toLocaleString("en")} of ${about.count.toLocaleString("en")} images`;
  showPage(0);
}

function focusCard(place) {
  const position = Math.min(Math.max(place, 0), selected.length - 1);
  const target = Math.floor(position / perPage);
  if (target !== page) showPage(target, position % perPage);
  for (const child of grid.children) child.tabIndex = -1;
  const focused = grid.children[position % perPage];
  focused.tabIndex = 0;
  focused.focus();
}

grid.addEventListener("keydown", (event) => {
  const position = [...grid.children].indexOf(event.target) + page * perPage;
  const moves = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(),
    PageUp: -perPage, PageDown: perPage, Home: -position, End: selected.length,
  };
  if (!(event.key in moves)) return;
  event.preventDefault();
  focusCard(position + moves[event.key]);
});

grid.addEventListener("click", (event) => {
  const chosen = event.target.closest(".card");
  if (chosen) openDetail(selected.indexOf(Number(chosen.dataset.place)));
});

filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => setTimeout(select)); // after the fields have changed
filters.addEventListener("input", (event) => {
  const [low, high] = [byId("low"), byId("high")];
  if (low && Number(low.value) > Number(high.value)) {
    if (event.target === low) high.value = low.value;
    else low.value = high.value;
  }
  select();
});
byId("page").addEventListener("input", (event) => showPage(Number(event.target.value) - 1));
byId("first").addEventListener("click", () => showPage(0));
byId("previous").addEventListener("click", () => showPage(page - 1));
byId("next").addEventListener("click", () => showPage(page + 1));
byId("last").addEventListener("click", () => showPage(pages() - 1));

function fitPage() {
  const fitting = columns() * ROWS;
  if (fitting === perPage) return;
  const first = page * perPage;
  perPage = fitting;
  showPage(Math.floor(first / perPage));
}

/* The start. */

const counts = new Map();
for (const label of data.label) counts.set(label, (counts.get(label) ?? 0) + 1);
classes.forEach((name, i) => {
  if (counts.has(i)) {
    const option = element("option", "", `${name} (${counts.get(i)})`);
    option.value = i;
    byId("class").append(option);
  }
});
perPage = columns() * ROWS;
filters.reset(); // a reloading browser would keep what was chosen; this selects
new ResizeObserver(fitPage).observe(grid);

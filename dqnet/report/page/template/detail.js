/* One image, large: goes on where gallery.js ends. */

const dialog = byId("detail");
let open = 0; // its position among the selected

function openDetail(position) {
  open = position;
  fillDetail(selected[open]);
  if (!dialog.open) dialog.showModal();
  byId("detail-title").focus();
}

function fillDetail(i) {
  byId("detail-title").textContent =
    `${isRight(i) ? "✓" : "✗"} ${classes[data.label[i]]}` +
    (isRight(i) ? "" : `, taken for ${classes[data.prediction[i]]}`);
  const canvas = byId("detail-canvas");
  const { width, height } = about.image;
  const side = Math.max(width, height);
  canvas.width = canvas.height = side;
  canvas.setAttribute("aria-label", `image ${data.index[i]}`);
  drawImage(canvas, i, side);
  const facts = [
    ["image", data.index[i]],
    ["label", classes[data.label[i]]],
    ["prediction", `${classes[data.prediction[i]]} (${isRight(i) ? "right" : "wrong"})`],
    ["confidence", percent(data.confidence[i])],
  ];
  if (data.cost) facts.push(["Bit-FLOPs", showCost(data.cost[i])]);
  if (about.cascade) facts.push(["passes", passes(i)]);
  else if (layers.length) facts.push(["mean width", `${meanWidth(i).toFixed(3)} bits`]);
  byId("detail-facts").replaceChildren(
    ...facts.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]),
  );
  byId("detail-classes").replaceChildren(...bestClasses(i));
  if (layers.length) byId("detail-widths").replaceChildren(...layerRows(i));
  byId("detail-previous").disabled = open === 0;
  byId("detail-next").disabled = open === selected.length - 1;
}

function bestClasses(i) {
  const made = [];
  for (let k = 0; k < about.top; k++) {
    const [which, share] = [data.topClasses[i * about.top + k], data.topProbs[i * about.top + k]];
    const bar = element("span", "bar");
    bar.style.width = `${100 * share}%`;
    const isLabel = which === data.label[i];
    made.push(
      element("span", isLabel ? "label" : "", classes[which] + (isLabel ? " (label)" : "")),
      bar,
      element("span", "share", percent(share)),
    );
  }
  return made;
}

function layerRows(i) {
  const head = element("thead");
  head.append(element("tr"));
  head.firstChild.append(
    element("th", "", "layer"), ...widths.map(({ label }) => element("th", "", label)),
  );
  const body = element("tbody");
  layers.forEach((name, layer) => {
    const row = element("tr");
    const title = element("th", "", name);
    title.scope = "row";
    row.append(title);
    widths.forEach((colour, k) => {
      const score = data.scores[(i * layers.length + layer) * widths.length + k];
      const text = about.cascade ? "" : signed(score);
      const cell = element("td", "", text);
      if (colour === widthOf(i, layer)) {
        cell.className = "chosen";
        cell.style.background = colour.fill;
        cell.style.color = colour.ink;
        cell.setAttribute("aria-label", about.cascade ? "ran" : `${text}, chosen`);
      }
      row.append(cell);
    });
    body.append(row);
  });
  return [head, body];
}

function moveDetail(step) {
  const next = open + step;
  if (next >= 0 && next < selected.length) openDetail(next);
}

byId("detail-previous").addEventListener("click", () => moveDetail(-1));
byId("detail-next").addEventListener("click", () => moveDetail(1));
byId("detail-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // the backdrop
});
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) {
    event.preventDefault();
    moveDetail(step);
  }
});
dialog.addEventListener("close", () => focusCard(open));

/* Numbers of the figures' marks. */

const tooltip = byId("tooltip");
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest?.("[data-tip]");
  tooltip.hidden = !mark;
  if (!mark) return;
  tooltip.textContent = mark.dataset.tip;
  const { width, height } = tooltip.getBoundingClientRect();
  const left = Math.min(event.clientX + 12, window.innerWidth - width - 8);
  tooltip.style.left = `${Math.max(left, 8)}px`;
  tooltip.style.top = `${event.clientY > height + 20 ? event.clientY - height - 10 : event.clientY + 18}px`;
});

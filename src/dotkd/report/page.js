// Brings the page to life: plots with their legends, switches and read-outs, sortable tables, the choice of a setting.
// Without this script all tables and numbers are there already.

const KINDS = {
  lines: [drawLines, describePoint],
  forest: [drawForest, describeRow],
  heat: [drawHeat, describeCell],
};
const MANY = 8;

function startPlot(element, figure) {
  const [draw, describe] = KINDS[figure.kind];
  const state = { hidden: new Set(), logX: Boolean(figure.x.log), logY: Boolean(figure.y && figure.y.log), points: [], chosen: null };
  (figure.series || []).forEach((series, index) => series.hidden && state.hidden.add(index));
  const holder = html("div", { class: "canvas", tabindex: "0", role: "application", "aria-roledescription": "plot",
    "aria-label": `${figure.title}. Arrow keys read single points; all numbers are in the table below.` });
  const readout = html("p", { class: "readout", role: "status", "aria-live": "polite" });
  let width = 0;
  const redraw = () => {
    if (width < 40) return;
    state.points = draw(holder, figure, state, width);
    state.chosen = null;
    readout.textContent = "";
  };
  element.append(controls(figure, state, redraw), holder, readout);
  new ResizeObserver(([entry]) => {
    const found = Math.floor(entry.contentRect.width);
    if (found !== width) {
      width = found;
      redraw();
    }
  }).observe(element);
  const choose = (point) => {
    state.chosen = point;
    const root = holder.firstElementChild;
    root.querySelector(".chosen")?.remove();
    if (point) root.append(svg("circle", { cx: point.px, cy: point.py, r: 9, class: "chosen" }));
    readout.textContent = point ? describe(figure, point) : "";
  };
  holder.addEventListener("pointermove", (event) => {
    const box = holder.getBoundingClientRect();
    const point = nearest(state.points, event.clientX - box.left, event.clientY - box.top);
    if (point && point !== state.chosen) choose(point);
  });
  holder.addEventListener("keydown", (event) => {
    const next = moved(state, event.key);
    if (next === undefined) return;
    event.preventDefault();
    choose(next);
  });
  holder.addEventListener("blur", () => choose(null));
}

// Where a key leads from the chosen point: along its row, to the row above or below, to the ends, away.
function moved(state, key) {
  const { points, chosen } = state;
  if (key === "Escape") return null;
  if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(key) || !points.length) return undefined;
  if (!chosen) return points[0];
  const row = (point) => point.series ?? point.row;
  const own = points.filter((point) => row(point) === row(chosen));
  const position = own.indexOf(chosen);
  if (key === "Home") return own[0];
  if (key === "End") return own[own.length - 1];
  if (key === "ArrowLeft") return own[Math.max(0, position - 1)];
  if (key === "ArrowRight") return own[Math.min(own.length - 1, position + 1)];
  let rows = [...new Set(points.map(row))];
  if (typeof rows[0] === "number") rows = rows.sort((a, b) => a - b);
  const other = rows[rows.indexOf(row(chosen)) + (key === "ArrowDown" ? 1 : -1)];
  if (other === undefined) return chosen;
  return nearest(points.filter((point) => row(point) === other), chosen.px, chosen.py);
}

function controls(figure, state, redraw) {
  const box = html("div", { class: "controls" });
  const series = figure.series || [];
  if (series.length > 1) {
    const legend = html("div", { class: "legend", role: "group", "aria-label": `Series of ${figure.title}` });
    const buttons = series.map((one, index) => toggle(html("span", {}, one.name), !state.hidden.has(index), (pressed) => {
      if (pressed) state.hidden.delete(index);
      else state.hidden.add(index);
      redraw();
    }, swatch(one)));
    if (series.length > MANY) {
      for (const [word, wanted] of [["all", true], ["none", false]]) {
        const button = html("button", { type: "button" }, word);
        button.addEventListener("click", () => {
          series.forEach((_, index) => (wanted ? state.hidden.delete(index) : state.hidden.add(index)));
          buttons.forEach((one) => one.setAttribute("aria-pressed", wanted));
          redraw();
        });
        legend.append(button);
      }
    }
    legend.append(...buttons);
    box.append(legend);
  }
  const scales = html("div", { class: "scales", role: "group", "aria-label": `Scales of ${figure.title}` });
  for (const [key, axis] of [["logY", figure.y], ["logX", figure.x]]) {
    if (!axis || !axis.switchable) continue;
    scales.append(toggle(`log ${key === "logY" ? "↑" : "→"}`, state[key], (pressed) => {
      state[key] = pressed;
      redraw();
    }));
  }
  if (scales.children.length) box.append(scales);
  return box;
}

function toggle(words, pressed, act, ...before) {
  const button = html("button", { type: "button", "aria-pressed": pressed }, ...before, words);
  button.addEventListener("click", () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", now);
    act(now);
  });
  return button;
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = html("button", { type: "button", class: "sort" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const downward = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", downward ? "descending" : "ascending");
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => compareCells(a.cells[column], b.cells[column], downward)));
    });
  });
}

// Numbers by their value, words by their letters; what does not exist comes last either way.
function compareCells(a, b, downward) {
  const [x, y] = [a, b].map((cell) => (cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value)));
  const missing = (cell, value) => value === "–" || value === "" || Number.isNaN(value);
  if (missing(a, x) || missing(b, y)) return missing(a, x) - missing(b, y);
  const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
  return downward ? -order : order;
}

function startChoice(subject) {
  const settings = [...subject.querySelectorAll("[data-setting]")];
  if (settings.length < 2) return;
  const select = html("select", { id: `${subject.id}-setting` }, html("option", { value: "" }, `all ${settings.length} settings`));
  for (const setting of settings) select.append(html("option", { value: setting.id }, setting.dataset.setting));
  select.addEventListener("change", () => {
    for (const setting of settings) setting.hidden = select.value !== "" && setting.id !== select.value;
  });
  subject.querySelector(".choice").append(html("label", { for: select.id }, "Show "), select);
}

const figures = JSON.parse(document.getElementById("figures").textContent);
for (const element of document.querySelectorAll("[data-figure]")) startPlot(element, figures[element.dataset.figure]);
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
for (const subject of document.querySelectorAll("[data-subject]")) startChoice(subject);
document.documentElement.classList.add("alive");

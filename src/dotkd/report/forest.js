// Differences with their intervals, one row each, around the line of no difference.
//
// figure.rows: {name, mean, low, high, verdict: "gain" | "loss" | "none", text}. A shown difference is a filled mark, in
// either direction of the same size; one that was not shown is hollow.

const ROW = 44;
const SIGNS = { gain: "▲", loss: "▼", none: "○" };

function drawForest(holder, figure, state, width) {
  const rows = figure.rows;
  const longest = Math.max(...rows.map((row) => textWidth(row.name, true)));
  const numbers = Math.max(...rows.map((row) => textWidth(row.text)));
  // Names and numbers stand beside the intervals where there is room, else above them.
  const beside = width - longest - numbers - 60 > width * 0.45;
  const step = beside ? 30 : ROW;
  const frame = { top: 26, bottom: 26 + rows.length * step, left: beside ? longest + 20 : 8, right: width - (beside ? numbers + 24 : 8) };
  const height = frame.bottom + 42;
  const values = rows.flatMap((row) => [row.mean, row.low, row.high]).filter((value) => value !== null);
  if (figure.zero) values.push(0);
  const range = padded(Math.min(...values), Math.max(...values), false, 0.06);
  const x = makeScale(...range, frame.left, frame.right, false, Math.min(10, Math.max(2, Math.floor((frame.right - frame.left) / 70))));
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" });
  for (const tick of x.ticks) {
    const place = x.place(tick), half = textWidth(number(tick)) / 2;
    const centre = Math.min(Math.max(place, half + 1), width - half - 1);
    root.append(svg("line", { x1: place, x2: place, y1: frame.top, y2: frame.bottom, class: "grid" }));
    root.append(label(number(tick), centre, frame.bottom + 17, { "text-anchor": "middle", class: "tick" }));
  }
  root.append(label(figure.x.label, (frame.left + frame.right) / 2, height - 6,
    { "text-anchor": "middle", class: "title" }, frame.right - frame.left));
  if (figure.zero) drawZero(root, figure, frame, x);
  const points = rows.map((row, index) => {
    const top = frame.top + index * step;
    const centre = beside ? top + step / 2 : top + step - 12;
    return drawRow(root, row, index, { beside, top, centre, width, frame, numbers }, x);
  });
  holder.replaceChildren(root);
  return points.filter((point) => point !== null);
}

function drawZero(root, figure, frame, x) {
  const zero = x.place(0);
  root.append(svg("line", { x1: zero, x2: zero, y1: frame.top - 4, y2: frame.bottom, class: "zero" }));
  const words = [[`← ${figure.left}`, zero - 8, "end", zero - 8], [`${figure.right} →`, zero + 8, "start", frame.right - zero]];
  for (const [text, place, anchor, room] of words) {
    if (textWidth(text) <= room) root.append(label(text, place, 14, { "text-anchor": anchor, class: "title" }));
  }
}

function drawRow(root, row, index, at, x) {
  const base = at.beside ? at.centre + 4 : at.top + 14;
  const room = at.beside ? at.frame.left - 20 : at.width - at.numbers - 28;
  root.append(label(row.name, at.beside ? 0 : 8, base, { class: "row-name" }, room, true));
  root.append(label(row.text, at.width - (at.beside ? 0 : 8), base, { "text-anchor": "end", class: "row-text" }));
  if (row.mean === null) return null;
  const paint = `var(--${row.verdict})`;
  const px = x.place(row.mean);
  if (row.low !== null) {
    const low = x.place(row.low), high = x.place(row.high);
    root.append(svg("line", { x1: low, x2: high, y1: at.centre, y2: at.centre, stroke: paint, class: "interval" }));
    for (const end of [low, high]) {
      root.append(svg("line", { x1: end, x2: end, y1: at.centre - 5, y2: at.centre + 5, stroke: paint, class: "interval" }));
    }
  }
  root.append(svg("circle", { cx: px, cy: at.centre, r: 5.5, stroke: paint, "stroke-width": 2,
    fill: row.verdict === "none" ? "var(--page)" : paint }));
  return { px, py: at.centre, row: index, index: 0, said: row };
}

function describeRow(figure, point) {
  const row = point.said;
  const interval = row.low === null ? "no interval" : `${number(row.low)} to ${number(row.high)}`;
  return `${row.name}: ${number(row.mean)} (${interval})${row.note ? `, ${row.note}` : ""}`;
}

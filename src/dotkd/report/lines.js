// Lines with bands, points and error bars: curves over epochs or steps, trade-offs, ablations, scatter plots.
//
// figure.x, figure.y: {label, log}. Series: {name, style, x, y, low?, high?, dots?, end?, joined, hidden}.

const COLOURS = 7;
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

function colour(style) {
  return `var(--series-${style % COLOURS})`;
}

function marker(style, x, y, size, attributes = {}) {
  const s = size, d = size * 1.2;
  const at = (points) => svg("polygon", { points: points.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" "), ...attributes });
  switch (style % COLOURS) {
    case 0: return svg("circle", { cx: x, cy: y, r: s, ...attributes });
    case 1: return at([[-s, -s], [s, -s], [s, s], [-s, s]]);
    case 2: return at([[0, -d], [d, s], [-d, s]]);
    case 3: return at([[0, -d], [d, 0], [0, d], [-d, 0]]);
    case 4: return at([[0, d], [d, -s], [-d, -s]]);
    case 5: return at([[-s, -d], [s, -d], [d, 0], [s, d], [-s, d], [-d, 0]]);
    default: return at([[-s / 2, -d], [s / 2, -d], [s / 2, -s / 2], [d, -s / 2], [d, s / 2], [s / 2, s / 2], [s / 2, d],
      [-s / 2, d], [-s / 2, s / 2], [-d, s / 2], [-d, -s / 2], [-s / 2, -s / 2]]);
  }
}

function dash(style) {
  return DASHES[(style + Math.floor(style / COLOURS)) % DASHES.length];
}

function swatch(series) {
  const box = svg("svg", { width: 30, height: 14, viewBox: "0 0 30 14", "aria-hidden": "true", focusable: "false" });
  if (series.joined) {
    box.append(svg("line", { x1: 1, x2: 29, y1: 7, y2: 7, stroke: colour(series.style), "stroke-width": 2,
      "stroke-dasharray": dash(series.style) }));
  }
  box.append(marker(series.style, 15, 7, 4, { fill: colour(series.style) }));
  return box;
}

// Every number a direction has to show. Bands may be cut: with two seeds they are wider than all curves together.
function extent(series, key, marks, log) {
  const values = marks.slice();
  for (const one of series) {
    values.push(...one[key]);
    for (const dot of one.dots || []) values.push(dot[key === "x" ? 0 : 1]);
    if (one.end) values.push(one.end[key]);
  }
  const usable = values.filter((value) => value !== null && Number.isFinite(value) && (!log || value > 0));
  if (!usable.length) return null;
  let low = Math.min(...usable), high = Math.max(...usable);
  const room = (high - low) / 2;
  for (const one of series) {
    const bounds = key === "y" ? [...(one.low || []), ...(one.high || [])] : [];
    if (one.end) bounds.push(one.end[`${key}low`], one.end[`${key}high`]);
    for (const bound of bounds) {
      if (bound === null || bound === undefined || (log && bound <= 0)) continue;
      if (one.bars) [low, high] = [Math.min(low, bound), Math.max(high, bound)];
      else if (log) [low, high] = [Math.min(low, Math.max(bound, low / 1.5)), Math.max(high, Math.min(bound, high * 1.5))];
      else [low, high] = [Math.min(low, Math.max(bound, low - room * 0.2)), Math.max(high, Math.min(bound, high + room * 0.2))];
    }
  }
  return padded(low, high, log);
}

function drawLines(holder, figure, state, width) {
  const height = Math.round(Math.max(240, Math.min(380, width * 0.56)));
  const shown = figure.series.filter((one, index) => !state.hidden.has(index));
  const marks = figure.marks || [];
  const frame = { top: 30, bottom: height - 44, right: width - 14, left: 0 };
  const yRange = extent(shown, "y", marks.map((mark) => mark.value), state.logY) || [0, 1];
  const xRange = extent(shown, "x", [], state.logX) || [0, 1];
  const y = makeScale(...yRange, frame.bottom, frame.top, state.logY, Math.max(3, Math.floor((frame.bottom - frame.top) / 42)));
  frame.left = 10 + Math.max(18, ...y.ticks.map((tick) => textWidth(number(tick))));
  const x = makeScale(...xRange, frame.left, frame.right, state.logX, Math.min(10, Math.max(2, Math.floor((frame.right - frame.left) / 72))));
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" });

  drawAxes(root, frame, x, y, figure, width, height);
  const inside = clipped(root, frame, figure.id);
  const points = [];
  for (const mark of marks) {
    const place = y.place(mark.value);
    inside.append(svg("line", { x1: frame.left, x2: frame.right, y1: place, y2: place, class: "mark" }));
  }
  for (const one of shown) drawBand(inside, one, x, y);
  for (const one of shown) points.push(...drawSeries(inside, one, x, y));
  for (const mark of marks) nameMark(inside, mark, frame, y.place(mark.value), points);
  holder.replaceChildren(root);
  return points;
}

// The name of a line across: left or right, above or below, wherever it hides the fewest points.
function nameMark(group, mark, frame, place, points) {
  const width = Math.min(textWidth(mark.name), (frame.right - frame.left) / 2);
  const places = [];
  for (const base of [place - 6, place + 15]) {
    if (base < frame.top + 10 || base > frame.bottom - 2) continue;
    for (const left of [frame.left + 6, frame.right - width - 6]) {
      const hidden = points.filter((point) => point.px > left - 8 && point.px < left + width + 8
        && point.py > base - 16 && point.py < base + 8).length;
      places.push({ left, base, hidden });
    }
  }
  const best = places.reduce((a, b) => (b.hidden < a.hidden ? b : a));
  group.append(label(mark.name, best.left, best.base, { class: "mark-name" }, width + 1));
}

function drawAxes(root, frame, x, y, figure, width, height) {
  for (const tick of y.ticks) {
    const place = y.place(tick);
    root.append(svg("line", { x1: frame.left, x2: frame.right, y1: place, y2: place, class: "grid" }));
    root.append(label(number(tick), frame.left - 6, place + 4, { "text-anchor": "end", class: "tick" }));
  }
  let free = -Infinity;
  for (const tick of x.ticks) {
    const place = x.place(tick), half = textWidth(number(tick)) / 2;
    root.append(svg("line", { x1: place, x2: place, y1: frame.top, y2: frame.bottom, class: "grid" }));
    const centre = Math.min(Math.max(place, half + 1), width - half - 1);
    if (centre - half < free) continue;
    root.append(label(number(tick), centre, frame.bottom + 17, { "text-anchor": "middle", class: "tick" }));
    free = centre + half + 6;
  }
  root.append(svg("line", { x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom, class: "axis" }));
  const log = (scale) => (scale.log ? ", log scale" : "");
  root.append(label(`↑ ${figure.y.label}${log(y)}`, 1, 14, { class: "title" }, width - 2));
  root.append(label(`${figure.x.label}${log(x)} →`, width - 1, height - 7, { "text-anchor": "end", class: "title" }, width - 2));
}

function clipped(root, frame, id) {
  const path = svg("clipPath", { id: `clip-${id}` }, svg("rect", { x: frame.left - 1, y: frame.top - 6,
    width: Math.max(1, frame.right - frame.left + 9), height: frame.bottom - frame.top + 12 }));
  const group = svg("g", { "clip-path": `url(#clip-${id})` });
  root.append(svg("defs", {}, path), group);
  return group;
}

function usable(scale, value) {
  return value !== null && value !== undefined && Number.isFinite(value) && (!scale.log || value > 0);
}

function drawBand(group, one, x, y) {
  if (!one.low || one.bars) return;
  // A bound at or below zero has no place on a log scale: it lies below the plot, where the band is cut.
  const floor = (value) => y.place(y.log ? Math.max(value, y.low / 1e3) : value);
  const up = [], down = [];
  one.x.forEach((value, index) => {
    if (!usable(x, value) || one.low[index] === null || one.high[index] === null) return;
    up.push(`${x.place(value)},${floor(one.high[index])}`);
    down.unshift(`${x.place(value)},${floor(one.low[index])}`);
  });
  group.append(svg("polygon", { points: [...up, ...down].join(" "), fill: colour(one.style), class: "band" }));
}

function drawSeries(group, one, x, y) {
  const points = [];
  let path = "", pen = "M", last = null;
  one.x.forEach((value, index) => {
    if (!usable(x, value) || !usable(y, one.y[index])) {
      pen = "M";
      return;
    }
    const point = { px: x.place(value), py: y.place(one.y[index]), series: one, index };
    points.push(point);
    path += `${pen}${point.px.toFixed(1)} ${point.py.toFixed(1)}`;
    pen = "L";
  });
  if (one.joined) {
    group.append(svg("path", { d: path || "M0 0", class: "curve", stroke: colour(one.style), "stroke-dasharray": dash(one.style) }));
  }
  for (const [dx, dy] of one.dots || []) {
    if (usable(x, dx) && usable(y, dy)) group.append(marker(one.style, x.place(dx), y.place(dy), 2.6, { fill: colour(one.style), class: "dot" }));
  }
  // A short curve shows a mark at each point, a long one now and then, so that lines are told apart without colour.
  for (const point of points) {
    const far = last === null || Math.hypot(point.px - last.px, point.py - last.py) > (one.joined && !one.bars ? 46 : 0);
    if (one.bars && one.low && one.low[point.index] !== null) errorBar(group, one, point.px, point.px,
      y.place(one.low[point.index]), y.place(one.high[point.index]));
    if (!far && point !== points[points.length - 1]) continue;
    group.append(marker(one.style, point.px, point.py, one.joined ? 3.4 : 4, { fill: colour(one.style), class: "point" }));
    last = point;
  }
  if (one.end && usable(x, one.end.x) && usable(y, one.end.y)) drawEnd(group, one, x, y);
  return points;
}

function drawEnd(group, one, x, y) {
  const end = one.end, px = x.place(end.x), py = y.place(end.y);
  const at = (scale, value) => scale.place(scale.log ? Math.max(value, scale.low / 1e3) : value);
  if (end.xlow !== null) errorBar(group, one, at(x, end.xlow), at(x, end.xhigh), py, py);
  if (end.ylow !== null) errorBar(group, one, px, px, at(y, end.ylow), at(y, end.yhigh));
  group.append(marker(one.style, px, py, 6, { fill: colour(one.style), class: "point" }));
}

function errorBar(group, one, x1, x2, y1, y2) {
  group.append(svg("line", { x1, x2, y1, y2, stroke: colour(one.style), class: "bar" }));
}

// What is said of a point that is hovered or chosen with the arrow keys.
function describePoint(figure, point) {
  const { series, index } = point;
  const band = series.low && series.low[index] !== null ? ` (${number(series.low[index])} to ${number(series.high[index])})` : "";
  const note = series.notes ? `, ${series.notes[index]}` : "";
  return `${series.name}: ${figure.x.short} ${number(series.x[index])}, ${figure.y.short} ${number(series.y[index])}${band}${note}`;
}

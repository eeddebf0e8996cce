// A matrix as a map of colours: the loss over a plane of weights, with contours, or the similarity of layers.
//
// figure.x, figure.y: {label, values}, names or numbers; figure.z: rows of numbers, the first at the bottom where the
// axes are numbers and at the top where they are names; figure.log: colours by the logarithm.

const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

function ramp(share) {
  const place = Math.min(0.9999, Math.max(0, share)) * (RAMP.length - 1), index = Math.floor(place);
  return RAMP[index].map((low, part) => Math.round(low + (RAMP[index + 1][part] - low) * (place - index)));
}

// Relative luminance (WCAG 2); at 0.179 black and white stand out from a colour alike, at 4.6 : 1.
function luminance(rgb) {
  const [r, g, b] = rgb.map((part) => part / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function drawHeat(holder, figure, state, width) {
  const columns = figure.x.values.length, rows = figure.z.length;
  const named = typeof figure.x.values[0] === "string";
  const xNames = figure.x.values.map((value) => (named ? value : number(value)));
  const yNames = figure.y.values.map((value) => (named ? value : number(value)));
  const left = Math.min(width * 0.35, 10 + Math.max(...yNames.map((name) => textWidth(name))));
  const side = Math.min(width - left - 10, 460);
  const cell = side / columns, tall = named ? Math.min(cell, 40) : side / rows;
  const upright = named && xNames.some((name) => textWidth(name) > cell - 6);
  const foot = upright ? Math.min(120, 12 + Math.max(...xNames.map((name) => textWidth(name)))) : 22;
  const frame = { left, top: 26, right: left + side, bottom: 26 + tall * rows };
  const height = frame.bottom + foot + 66;
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" });
  const values = figure.z.flat().filter((value) => value !== null && (!figure.log || value > 0));
  const bend = figure.log ? Math.log : (value) => value;
  const low = figure.range ? figure.range[0] : Math.min(...values), high = figure.range ? figure.range[1] : Math.max(...values);
  const share = (value) => (high > low ? (bend(value) - bend(low)) / (bend(high) - bend(low)) : 0.5);
  const centre = (row) => (named ? frame.top + (row + 0.5) * tall : frame.bottom - (row + 0.5) * tall);
  const points = [];

  root.append(label(`↑ ${figure.y.label}`, 1, 14, { class: "title" }, width - 2));
  figure.z.forEach((line, row) => line.forEach((value, column) => {
    if (value === null || (figure.log && value <= 0)) return;
    const rgb = ramp(share(value));
    const px = frame.left + (column + 0.5) * cell, py = centre(row);
    root.append(svg("rect", { x: px - cell / 2, y: py - tall / 2, width: cell + 0.5, height: tall + 0.5, fill: `rgb(${rgb})`, class: "cell" }));
    if (named && cell > 36) {
      const paper = luminance(rgb) > 0.179 ? "on-light" : "on-dark";
      root.append(label(value.toFixed(2), px, py + 4, { "text-anchor": "middle", class: paper }));
    }
    points.push({ px, py, row: named ? row : rows - row, index: column, said: [xNames[column], yNames[row], value] });
  }));
  if (!named) drawContours(root, figure, low, high, (column, row) => [frame.left + (column + 0.5) * cell, centre(row)]);
  const every = (count, room, least) => Math.max(1, Math.ceil((count * least) / room));
  const skipY = every(rows, frame.bottom - frame.top, 16);
  yNames.forEach((name, row) => {
    if (row % skipY === 0) root.append(label(name, frame.left - 6, centre(row) + 4, { "text-anchor": "end", class: "tick" }, left - 8));
  });
  const widest = Math.max(...xNames.map((name) => textWidth(name))) + 8;
  const skipX = every(columns, side, upright ? 16 : widest);
  xNames.forEach((name, column) => {
    if (column % skipX !== 0) return;
    const px = frame.left + (column + 0.5) * cell;
    const turn = upright ? { "text-anchor": "end", transform: `rotate(-90 ${px + 4} ${frame.bottom + 6})` } : { "text-anchor": "middle" };
    root.append(label(name, upright ? px + 4 : px, frame.bottom + (upright ? 6 : 16), { class: "tick", ...turn }, upright ? foot - 8 : Infinity));
  });
  root.append(label(`${figure.x.label} →`, frame.right, frame.bottom + foot + 12, { "text-anchor": "end", class: "title" }, side));
  drawKey(root, figure, frame, low, high, frame.bottom + foot + 26);
  holder.replaceChildren(root);
  return points;
}

// The colours from low to high, with what they stand for between the two numbers.
function drawKey(root, figure, frame, low, high, top) {
  const parts = 40, wide = (frame.right - frame.left) / parts;
  for (let part = 0; part < parts; part += 1) {
    root.append(svg("rect", { x: frame.left + part * wide, y: top, width: wide + 0.5, height: 10, fill: `rgb(${ramp(part / (parts - 1))})`, class: "cell" }));
  }
  const ends = [number(low), number(high)], base = top + 25;
  root.append(label(ends[0], frame.left, base, { class: "tick" }));
  root.append(label(ends[1], frame.right, base, { class: "tick", "text-anchor": "end" }));
  const room = frame.right - frame.left - textWidth(ends[0]) - textWidth(ends[1]) - 20;
  const middle = (frame.left + textWidth(ends[0]) + frame.right - textWidth(ends[1])) / 2;
  root.append(label(figure.label + (figure.log ? ", log scale" : ""), middle, base, { "text-anchor": "middle", class: "title" }, room));
}

// Lines of equal value (marching squares, straight across each square of four neighbours), at eight levels.
function drawContours(root, figure, low, high, place) {
  const bend = figure.log ? Math.log : (value) => value;
  let path = "";
  for (let step = 1; step <= 8; step += 1) {
    const level = bend(low) + (step / 9) * (bend(high) - bend(low));
    for (let row = 0; row + 1 < figure.z.length; row += 1) {
      for (let column = 0; column + 1 < figure.z[row].length; column += 1) {
        const corners = [[column, row], [column + 1, row], [column + 1, row + 1], [column, row + 1]];
        const heights = corners.map(([c, r]) => figure.z[r][c]);
        if (heights.some((value) => value === null || (figure.log && value <= 0))) continue;
        const cuts = [];
        for (let side = 0; side < 4; side += 1) {
          const a = bend(heights[side]) - level, b = bend(heights[(side + 1) % 4]) - level;
          if (a < 0 === b < 0) continue;
          const share = a / (a - b), [from, to] = [corners[side], corners[(side + 1) % 4]];
          cuts.push(place(from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1])));
        }
        for (let pair = 0; pair + 1 < cuts.length; pair += 2) {
          path += `M${cuts[pair].map((v) => v.toFixed(1))}L${cuts[pair + 1].map((v) => v.toFixed(1))}`;
        }
      }
    }
  }
  if (path) root.append(svg("path", { d: path, class: "contour" }));
}

function describeCell(figure, point) {
  const [x, y, value] = point.said;
  return `${figure.x.short} ${x}, ${figure.y.short} ${y}: ${number(value)}`;
}

// What every plot is made of: SVG elements, scales and their ticks, numbers and names as text.

// The namespace is taken from the mark in the header: the page holds no address at all.
const NAMESPACE = document.querySelector("svg").namespaceURI;
const FONT = 12;
const measuring = document.createElement("canvas").getContext("2d");

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function textWidth(text, bold = false) {
  measuring.font = `${bold ? "600 " : ""}${FONT}px ${getComputedStyle(document.body).fontFamily}`;
  return measuring.measureText(text).width;
}

// A name cut in its middle to fit a width; the whole of it stands in the tables and in the title of the element.
function fitted(text, width, bold = false) {
  if (textWidth(text, bold) <= width) return text;
  let kept = text.length - 1;
  const cut = () => `${text.slice(0, Math.ceil(kept / 2))}…${text.slice(text.length - Math.floor(kept / 2))}`;
  while (kept > 2 && textWidth(cut(), bold) > width) kept -= 1;
  return cut();
}

function label(text, x, y, attributes = {}, width = Infinity, bold = false) {
  const shown = fitted(text, width, bold);
  const element = svg("text", { x, y, "font-size": FONT, ...attributes }, shown);
  if (shown !== text) element.prepend(svg("title", {}, text));
  return element;
}

// Four significant digits, as people write them: no trailing zeros, a true minus, powers only where digits end.
function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  let text = String(Number(value.toPrecision(4)));
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) text = value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return text.replace(/-/g, "−");
}

function linearTicks(low, high, most) {
  const raw = (high - low) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.75);
  const ticks = [];
  for (let count = Math.ceil(low / step - 1e-9); count * step <= high + 1e-9 * step; count += 1) {
    ticks.push(Number((count * step).toPrecision(12)));
  }
  return ticks;
}

// The finest of three sets that is not finer than asked; below one decade even steps say more.
function logTicks(low, high, most) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const within = (factors, every) => {
    const ticks = [];
    for (let power = first; power <= last; power += every) {
      for (const factor of factors) {
        const value = Number((factor * 10 ** power).toPrecision(12));
        if (value >= low * 0.999 && value <= high * 1.001) ticks.push(value);
      }
    }
    return ticks;
  };
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = within(factors, 1);
    if (ticks.length <= most && ticks.length >= 2) return ticks;
  }
  if (last - first <= 2) return linearTicks(low, high, most).filter((tick) => tick > 0);
  return within([1], Math.ceil((last - first) / Math.max(1, most - 1)));
}

// Maps [low, high] to pixels [from, to]; `ticks` are values and `place` is where one comes to lie.
function makeScale(low, high, from, to, log, most) {
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
  const bend = log ? Math.log : (value) => value;
  const place = (value) => from + ((bend(value) - bend(low)) / (bend(high) - bend(low))) * (to - from);
  return { low, high, log, place, ticks: log ? logTicks(low, high, most) : linearTicks(low, high, most) };
}

function padded(low, high, log, share = 0.05) {
  if (log) return [low / (high / low) ** share, high * (high / low) ** share];
  const room = (high - low) * share;
  return [low - room, high + room];
}

// Nearest place in a sorted list is not needed: plots are small enough to look at every point.
function nearest(points, x, y) {
  let best = null, least = Infinity;
  for (const point of points) {
    const distance = (point.px - x) ** 2 + (point.py - y) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}

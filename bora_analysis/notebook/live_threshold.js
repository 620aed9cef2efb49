// Spectra with a threshold to be moved: a picture, a slider, and a table of what lies above the line.

const WIDTH = 640, HEIGHT = 300, LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 36;
const STEPS = 1000;
const DECADES = 8; // below the largest σ nothing is drawn
const SVG = "http://www.w3.org/2000/svg";

function drawn(name, attributes, parent, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function made(name, parent, text) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function median(sorted) {
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// How many of the descending values lie above τ.
function above(values, tau) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] > tau) low = middle + 1; else high = middle;
  }
  return low;
}

// At each index the least, the median and the largest σ, of the modules that have one there.
function band(modules) {
  const longest = Math.max(...modules.map(values => values.length));
  return Array.from({ length: longest }, (_, k) => {
    const here = modules.filter(values => k < values.length).map(values => values[k]).sort((a, b) => a - b);
    return [here[0], median(here), here[here.length - 1]];
  });
}

function plot(adapters, figure) {
  const all = adapters.flatMap(adapter => adapter.modules.flat()).filter(value => value > 0);
  const most = all.reduce((a, b) => Math.max(a, b));
  const least = Math.max(all.reduce((a, b) => Math.min(a, b)), most / 10 ** DECADES);
  const top = Math.log10(most) + 0.15, floor = Math.log10(least) - 0.5;
  const length = Math.max(2, ...adapters.flatMap(adapter => adapter.modules.map(values => values.length)));
  const x = k => LEFT + (WIDTH - LEFT - RIGHT) * Math.log(k) / Math.log(length);
  const y = value => {
    const at = value > 0 ? Math.max(Math.log10(value), floor) : floor;
    return TOP + (HEIGHT - TOP - BOTTOM) * (top - at) / (top - floor);
  };
  for (let power = Math.ceil(floor); power <= top; power++) {
    const text = Math.abs(power) < 4 ? String(Number((10 ** power).toPrecision(1))) : `1e${power}`;
    drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(10 ** power), y2: y(10 ** power), class: "bora-grid" }, figure);
    drawn("text", { x: LEFT - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, figure, text);
  }
  for (let k = 1; k <= length; k *= 2) {
    drawn("text", { x: x(k), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, figure, k);
  }
  drawn("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, figure, "singular values σ by index: median and range over the modules");
  for (const adapter of adapters) {
    const points = band(adapter.modules);
    const line = row => points.map((point, k) => `${x(k + 1).toFixed(1)},${y(point[row]).toFixed(1)}`);
    drawn("polygon", { points: [...line(2), ...line(0).reverse()].join(" "), fill: adapter.colour, "fill-opacity": 0.15 }, figure);
    drawn("polyline", {
      points: line(1).join(" "), fill: "none", stroke: adapter.colour, "stroke-width": 2, "stroke-dasharray": adapter.dash.join(" "),
    }, figure);
  }
  return { y, floor, top };
}

function render({ model, el }) {
  const root = made("div", el);
  root.className = "bora-live-threshold";
  const figure = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, root);
  const control = made("label", root, "threshold τ ");
  const slider = made("input", control);
  Object.assign(slider, { type: "range", min: 0, max: STEPS, step: 1 });
  const number = made("output", control);
  const table = made("table", root);
  table.className = "bora-table"; // pages style tables without a class
  let scale, line, adapters, cells;

  function redrawn() {
    adapters = model.get("_adapters");
    figure.replaceChildren();
    scale = plot(adapters, figure);
    line = drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, class: "bora-line" }, figure);
    table.replaceChildren();
    const head = made("tr", table);
    for (const title of ["", "modules", "σ above τ, mean", "least – most", "of the bound"]) made("th", head, title);
    cells = adapters.map(adapter => {
      const row = made("tr", table), name = made("th", row);
      made("span", name, "■ ").style.color = adapter.colour;
      name.append(adapter.name);
      return Array.from({ length: 4 }, () => made("td", row));
    });
    moved();
  }

  function moved() {
    const tau = model.get("threshold");
    const shown = Number(tau.toPrecision(3));
    line.setAttribute("y1", scale.y(tau));
    line.setAttribute("y2", scale.y(tau));
    slider.value = Math.round(STEPS * (Math.log10(tau) - scale.floor) / (scale.top - scale.floor));
    number.textContent = ` ${shown}`;
    slider.setAttribute("aria-valuetext", shown);
    adapters.forEach((adapter, k) => {
      const counts = adapter.modules.map(values => above(values, tau));
      const sum = counts.reduce((a, b) => a + b, 0);
      const bound = adapter.modules.reduce((a, values) => a + values.length, 0);
      const texts = [
        counts.length, (sum / counts.length).toFixed(2), `${Math.min(...counts)} – ${Math.max(...counts)}`,
        bound ? `${(100 * sum / bound).toFixed(0)}%` : "",
      ];
      cells[k].forEach((cell, column) => { cell.textContent = texts[column]; });
    });
    figure.setAttribute("aria-label", `Singular values of ${adapters.map(each => each.name).join(", ")}, threshold ${shown}`);
  }

  function set(exponent) {
    model.set("threshold", Number((10 ** exponent).toPrecision(4)));
    model.save_changes();
  }

  slider.addEventListener("input", () => set(scale.floor + (scale.top - scale.floor) * slider.value / STEPS));
  const dragged = event => {
    if (!(event.buttons & 1)) return;
    const box = figure.getBoundingClientRect();
    const at = (event.clientY - box.top) * HEIGHT / box.height;
    const share = Math.min(1, Math.max(0, (at - TOP) / (HEIGHT - TOP - BOTTOM)));
    set(scale.top - share * (scale.top - scale.floor));
  };
  figure.addEventListener("pointerdown", event => { figure.setPointerCapture(event.pointerId); dragged(event); });
  figure.addEventListener("pointermove", dragged);
  model.on("change:threshold", moved);
  model.on("change:_adapters", redrawn);
  redrawn();
  return () => {
    model.off("change:threshold", moved);
    model.off("change:_adapters", redrawn);
  };
}

export default { render };

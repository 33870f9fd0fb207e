// A sweep: a bar, counts in words, one cell of colour for each job, the errors in groups.

const WORDS = ["queued", "running", "done", "failed", "aborted"]; // models.CELLS
const ENDED = ["done", "failed", "aborted"];
const HEIGHT = 120;

function palette(node) {
  const style = getComputedStyle(node);
  return WORDS.map((word) => {
    const hex = style.getPropertyValue(`--qnb-${word}`).trim();
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return [r, g, b, word === "queued" ? 90 : 255];
  });
}

// Squares as large as fit; below 4 px a cell is a pixel of an image that is stretched.
function drawCells(canvas, cells, colours) {
  const n = cells.length, width = canvas.parentElement.clientWidth;
  canvas.hidden = n === 0;
  if (n === 0 || width === 0) return;
  const side = Math.max(1, Math.min(14, Math.floor(Math.sqrt((width * HEIGHT) / n))));
  const columns = Math.max(Math.floor(width / side), Math.ceil(n / 160));
  const rows = Math.ceil(n / columns);
  canvas.style.width = `${Math.min(width, columns * side)}px`;
  canvas.style.height = `${rows * side}px`;
  canvas.style.imageRendering = columns * side > width ? "auto" : "pixelated";
  const context = canvas.getContext("2d");
  if (side < 4) {
    canvas.width = columns;
    canvas.height = rows;
    const image = context.createImageData(columns, rows);
    const words = new Uint32Array(image.data.buffer);
    const packed = colours.map((c) => new Uint32Array(new Uint8Array(c).buffer)[0]);
    for (let i = 0; i < n; i++) words[i] = packed[cells[i]];
    context.putImageData(image, 0, 0);
    return;
  }
  const scale = window.devicePixelRatio || 1, gap = side > 8 ? 2 : 1;
  canvas.width = Math.round(columns * side * scale);
  canvas.height = Math.round(rows * side * scale);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  colours.forEach(([r, g, b, a], code) => {
    context.fillStyle = `rgba(${r}, ${g}, ${b}, ${a / 255})`;
    context.beginPath();
    for (let i = 0; i < n; i++) {
      if (cells[i] !== code) continue;
      const x = (i % columns) * side, y = Math.floor(i / columns) * side;
      context.roundRect(x, y, side - gap, side - gap, side > 8 ? 2 : 0);
    }
    context.fill();
  });
}

function build(model) {
  const bar = progressBar("finished jobs");
  const counts = element("div", "qnb-counts");
  const canvas = element("canvas", "");
  canvas.setAttribute("aria-hidden", "true"); // the counts say it in words
  const map = element("div", "qnb-map", canvas);
  const errors = element("ul", "qnb-errors");
  const note = element("div", "qnb-note");

  const draw = (state) => {
    const number_of = Object.fromEntries(state.counts.map(([word, , n]) => [word, n]));
    const ended = ENDED.reduce((sum, word) => sum + number_of[word], 0);
    const text = `${number(ended)} of ${number(state.total)} finished`;
    bar.set(state.total, ended, text,
      [...ENDED, "running"].map((word) => [word, number_of[word]]));

    const items = [element("span", "qnb-ended", text)];
    for (const word of [...ENDED, "running", "queued"]) {
      if (!number_of[word]) continue;
      const sign = element("span", "qnb-sign", state.counts.find(([w]) => w === word)[1]);
      sign.setAttribute("aria-hidden", "true");
      const item = element("span", "qnb-count", sign, `${number(number_of[word])} ${word}`);
      item.dataset.tone = word;
      items.push(item);
    }
    counts.replaceChildren(...items);

    inflate(model.get("cells")).then((found) => drawCells(canvas, found, palette(map)));

    const groups = state.errors.map(([message, n]) =>
      element("li", "", element("b", "", `${number(n)} ×`), " ", element("code", "", message)));
    if (state.left_out) {
      groups.push(element("li", "qnb-more", `and ${number(state.left_out)} more kinds of error`));
    }
    errors.replaceChildren(...groups);
    errors.hidden = groups.length === 0;
    setText(note, state.note);
    return `${text}${number_of.failed ? `, ${number(number_of.failed)} failed` : ""}`;
  };

  const tick = (state) => {
    const passed = state.ticking ? age(state) : 0;
    const spent = state.elapsed + passed;
    const left = state.eta == null ? null : state.eta - passed;
    const parts = [];
    if (state.ticking && state.rate >= 1) parts.push(`${number(Math.round(state.rate))} jobs/s`);
    if (spent > 0) parts.push(state.ticking ? ticking(spent) : duration(spent));
    if (state.ticking && left != null) {
      const [low, high] = [state.eta_low, state.eta_high].map(
        (at) => (at == null ? null : duration(Math.max(0, Math.ceil(at - passed)))));
      const between = low != null && low !== high ? ` (${low} – ${high})` : "";
      parts.push(left >= 1 ? `about ${duration(Math.ceil(left))} left${between}` : "nearly done");
    }
    return parts.join(" · ");
  };

  return { draw, tick, parts: [bar.node, counts, map, errors, note] };
}

const render = (context) => frame(context, "sweep", () => build(context.model));

export default { initialize, render };

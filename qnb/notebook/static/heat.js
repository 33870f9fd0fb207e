// Two parameters of a sweep against each other, and a result as colour.

const HEAT_HEIGHT = 260;

function picker(label, changed) {
  const select = element("select", "qnb-select");
  select.addEventListener("change", changed);
  const node = element("label", "qnb-pick", element("span", "", label), select);
  return {
    node, select,
    set(options, preferred) {
      const known = [...select.options].map((option) => option.value).join("\n");
      if (known === options.map(([value]) => value).join("\n")) return;
      const before = select.value;
      select.replaceChildren(...options.map(([value, text]) => {
        const option = element("option", "", text);
        option.value = value;
        return option;
      }));
      const values = options.map(([value]) => value);
      select.value = values.includes(before) && before ? before : preferred ?? values[0] ?? "";
    },
  };
}

// Some of the labels of an axis, as many as fit: the first, the last, and a few between.
function axisTicks(node, labels, most, vertical) {
  const n = labels.length, step = Math.max(1, Math.ceil((n - 1) / Math.max(1, most - 1)));
  const at = [];
  for (let i = 0; i < n - 1 - step / 2; i += step) at.push(i);
  if (n) at.push(n - 1);
  node.replaceChildren(...at.map((i) => {
    const tick = element("span", "", labels[i]);
    tick.title = labels[i];
    tick.style[vertical ? "bottom" : "left"] = `${(100 * (i + 0.5)) / n}%`;
    return tick;
  }));
}

function hatch(context) { // what is unknown is hatched: no colour of the scale
  const tile = new OffscreenCanvas(6, 6), pen = tile.getContext("2d");
  pen.strokeStyle = "rgba(128, 128, 128, 0.45)";
  pen.beginPath();
  for (const x of [-6, 0, 6]) {
    pen.moveTo(x, 6);
    pen.lineTo(x + 6, 0);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

function paintHeat(canvas, { columns, rows, width, height }, values, low, high) {
  const scale = window.devicePixelRatio || 1;
  const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== across || canvas.height !== down) {
    canvas.width = across;
    canvas.height = down;
  }
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, across, down);
  context.fillStyle = hatch(context);
  context.fillRect(0, 0, across, down);
  const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
  const colours = packed(SCALE), span = high - low;
  for (let row = 0; row < rows; row++) { // the first is at the bottom
    const to = (rows - 1 - row) * columns;
    for (let column = 0; column < columns; column++) {
      const value = values[row * columns + column];
      if (Number.isNaN(value)) continue;
      const share = span > 0 ? (value - low) / span : 0.5;
      pixels[to + column] = colours[1 + Math.round(254 * Math.min(1, Math.max(0, share)))];
    }
  }
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, across, down);
}

function hasNumbers({ results }) {
  return results.some(({ kind }) => kind !== "text");
}

// What can be chosen: two parameters that differ, and a number.
function setPickers(x, y, value, { parameters, results }) {
  const names = parameters.map(({ name }) => [name, name]);
  const varied = parameters.filter(({ distinct }) => distinct > 1).map(({ name }) => name);
  x.set(names, varied[0]);
  y.set(names, varied.find((name) => name !== x.select.value) ?? names[1]?.[0]);
  const numbers = results.filter(({ kind }) => kind !== "text").map(({ name }) => [name, name]);
  value.set([...numbers, ["duration", "duration"]], numbers[0]?.[0]);
  y.node.hidden = names.length < 2;
}

function heatMap(talk, columns) {
  let found = null, values = new Float32Array(0), stop = () => {}, size = null;
  let fresh = true; // has it just been opened
  let hasResults = false, chosen = false; // does the kernel know of a number; has the reader chosen
  const changed = () => {
    stop();
    const [xs, ys] = [x.select.value, y.node.hidden ? null : y.select.value];
    if (!xs) {
      setText(note, "This sweep has no parameters to put on an axis.");
      return;
    }
    stop = talk.follow("heat", { x: xs, y: ys, value: value.select.value }, hear);
  };
  const x = picker("Across", changed), y = picker("Up", changed), value = picker("Colour", () => {
    chosen = true;
    changed();
  });
  const canvas = element("canvas", ""), note = element("div", "qnb-note"), key = legend();
  const across = element("div", "qnb-across"), up = element("div", "qnb-up");
  const readout = element("div", "qnb-readout");
  const describe = (index) => {
    if (!found?.x.length) return "nothing";
    const at = values[index], n = found.x.length, where = [`${x.select.value} = ${found.x[index % n]}`];
    if (!y.node.hidden) where.push(`${y.select.value} = ${found.y[Math.floor(index / n)]}`);
    const shown = at === undefined || Number.isNaN(at) ? "not known yet" : shortNumber(at);
    return `${where.join(", ")}: ${value.select.value} ${shown}`;
  };
  const cursor = cellCursor(canvas, {
    label: "heat map", describe, up: 1, open: () => {},
    grid: () => size ?? { columns: 1, rows: 1, width: 1, height: 1, n: 0 },
    point: (index) => { readout.textContent = index === null ? "" : describe(index); },
  });
  const field = element("div", "qnb-field", canvas, cursor.mark);
  const plot = element("div", "qnb-plot", up, field, across);
  const draw = () => {
    plot.hidden = !found?.x.length;
    if (plot.hidden || !field.clientWidth) return;
    const [nx, ny] = [found.x.length, Math.max(1, found.y.length)], width = field.clientWidth;
    const height = Math.min(HEAT_HEIGHT, Math.max(24, Math.min(32, Math.floor(width / nx)) * ny, 4 * ny));
    size = { columns: nx, rows: ny, width, height, n: nx * ny, flip: true };
    paintHeat(canvas, size, values, found.low, found.high);
    axisTicks(up, found.y, Math.floor(height / 28), true);
    axisTicks(across, found.x, Math.floor(width / 72), false);
    cursor.renew();
    if (readout.textContent) readout.textContent = describe(canvas.getAttribute("aria-valuenow") - 1);
  };
  const hear = (answer) => {
    setText(note, answer.error ?? "");
    if (answer.error) return;
    found = answer;
    const view = answer.buffers[0];
    values = new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
    const mean = answer.mean_of > 1 ? `; a cell is the mean of up to ${number(answer.mean_of)}` : "";
    key.set(answer, `${number(answer.filled)} of ${number(answer.of)} known${mean}`);
    if (y.node.hidden) setText(note, "This sweep has one parameter: its map is a strip.");
    draw();
    if (!hasResults) choose(true);
  };
  const choose = async (anew) => { // and when the first results come, what they have
    let known;
    try {
      known = await columns(anew);
    } catch (error) {
      setText(note, error.message);
      return;
    }
    if (node.hidden) return;
    const before = value.select.value;
    if (!chosen && !hasResults && hasNumbers(known)) value.select.value = ""; // one of those, then
    hasResults = hasNumbers(known);
    setPickers(x, y, value, known);
    if (fresh || value.select.value !== before) changed();
    fresh = false;
  };
  const node = element("div", "qnb-part qnb-heat", element("div", "qnb-picks", x.node, y.node, value.node),
    plot, readout, key.node, note);
  return {
    node, draw,
    open() {
      setText(note, found ? "" : "asking …");
      fresh = true;
      choose(false);
    },
    close: () => stop(),
  };
}

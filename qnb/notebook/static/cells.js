// A grid of cells on a canvas: colours, drawing, and a cursor for pointer and keyboard alike.

// viridis: as bright as it is large, to every eye and in grey
const VIRIDIS = ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
const KINDS = ["0072b2", "e69f00", "009e73", "d55e00", "cc79a7", "56b4e9", "f0e442", "7f6bb3"]; // Okabe and Ito
const UNKNOWN = [128, 128, 128, 56];
const OTHER = [128, 128, 128, 200];
const HOVER = 100; // ms that a pointer rests before the kernel is asked

function rgba(hex, alpha = 255) {
  return [...[0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)), alpha];
}

function css([r, g, b, a]) {
  return `rgba(${r}, ${g}, ${b}, ${a / 255})`;
}

function viridis(share) {
  const at = Math.min(0.99999, Math.max(0, share)) * (VIRIDIS.length - 1), i = Math.floor(at);
  const [low, high] = [rgba(VIRIDIS[i]), rgba(VIRIDIS[i + 1])];
  return low.map((from, k) => Math.round(from + (high[k] - from) * (at - i)));
}

// Level 0 is unknown; 1 to 255 are a scale or the kinds.
const SCALE = Array.from({ length: 256 }, (_, i) => (i ? viridis((i - 1) / 254) : UNKNOWN));
const CATEGORIES = Array.from({ length: 256 }, (_, i) =>
  (i === 0 ? UNKNOWN : i <= KINDS.length ? rgba(KINDS[i - 1]) : OTHER));

function packed(colours) {
  return Uint32Array.from(colours, (colour) => new Uint32Array(new Uint8Array(colour).buffer)[0]);
}

function shortNumber(x) {
  return Number.isInteger(x) && Math.abs(x) < 1e7 ? number(x) : String(Number(x.toPrecision(4)));
}

// What the colours of a scale, or of the kinds, stand for.
function legend() {
  const low = element("span", ""), high = element("span", ""), known = element("span", "qnb-known");
  const ramp = element("i", "qnb-ramp");
  ramp.style.background = `linear-gradient(to right, ${VIRIDIS.map((hex) => `#${hex}`).join(", ")})`;
  const scale = element("span", "qnb-scale", low, ramp, high);
  const kinds = element("span", "qnb-kinds");
  const swatch = (colour, label) => {
    const mark = element("i", "qnb-swatch");
    mark.style.background = css(colour);
    return element("span", "", mark, label);
  };
  const node = element("div", "qnb-legend", scale, kinds, known);
  return {
    node,
    set({ kind = "number", low: from, high: to, labels = [] }, text) {
      scale.hidden = kind !== "number" || from == null;
      if (!scale.hidden) {
        low.textContent = shortNumber(from);
        high.textContent = shortNumber(to);
      }
      const shown = labels.slice(0, KINDS.length).map((label, i) => swatch(CATEGORIES[i + 1], label));
      if (labels.length > KINDS.length) shown.push(swatch(OTHER, "others"));
      kinds.replaceChildren(...(kind === "number" ? [] : shown));
      setText(known, text);
    },
  };
}

// The largest squares that fit; where there are more cells than pixels the image is stretched.
function layOut(n, width, height) {
  const side = Math.max(1, Math.min(14, Math.floor(Math.sqrt((width * height) / n))));
  const columns = Math.min(n, Math.max(Math.floor(width / side), Math.ceil(n / 160)));
  const rows = Math.ceil(n / columns);
  return { n, side, columns, rows, width: Math.min(width, columns * side), height: rows * side };
}

// Holes that tell the states apart without colour: a slash has failed, a bar was aborted, a ring runs.
function drawHoles(context, codes, { n, columns, side }, size) {
  const middle = size / 2, width = Math.max(1, side / 6);
  context.globalCompositeOperation = "destination-out";
  context.lineWidth = width;
  context.beginPath();
  for (let i = 0; i < n; i++) {
    const x = (i % columns) * side, y = Math.floor(i / columns) * side;
    if (codes[i] === 3) {
      context.moveTo(x, y + size);
      context.lineTo(x + size, y);
    } else if (codes[i] === 4) {
      context.moveTo(x, y + middle);
      context.lineTo(x + size, y + middle);
    } else if (codes[i] === 1) {
      const hole = Math.max(1, size - 4);
      context.moveTo(x + middle - hole / 2, y + middle);
      context.rect(x + middle - hole / 4, y + middle - hole / 4, hole / 2, hole / 2);
    }
  }
  context.stroke();
  context.globalCompositeOperation = "source-over";
}

// Draws a byte a cell; below 4 px a cell is a pixel of an image that is stretched.
function cellPainter(canvas) {
  const context = canvas.getContext("2d");
  let image = null;
  return (codes, colours, { n, side, columns, rows, width, height }, holes) => {
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.style.imageRendering = columns * side > width ? "auto" : "pixelated";
    const large = side >= 4, scale = large ? window.devicePixelRatio || 1 : 1;
    const across = large ? Math.round(columns * side * scale) : columns;
    const down = large ? Math.round(rows * side * scale) : rows;
    if (canvas.width !== across || canvas.height !== down) {
      canvas.width = across;
      canvas.height = down;
    }
    if (!large) {
      if (image?.width !== columns || image.height !== rows) image = context.createImageData(columns, rows);
      const pixels = new Uint32Array(image.data.buffer), colour = packed(colours);
      for (let i = 0; i < n; i++) pixels[i] = colour[codes[i]];
      pixels.fill(0, n);
      context.putImageData(image, 0, 0);
      return;
    }
    image = null;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, columns * side, rows * side);
    const size = side - (side > 8 ? 2 : 1), strings = colours.map(css);
    for (let i = 0, last = -1; i < n; i++) {
      if (codes[i] !== last) context.fillStyle = strings[last = codes[i]];
      context.fillRect((i % columns) * side, Math.floor(i / columns) * side, size, size);
    }
    if (holes && side >= 5) drawHoles(context, codes, { n, columns, side }, size);
  };
}

// Lets a reader point at the cells of a canvas and walk through them: a slider over the cells.
// `grid()` says how they lie; `point(index, x, y)` is called at each move (null: nowhere), `open(index)`
// at a click or Enter.
function cellCursor(canvas, { label, grid, point, open, describe, up = -1 }) {
  const mark = element("i", "qnb-cursor");
  mark.hidden = true;
  let at = 0;
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "slider");
  canvas.setAttribute("aria-label", label);
  canvas.setAttribute("aria-valuemin", "1");
  canvas.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys
  const place = (index) => {
    const { columns, rows, width, height, n, flip } = grid();
    const w = width / columns, h = height / rows;
    const row = Math.floor(index / columns);
    const x = (index % columns) * w, y = (flip ? rows - 1 - row : row) * h;
    const size = [Math.max(w, 7), Math.max(h, 7)];
    mark.style.width = `${size[0]}px`;
    mark.style.height = `${size[1]}px`;
    mark.style.transform = `translate(${x + (w - size[0]) / 2}px, ${y + (h - size[1]) / 2}px)`;
    canvas.setAttribute("aria-valuemax", String(n));
    canvas.setAttribute("aria-valuenow", String(index + 1));
    canvas.setAttribute("aria-valuetext", describe(index));
    return [x + w / 2, y + h];
  };
  const under = (event) => {
    const { columns, rows, width, height, n, flip } = grid();
    const column = Math.floor((event.offsetX / width) * columns);
    const row = Math.floor((event.offsetY / height) * rows);
    const index = (flip ? rows - 1 - row : row) * columns + column;
    return column >= 0 && column < columns && index >= 0 && index < n ? index : null;
  };
  const show = (index) => {
    mark.hidden = false;
    at = index;
    point(index, ...place(index));
  };
  const leave = () => {
    mark.hidden = true;
    point(null);
  };
  canvas.addEventListener("pointermove", (event) => {
    const index = under(event);
    if (index === null) leave();
    else if (index !== at || mark.hidden) show(index);
  });
  canvas.addEventListener("pointerleave", () => {
    if (document.activeElement !== canvas) leave();
  });
  canvas.addEventListener("click", (event) => {
    const index = under(event);
    if (index !== null) open(index);
  });
  canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible") && grid().n) show(Math.min(at, grid().n - 1)); });
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("keydown", (event) => {
    const { columns, n } = grid();
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: up * columns, ArrowDown: -up * columns,
      PageUp: up * 10 * columns, PageDown: -up * 10 * columns, Home: -at, End: n - 1 - at,
    };
    if (event.key in steps && n) {
      const to = at + steps[event.key];
      if (to >= 0 && to < n) show(to);
    } else if (event.key === "Enter" || event.key === " ") {
      if (at < n) open(at);
    } else if (event.key === "Escape" && !mark.hidden) {
      leave();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  });
  return {
    mark,
    renew() { // after the grid has changed
      if (mark.hidden) canvas.setAttribute("aria-valuemax", String(Math.max(1, grid().n)));
      else if (at < grid().n) place(at);
      else leave();
      if (mark.hidden && grid().n) {
        at = Math.min(at, grid().n - 1);
        canvas.setAttribute("aria-valuenow", String(at + 1));
        canvas.setAttribute("aria-valuetext", describe(at));
      }
    },
  };
}

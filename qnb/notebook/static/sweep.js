// A sweep: a bar, counts in words, one cell of colour for each job, the errors in groups; and, for who
// looks closer, the jobs themselves, a table of them, and a map of a result.

const WORDS = ["queued", "running", "done", "failed", "aborted"]; // models.CELLS
const ENDED = ["done", "failed", "aborted"];
const HEIGHT = 120;

function palette(node) {
  const style = getComputedStyle(node);
  return WORDS.map((word) =>
    rgba(style.getPropertyValue(`--qnb-${word}`).trim().slice(1), word === "queued" ? 90 : 255));
}

// What the sweep's columns are: asked when somebody comes near, and again when results may have come.
function columnsOf(talk) {
  let found = null, at = -Infinity, asked = null;
  return (anew = false) => {
    if (asked) return asked;
    if (!anew && found && performance.now() - at < 5000) return Promise.resolve(found);
    asked = talk.ask("columns").then((answer) => {
      at = performance.now();
      return found = answer;
    }).finally(() => { asked = null; });
    return asked;
  };
}

// The cells: coloured by state, or by a column.
function jobMap(model, talk, columns, open) {
  const canvas = element("canvas", ""), key = legend(), note = element("div", "qnb-note");
  const paint = cellPainter(canvas);
  let deflated = null, states = new Uint8Array(0), levels = null, colours = SCALE, grid = null, drawn = "";
  let stop = () => {}, version = 0;
  const described = new Map(); // place → its parameters in words
  const describe = (place) => `Job ${number(place)} · ${WORDS[states[place]] ?? "unknown"}`;
  const spoken = (place) => [describe(place), described.get(place)].filter(Boolean).join(", ");
  const tip = hoverTip(talk, describe, (place, words) => {
    described.clear();
    described.set(place, words);
    cursor.renew();
  });
  const cursor = cellCursor(canvas, {
    label: "jobs", describe: spoken, open,
    grid: () => grid ?? { columns: 1, rows: 1, width: 1, height: 1, n: 0 },
    point: (place, x, y) => tip.show(place, x, y, map.clientWidth),
  });
  const map = element("div", "qnb-map", canvas, cursor.mark, tip.node);
  const drawCells = () => {
    const n = states.length, width = map.clientWidth;
    canvas.hidden = n === 0;
    if (n === 0 || width === 0) return;
    const what = `${version} ${n} ${width} ${window.devicePixelRatio}`;
    if (what === drawn) return;
    drawn = what;
    grid = layOut(n, width, HEIGHT);
    if (levels?.length < n) levels = Uint8Array.from({ length: n }, (_, i) => levels[i] ?? 0);
    paint(levels ?? states, levels ? colours : palette(map), grid, !levels);
    cursor.renew();
  };
  const changed = () => { version += 1; drawCells(); };
  const choose = () => {
    stop();
    const column = by.select.value;
    setText(note, "");
    if (column === "") {
      levels = null;
      stop = () => {};
      key.node.hidden = true;
      changed();
      return;
    }
    stop = talk.follow("colour", { column }, async (answer) => {
      setText(note, answer.error ?? "");
      if (answer.error) return;
      const heard = await inflate(answer.buffers[0]);
      if (by.select.value !== column) return;
      levels = heard;
      colours = answer.kind === "number" ? SCALE : CATEGORIES;
      key.set(answer, `${number(answer.known)} of ${number(states.length)} known`);
      key.node.hidden = false;
      changed();
    });
  };
  const by = picker("Colour by", choose);
  const fill = ({ parameters, results }) => by.set([["", "state"],
    ...[...parameters, ...results].map(({ name }) => [name, name]), ["duration", "duration"]], "");
  fill({ parameters: [], results: [] });
  key.node.hidden = true;
  setText(note, "");
  const near = () => { columns().then(fill, () => {}); };
  for (const event of ["pointerenter", "focusin"]) by.node.addEventListener(event, near);
  return {
    node: element("div", "", map, key.node, note), by: by.node,
    draw: () => {
      if (model.get("cells") === deflated) return drawCells();
      const mine = deflated = model.get("cells");
      return inflate(mine).then((found) => {
        if (mine !== deflated) return; // newer ones have come
        states = found;
        changed();
      });
    },
    close: () => { tip.close(); stop(); },
  };
}

// A part that is asked for only while it is open.
function disclosure(label, part) {
  part.node.hidden = true;
  const node = button(label, () => {
    const opened = part.node.hidden;
    part.node.hidden = !opened;
    node.setAttribute("aria-expanded", String(opened));
    if (opened) part.open();
    else part.close();
  });
  node.setAttribute("aria-expanded", "false");
  node.classList.add("qnb-disclosure");
  return node;
}

// The errors in groups: how many jobs, and the first of them to look at.
function errorList(open) {
  const node = element("ul", "qnb-errors");
  let drawn = "";
  return {
    node,
    set({ errors, left_out: left }) {
      const known = JSON.stringify([errors, left]);
      if (known === drawn) return;
      drawn = known;
      const groups = errors.map(([message, n, places]) => {
        const item = element("li", "", element("b", "", `${number(n)} ×`), " ",
          element("code", "", message));
        for (const place of (Array.isArray(places) ? places : []).slice(0, 3)) {
          const link = button(`job ${number(place)}`, () => open(place));
          link.classList.add("qnb-link");
          item.append(" ", link);
        }
        return item;
      });
      if (left) groups.push(element("li", "qnb-more", `and ${number(left)} more kinds of error`));
      node.replaceChildren(...groups);
      node.hidden = groups.length === 0;
    },
  };
}

function countsOf(state) {
  return Object.fromEntries(state.counts.map(([word, , n]) => [word, n]));
}

function countItems(state, text) {
  const number_of = countsOf(state), items = [element("span", "qnb-ended", text)];
  for (const word of [...ENDED, "running", "queued"]) {
    if (!number_of[word]) continue;
    const sign = element("span", "qnb-sign", state.counts.find(([w]) => w === word)[1]);
    sign.setAttribute("aria-hidden", "true");
    const item = element("span", "qnb-count", sign, `${number(number_of[word])} ${word}`);
    item.dataset.tone = word;
    items.push(item);
  }
  if (state.workers) items.push(element("span", "qnb-busy", state.workers));
  return items;
}

function times(state) {
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
}

function build(model, talk) {
  const bar = progressBar("finished jobs");
  const counts = element("div", "qnb-counts");
  const columns = columnsOf(talk), panel = jobPanel(talk);
  const map = jobMap(model, talk, columns, panel.open);
  const errors = errorList(panel.open), note = element("div", "qnb-note");
  const jobs = jobTable(talk, panel.open), heat = heatMap(talk, columns);
  const tools = element("div", "qnb-tools", map.by,
    disclosure("Jobs", jobs), disclosure("Heat map", heat));
  for (const node of [tools, jobs.node, heat.node]) { // JupyterLab would take Enter and arrows
    node.dataset.lmSuppressShortcuts = "true";
  }

  const draw = (state) => {
    const number_of = countsOf(state);
    const ended = ENDED.reduce((sum, word) => sum + number_of[word], 0);
    const text = `${number(ended)} of ${number(state.total)} finished`;
    bar.set(state.total, ended, text,
      [...ENDED, "running"].map((word) => [word, number_of[word]]));
    counts.replaceChildren(...countItems(state, text));
    tools.hidden = state.total === 0;
    map.draw();
    if (!heat.node.hidden) heat.draw();
    errors.set(state);
    setText(note, state.note);
    return `${state.word}, ${text}${number_of.failed ? `, ${number(number_of.failed)} failed` : ""}`;
  };

  return {
    draw, tick: times,
    parts: [bar.node, counts, map.node, errors.node, note, tools, panel.node, jobs.node, heat.node],
    close: () => { for (const part of [map, panel, jobs, heat]) part.close(); },
  };
}

const render = (context) => frame(context, "sweep", (talk) => build(context.model, talk));

export default { initialize, render };

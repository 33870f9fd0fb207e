// A queue: what waits and runs, how many jobs end in a second, sweeps, failures, workers.

const SVG = "http://www.w3.org/2000/svg";
const WINDOWS = [60, 120]; // steps; the first that holds all is shown
const HIGH = 36, WIDE = 480;

function clock(ms) {
  return new Date(ms).toLocaleTimeString(LANGUAGE, { hour: "2-digit", minute: "2-digit", hour12: false });
}

function perSecond(rate) {
  return rate >= 9.95 ? number(Math.round(rate)) : rate.toFixed(1);
}

// A bar for each step; a step in which nobody looked has none, one without an end a thin line.
function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", `0 0 ${WIDE} ${HIGH}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("class", "qnb-spark");
  svg.append(path);
  const words = element("div", "qnb-facts");
  const node = element("div", "qnb-part", svg, words);
  const set = whenNew(({ rates, since }) => {
    const known = rates.filter((rate) => rate !== null);
    node.hidden = known.length === 0;
    if (node.hidden) return;
    const most = Math.max(...known), steps = WINDOWS.find((n) => n >= rates.length) ?? rates.length;
    const wide = WIDE / steps, gap = wide * 0.2;
    let d = "";
    rates.forEach((rate, i) => {
      if (rate === null) return;
      const high = Math.max(0.8, most ? (rate / most) * (HIGH - 1) : 0);
      const x = (steps - rates.length + i) * wide;
      d += `M${x.toFixed(2)} ${HIGH}v${-high.toFixed(2)}h${(wide - gap).toFixed(2)}v${high.toFixed(2)}z`;
    });
    path.setAttribute("d", d);
    const text = `jobs ended per second since ${clock(since)} · at most ${perSecond(most)}`;
    setText(words, text);
    svg.setAttribute("aria-label", `${text}, last ${perSecond(known[known.length - 1])}`);
  });
  return { node, set };
}

function count(word, glyph, text) {
  const sign = element("span", "qnb-sign", glyph);
  sign.setAttribute("aria-hidden", "true");
  const node = element("span", "qnb-count", sign, text);
  node.dataset.tone = word;
  return node;
}

function gauge(most, n) { // the number beside it says the same
  const bar = element("div", "qnb-bar", element("i", ""));
  bar.dataset.tone = "queued";
  bar.firstChild.style.width = `${(100 * n) / most}%`;
  bar.setAttribute("aria-hidden", "true");
  return bar;
}

function share(total, shares, label) {
  const bar = progressBar(label);
  bar.set(total, Math.min(total, shares.reduce((sum, [, n]) => sum + n, 0)), label, shares);
  return bar.node;
}

function sweepsTable() {
  const view = table("Sweeps", [["Sweep"], ["State"], ["Ended", "", 2]]);
  const set = whenNew(({ sweeps, more }) => {
    view.set(sweeps.map((row) => {
      const text = `${row.about ? "about " : ""}${number(row.ended)} of ${number(row.total)}`;
      return element("tr", "",
        element("td", "qnb-who", element("b", "", row.name), " ", element("code", "", row.task)),
        element("td", "", state_of(row)),
        element("td", "qnb-share qnb-minor", share(row.total, row.shares, `${row.name}: ${text} ended`)),
        element("td", "qnb-number", text));
    }), more);
  });
  return { node: view.node, set };
}

function lanesTable() {
  const view = table("Lanes", [["Lane, lowest first"], ["Waiting", "", 2]]);
  const set = whenNew(({ lanes, more }) => {
    const most = Math.max(1, ...lanes.map(([, n]) => n));
    view.set(lanes.map(([lane, n]) => element("tr", "",
      element("td", "qnb-who", lane),
      element("td", "qnb-share qnb-minor", gauge(most, n)), element("td", "qnb-number", number(n)))),
    more);
  });
  return { node: view.node, set };
}

function failuresList(times) {
  const list = element("ul", "qnb-errors");
  const node = element("div", "qnb-part", element("div", "qnb-title", "Recent failures"), list);
  const set = whenNew((failures) => {
    times.clear();
    list.replaceChildren(...failures.map(([task, id, text, finish]) => element("li", "",
      element("b", "", task), " ", element("code", "", id), " ",
      times.add(finish, (s) => `${seconds(s)} ago`), element("div", "", element("code", "", text)))));
    node.hidden = failures.length === 0;
  });
  return { node, set };
}

function build() {
  const counts = element("div", "qnb-counts");
  const note = element("div", "qnb-note");
  const ago = clocks(), busy = clocks();
  const lanes = lanesTable(), rates = sparkline(), sweeps = sweepsTable();
  const failures = failuresList(ago);
  const workers = workersTable(busy, "Workers", { load: true });
  const setCounts = whenNew(([known, running, slots, waiting, delayed]) => {
    counts.hidden = !known;
    counts.replaceChildren(
      count("running", "▸", `${number(running)} running on ${plural(slots, "slot")}`),
      count("queued", "○", `${number(waiting)} waiting`),
      count("queued", "◷", `${number(delayed)} delayed`));
  });
  const tick = (state) => {
    ago.tick(state);
    busy.tick(state);
    return state.rate;
  };
  const draw = (state) => {
    setCounts([state.known, state.running, state.slots, state.waiting, state.delayed]);
    setText(note, state.note);
    lanes.set({ lanes: state.lanes, more: state.more_lanes });
    rates.set({ rates: state.rates, since: state.since });
    sweeps.set({ sweeps: state.sweeps, more: state.more_sweeps });
    failures.set(state.failures);
    workers.set({ workers: state.workers, more: state.more });
    tick(state);
    return `${state.word}, ${number(state.running)} running, ${number(state.waiting)} waiting`;
  };
  return {
    draw, tick,
    parts: [counts, note, rates.node, lanes.node, sweeps.node, failures.node, workers.node],
  };
}

const render = (context) => frame(context, "app", build);

export default { initialize, render };

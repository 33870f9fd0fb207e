// What the views of a pool and of an app share: titled parts, tables, workers.

// Calls `draw` with a value that differs from the last one, so that what stays is left alone: a
// selection, a place that was scrolled to.
function whenNew(draw) {
  let last;
  return (value) => {
    const text = JSON.stringify(value);
    if (text === last) return;
    last = text;
    draw(value);
  };
}

function plural(n, noun) {
  return `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
}

// A table under its title; it scrolls by itself where the page is narrow.
function table(title, heads) {
  const body = element("tbody", "");
  const row = element("tr", "", ...heads.map(([label, kind, columns]) => {
    const head = element("th", kind ?? "", label);
    head.scope = "col";
    head.colSpan = columns ?? 1;
    return head;
  }));
  const inner = element("table", "qnb-table",
    element("caption", "qnb-hidden", title), element("thead", "", row), body);
  const more = element("div", "qnb-more");
  const scroll = element("div", "qnb-scroll", inner);
  const node = element("div", "qnb-part", scroll, more);
  return {
    node,
    set(rows, left) {
      body.replaceChildren(...rows);
      setText(more, left ? `and ${number(left)} more` : "");
      node.hidden = rows.length === 0;
      if (scroll.scrollWidth > scroll.clientWidth) { // a keyboard must be able to scroll it
        scroll.tabIndex = 0;
        scroll.setAttribute("role", "region");
        scroll.setAttribute("aria-label", title);
      } else {
        for (const name of ["tabindex", "role", "aria-label"]) scroll.removeAttribute(name);
      }
    },
  };
}

function state_of(row) {
  const sign = element("span", "qnb-sign", row.glyph);
  sign.setAttribute("aria-hidden", "true");
  const node = element("span", "", sign, row.word);
  node.dataset.tone = row.tone;
  return node;
}

function seconds(s) { // in whole ones, as it goes on
  return s < 60 ? `${Math.floor(s)} s` : duration(s);
}

// Times that go on: each node says how long ago its moment was, by the clock of the server.
function clocks() {
  let all = [];
  return {
    clear: () => { all = []; },
    add: (since, say) => {
      const node = element("span", "qnb-clock");
      all.push([node, since, say]);
      return node;
    },
    tick: (state) => {
      for (const [node, since, say] of all) {
        const text = since ? say(Math.max(0, (state.now - since) / 1000 + age(state))) : "–";
        if (node.textContent !== text) node.textContent = text;
      }
    },
  };
}

function workersTable(times, title, { load }) {
  const heads = [["Worker"], ["State"], ["Busy", "qnb-number"], ["Ended", "qnb-number qnb-minor"],
    ["Memory", "qnb-number qnb-minor"], [load ? "Load" : "Up", "qnb-number qnb-minor"]];
  const view = table(title, heads);
  const cell = (kind, content) => element("td", kind, content);
  const draw = whenNew(({ workers, more }) => {
    times.clear();
    const rows = [];
    for (const row of workers) {
      const said = state_of(row);
      if (row.heard) said.append(times.add(row.heard, (s) => ` for ${seconds(s)}`));
      rows.push(element("tr", "", cell("qnb-who", row.name), cell("", said),
        cell("qnb-number", `${number(row.busy)} of ${number(row.slots)}`),
        cell("qnb-number qnb-minor", number(row.done)), cell("qnb-number qnb-minor", row.memory),
        cell("qnb-number qnb-minor", load ? row.load : times.add(row.started, seconds))));
      const jobs = row.jobs.map(([task, id, start]) => element("li", "",
        element("b", "", task), " ", element("code", "", id), " ",
        times.add(start, (s) => `for ${seconds(s)}`)));
      if (row.more) jobs.push(element("li", "", `and ${number(row.more)} more`));
      if (jobs.length) {
        const wide = cell("qnb-runs", element("ul", "", ...jobs));
        wide.colSpan = heads.length;
        rows.push(element("tr", "", wide));
      }
    }
    view.set(rows, more);
  });
  return { node: view.node, set: draw };
}

// The jobs of a sweep as a table: a page of it at a time, sorted and filtered by the kernel.

const LIMIT = 20;
const TYPING = 300; // ms after the last key

function sortHead(column, question, sortBy) {
  const label = column.label ?? column.name;
  const head = element("th", column.kind === "number" && column.name !== "place" ? "qnb-number" : "");
  head.scope = "col";
  const arrow = element("span", "qnb-arrow");
  arrow.setAttribute("aria-hidden", "true");
  const name = column.sortable === false ? label : button(label, () => sortBy(column.name));
  head.append(...(column.kind === "number" && column.name !== "place" ? [arrow, name] : [name, arrow]));
  return {
    head,
    renew() {
      const by = question.sort === column.name;
      arrow.textContent = by ? (question.descending ? "▾" : "▴") : "";
      if (!by) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", question.descending ? "descending" : "ascending");
    },
  };
}

function filterBox(column, question, changed) {
  const box = element("input", "qnb-input");
  const label = column.label ?? column.name;
  box.type = "text";
  box.size = 6;
  box.spellcheck = false;
  box.value = question.filters.get(column.name) ?? "";
  box.placeholder = column.kind === "number" ? ">3, 1..5" : "filter";
  box.setAttribute("aria-label", `filter ${label}`);
  box.addEventListener("input", () => {
    const text = box.value.trim();
    if (text) question.filters.set(column.name, text);
    else question.filters.delete(column.name);
    changed(TYPING);
  });
  return box;
}

function rowNode(open) {
  const node = element("tr", "qnb-row");
  const at = button("", (event) => { event.stopPropagation(); open(row.place, at); });
  const sign = element("span", "qnb-sign");
  sign.setAttribute("aria-hidden", "true");
  const row = { node, place: 0, set: null };
  node.addEventListener("click", () => open(row.place, at));
  row.set = ({ place, word, glyph, tone, cells }, head) => {
    row.place = place;
    node.dataset.tone = tone;
    while (node.children.length > cells.length) node.lastChild.remove();
    while (node.children.length < cells.length) node.append(element("td", ""));
    cells.forEach((text, i) => {
      const cell = node.children[i], { name, kind } = head[i];
      cell.className = kind === "number" && name !== "place" ? "qnb-number" : "";
      if (name === "place") {
        if (at.parentNode !== cell) cell.replaceChildren(at);
        at.textContent = text;
        at.setAttribute("aria-label", `open job ${text}`);
      } else if (name === "state") {
        sign.textContent = glyph;
        cell.replaceChildren(sign, word);
      } else if (cell.textContent !== text) {
        cell.textContent = text;
      }
    });
  };
  return row;
}

function pager(question, changed) {
  const go = (offset) => (event) => {
    if (event.currentTarget.getAttribute("aria-disabled") === "true") return;
    question.offset = Math.max(0, offset());
    changed(0);
  };
  let matching = 0;
  const last = () => Math.max(0, Math.floor((matching - 1) / LIMIT) * LIMIT);
  const buttons = [
    button("First", go(() => 0)), button("Previous", go(() => question.offset - LIMIT)),
    button("Next", go(() => question.offset + LIMIT)), button("Last", go(last)),
  ];
  const where = element("span", "qnb-where");
  where.setAttribute("aria-live", "polite");
  const node = element("div", "qnb-pager", ...buttons, where);
  return {
    node,
    set(found, total, shown) {
      matching = found;
      const from = shown ? question.offset + 1 : 0, to = question.offset + shown;
      const filtered = found !== total ? ` (${number(total)} jobs)` : "";
      setText(where, shown ? `${number(from)}–${number(to)} of ${number(found)}${filtered}`
        : `no job matches${filtered}`);
      const [atStart, atEnd] = [question.offset <= 0, to >= found];
      buttons.forEach((node, i) => { // the focused one stays, or the keyboard would lose its place
        node.setAttribute("aria-disabled", String(i < 2 ? atStart : atEnd));
        node.inert = (i < 2 ? atStart : atEnd) && document.activeElement !== node;
      });
    },
  };
}

function jobTable(talk, open) {
  const question = { offset: 0, limit: LIMIT, sort: null, descending: false, filters: new Map() };
  const heads = element("tr", ""), filters = element("tr", "qnb-filters");
  const body = element("tbody", ""), rows = [];
  const inner = element("table", "qnb-table", element("caption", "qnb-hidden", "jobs"),
    element("thead", "", heads, filters), body);
  const scroll = element("div", "qnb-scroll", inner);
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "table of jobs");
  const problem = element("div", "qnb-note");
  let stop = () => {}, typing = 0, drawn = "", sorts = [];
  const changed = (delay) => {
    if (delay) question.offset = 0;
    clearTimeout(typing);
    stop();
    typing = setTimeout(() => {
      stop = talk.follow("rows", { ...question, filters: Object.fromEntries(question.filters) }, draw);
    }, delay);
  };
  const pages = pager(question, changed);
  const sortBy = (name) => {
    if (question.sort !== name) [question.sort, question.descending] = [name, false];
    else if (!question.descending) question.descending = true;
    else [question.sort, question.descending] = [null, false];
    question.offset = 0;
    sorts.forEach((sort) => sort.renew());
    changed(0);
  };
  const drawHead = (head) => {
    const known = JSON.stringify(head);
    if (known === drawn) return;
    drawn = known;
    sorts = head.map((column) => sortHead(column, question, sortBy));
    sorts.forEach((sort) => sort.renew());
    const focused = document.activeElement?.getAttribute("aria-label");
    heads.replaceChildren(...sorts.map((sort) => sort.head));
    filters.replaceChildren(...head.map((column) => element("td", "",
      ...(column.filterable === false ? [] : [filterBox(column, question, changed)]))));
    if (focused && !filters.contains(document.activeElement)) {
      [...filters.querySelectorAll("input")].find((box) => box.getAttribute("aria-label") === focused)?.focus();
    }
  };
  const draw = (answer) => {
    setText(problem, answer.error ?? "");
    if (answer.error) return;
    drawHead(answer.head);
    while (rows.length < answer.rows.length) rows.push(rowNode(open));
    answer.rows.forEach((row, i) => rows[i].set(row, answer.head));
    const wanted = rows.slice(0, answer.rows.length).map((row) => row.node);
    if (body.children.length !== wanted.length) body.replaceChildren(...wanted);
    pages.set(answer.matching, answer.total, wanted.length);
  };
  const node = element("div", "qnb-part", scroll, problem, pages.node);
  return {
    node,
    open: () => { setText(problem, drawn ? "" : "asking …"); changed(0); },
    close: () => { clearTimeout(typing); stop(); },
  };
}

// One job of a sweep: a few words beside the pointer, and all of it in a panel.

function pairs(list) {
  return list.map(([name, text]) =>
    element("div", "", element("dt", "", name), element("dd", "", element("code", "", text))));
}

// What is under the cursor. What the page knows is there at once; the kernel is asked for the rest when
// the cursor rests, one question at a time. A failed job's answer has an `error` too: what has no word
// is no answer.
function hoverTip(talk, describe, told) {
  const title = element("b", ""), values = element("dl", "qnb-pairs"), value = element("code", "");
  const node = element("div", "qnb-tip", title, values, value);
  node.hidden = true;
  node.setAttribute("aria-hidden", "true"); // the cells say it as their value
  let stop = () => {}, rest = 0;
  const quit = () => {
    clearTimeout(rest);
    stop();
    stop = () => {};
  };
  const ask = (place) => {
    stop = talk.follow("job", { place, brief: true }, (job) => {
      quit();
      const parameters = job.parameters ?? [];
      values.replaceChildren(...pairs(parameters));
      setText(value, job.error || job.value || "");
      if (job.word) told(place, parameters.map(([name, text]) => `${name} ${text}`).join(", "));
    });
  };
  return {
    node,
    show(place, x, y, width) {
      quit();
      node.hidden = place === null;
      if (place === null) return;
      title.textContent = describe(place);
      values.replaceChildren();
      setText(value, "");
      const right = x > width / 2;
      node.style.top = `${y + 6}px`;
      node.style.left = right ? "" : `${x}px`;
      node.style.right = right ? `calc(100% - ${x}px)` : "";
      rest = setTimeout(ask, HOVER, place);
    },
    close: quit,
  };
}

function scrolling(label) {
  const node = element("pre", "");
  node.tabIndex = 0; // a keyboard must be able to scroll it
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", label);
  return node;
}

function jobPanel(talk) {
  const sign = element("span", "qnb-sign"), word = element("span", "");
  const name = element("strong", "qnb-name"), id = element("code", "qnb-id");
  const values = element("dl", "qnb-pairs"), facts = element("div", "qnb-facts");
  const value = element("code", "qnb-value"), error = element("div", "qnb-error", element("code", ""));
  const frames = scrolling("where it failed"), log = scrolling("log");
  const problem = element("div", "qnb-note");
  let stop = () => {}, opener = null;
  const close = () => {
    stop();
    stop = () => {};
    node.hidden = true;
    if (opener?.isConnected) opener.focus();
    opener = null;
  };
  const closing = button("Close", close);
  const node = element("div", "qnb-detail", element("header", "qnb-head",
    element("span", "qnb-chip", sign, word), name, id, closing),
    values, facts, value, error, frames, log, problem);
  node.hidden = true;
  node.tabIndex = -1;
  node.setAttribute("role", "region");
  node.dataset.lmSuppressShortcuts = "true";
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  const draw = (job) => {
    setText(problem, job.error && !job.word ? job.error : "");
    if (!job.word) return;
    node.dataset.tone = job.tone;
    setText(sign, job.glyph);
    setText(word, job.word);
    setText(id, job.id ?? "");
    const listed = JSON.stringify(job.parameters ?? []);
    if (values.dataset.listed !== listed) values.replaceChildren(...pairs(job.parameters ?? []));
    values.dataset.listed = listed;
    setText(facts, (job.facts ?? []).join(" · "));
    setText(value, job.value ?? "");
    error.firstChild.textContent = job.error ?? "";
    error.hidden = !job.error;
    setText(frames, job.frames ?? "");
    const end = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    setText(log, job.log ?? "");
    if (end) log.scrollTop = log.scrollHeight;
  };
  return {
    node,
    open(place) {
      stop();
      if (node.hidden) opener = document.activeElement;
      name.textContent = `Job ${number(place)}`;
      node.setAttribute("aria-label", `job ${number(place)}`);
      delete values.dataset.listed;
      delete node.dataset.tone;
      values.replaceChildren();
      for (const part of [sign, word, id, facts, value, frames, log]) setText(part, "");
      error.hidden = true;
      setText(problem, "asking …");
      node.hidden = false;
      closing.focus({ preventScroll: true });
      stop = talk.follow("job", { place, brief: false }, (job) => {
        // a job has an `error` of its own: an answer without a word is one that failed
        setText(problem, "");
        draw(job);
      });
    },
    close() { stop(); },
  };
}

// A job: what it was called with, its progress, what it says and prints, the error it ended with.

function fold(summary, ...children) {
  return element("details", "qnb-fold", element("summary", "", summary), ...children);
}

function build() {
  const given = element("code", "qnb-given");
  const bar = progressBar("progress");
  const facts = element("div", "qnb-facts");
  const message = element("div", "qnb-note");
  const error = element("pre", "qnb-error");
  const traceback = element("pre", "qnb-traceback");
  const log = element("pre", "qnb-log");
  const line = element("code", "");
  const again = fold("How to reproduce", element("p", "", "In a cell, in reach of %debug, the same "
    + "call with the same version of the function:"), line);
  for (const [node, label] of [[log, "the end of its output"], [traceback, "traceback"]]) {
    node.tabIndex = 0; // it scrolls, also by keyboard
    node.setAttribute("role", "region");
    node.setAttribute("aria-label", label);
  }

  const drawEnd = (node, text) => { // its end stays in view unless the reader has gone up
    if (node.textContent === text) { node.hidden = text === ""; return; }
    const follows = node.scrollHeight - node.scrollTop - node.clientHeight < 8;
    setText(node, text);
    if (follows) node.scrollTop = node.scrollHeight;
  };
  const draw = (state) => {
    setText(given, state.arguments);
    bar.node.hidden = state.progress == null;
    if (state.progress != null) {
      const percent = Math.round(100 * state.progress);
      bar.set(100, percent, `${percent} %`, [["running", percent]]);
    }
    setText(facts, state.facts.join(" · "));
    setText(message, state.message);
    setText(error, state.error);
    drawEnd(traceback, state.traceback);
    drawEnd(log, state.log);
    setText(line, state.reproduce);
    again.hidden = !state.error;
    return [state.word, state.error].filter(Boolean).join(", ");
  };

  const tick = (state) => {
    if (state.elapsed == null) return "";
    if (!state.ticking) return duration(state.elapsed);
    const passed = age(state), spent = ticking(state.elapsed + passed);
    if (state.eta == null) return spent;
    const left = state.eta - passed;
    return `${spent} · ${left >= 1 ? `about ${duration(Math.ceil(left))} left` : "nearly done"}`;
  };

  const parts = [given, bar.node, facts, message, error, traceback, log, again];
  return { draw, tick, parts };
}

const render = (context) => frame(context, "job", build);

export default { initialize, render };

// A job: its facts, its progress if it reports any, the error it ended with.

function build() {
  const bar = progressBar("progress");
  const facts = element("div", "qnb-facts");
  const message = element("div", "qnb-note");
  const error = element("pre", "qnb-error");
  const traceback = element("pre", "qnb-traceback");

  const draw = (state) => {
    bar.node.hidden = state.progress == null;
    if (state.progress != null) {
      const percent = Math.round(100 * state.progress);
      bar.set(100, percent, `${percent} %`, [["running", percent]]);
    }
    setText(facts, state.facts.join(" · "));
    setText(message, state.message);
    setText(error, state.error);
    setText(traceback, state.traceback);
    return [state.word, state.error].filter(Boolean).join(", ");
  };

  const tick = (state) => {
    if (state.elapsed == null) return "";
    return state.ticking ? ticking(state.elapsed + age(state)) : duration(state.elapsed);
  };

  return { draw, tick, parts: [bar.node, facts, message, error, traceback] };
}

const render = (context) => frame(context, "job", build);

export default { initialize, render };

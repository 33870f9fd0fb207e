// A pool: how busy it is, its workers and what they run, how many slots there are to be.

const REST = 600; // ms without a further step, then the number of slots is sent

// A number of slots, its label, and a hint that also says what is wrong with it.
function slotsField() {
  const label = element("label", "qnb-step-label", "Slots");
  const input = element("input", "qnb-input qnb-step");
  input.type = "number";
  input.min = 1;
  input.id = `qnb-slots-${Math.random().toString(36).slice(2)}`;
  label.htmlFor = input.id;
  const hint = element("span", "qnb-hint");
  hint.id = `${input.id}-hint`;
  input.setAttribute("aria-describedby", hint.id);
  const say = (text, wrong) => {
    setText(hint, text);
    hint.dataset.tone = wrong ? "failed" : "";
    input.setAttribute("aria-invalid", wrong);
  };
  return { label, input, hint, say };
}

// − [n] +, which sends the number that it was left at.
function stepper(send) {
  const { label, input, hint, say } = slotsField();
  let most = 1, shown = 1, running = false, timer = 0;
  let chosen = null, sent = null; // not sent yet; sent, and not heard of
  const value = () => Math.round(Number(input.value));
  const fits = (n) => n >= 1 && n <= most;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(commit, REST);
  };
  const rest = () => {
    clearTimeout(timer);
    timer = 0;
  };
  const commit = () => {
    rest();
    if (running && value() === (sent ?? shown)) return; // it is so already, or will be
    const fine = fits(value());
    say(`${fine ? "" : "a number from "}1 to ${number(most)}`, !fine);
    if (!fine) return;
    chosen = sent = value();
    send(chosen);
  };
  const step = (by) => {
    chosen = Math.min(most, Math.max(1, (fits(value()) ? value() : 1) + by));
    input.value = chosen;
    wait();
  };
  const less = button("−", () => step(-1)), more = button("+", () => step(1));
  less.setAttribute("aria-label", "One slot less");
  more.setAttribute("aria-label", "One slot more");
  const start = button("Start", commit);
  input.addEventListener("input", () => { rest(); chosen = value(); });
  input.addEventListener("change", wait); // by its own arrows, or as it is left
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault(); // it would be a change too
      commit();
    }
    if (event.key === "Escape") { rest(); chosen = null; input.value = shown; }
  });
  return {
    node: element("div", "qnb-stepper", label, less, input, more, start, hint),
    close: () => clearTimeout(timer),
    set(state) {
      most = state.most;
      input.max = most;
      shown = state.wanted ?? (state.slots || shown);
      if (chosen === shown && !timer) chosen = sent = null;
      if (chosen === null) {
        input.value = shown;
        say(`1 to ${number(most)}`, false);
      }
      running = state.slots > 0 || state.wanted !== null;
      start.hidden = running || !state.known;
    },
    forget: () => { sent = null; if (!timer && document.activeElement !== input) chosen = null; },
  };
}

function build(talk) {
  const bar = progressBar("busy slots");
  const facts = element("div", "qnb-facts");
  const note = element("div", "qnb-note");
  const times = clocks();
  const workers = workersTable(times, "Workers", { load: false });
  const slots = stepper((n) => talk.press("scale", "Scale", n));

  let said = "";
  const draw = (state) => {
    bar.node.hidden = !state.slots;
    const busy = Math.min(state.busy, state.slots);
    bar.set(state.slots, busy, state.load, [["running", busy]]);
    setText(facts, state.facts.join(" · "));
    setText(note, state.note);
    workers.set({ workers: state.workers, more: state.more });
    if (state.said !== said) { // it was done, or refused
      said = state.said;
      if (!said.endsWith("sent")) slots.forget();
    }
    slots.set(state);
    times.tick(state);
    return [state.word, state.load].filter(Boolean).join(", ");
  };

  const tick = (state) => {
    times.tick(state);
    if (state.wanted !== null) return `${number(state.slots)} → ${plural(state.wanted, "slot")}`;
    return state.load;
  };

  return {
    draw, tick, own: ["scale"], close: slots.close,
    parts: [bar.node, facts, note, workers.node, slots.node],
  };
}

const render = (context) => frame(context, "pool", build);

export default { initialize, render };

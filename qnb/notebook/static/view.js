// What the views share. It is put in front of each view's own file (widgets.py).
// Text from outside goes into the page by textContent, and by nothing else.

const LANGUAGE = "en"; // the words around the numbers are English

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.hidden = text === "";
}

function number(n) {
  return n.toLocaleString(LANGUAGE);
}

function duration(seconds) { // as display.duration, in whole seconds while it counts
  const s = Math.max(0, seconds);
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  const whole = Math.round(s), two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

function ticking(seconds) {
  return duration(seconds < 60 ? Math.floor(seconds) || 0.9996 * (seconds >= 1) : seconds);
}

// Seconds since the kernel sent the state. The browser's clock may differ from the kernel's, so
// it is asked only for a state that was already there when the page was opened.
const received = new WeakMap();

function initialize({ model }) {
  const stamp = () => received.set(model.get("state"), performance.now());
  const at = model.get("state").at;
  const age = at ? Math.max(0, Date.now() - at) : 0;
  received.set(model.get("state"), performance.now() - (age > 2000 ? age : 0));
  model.on("change:state", stamp);
  return () => model.off("change:state", stamp);
}

function age(state) {
  if (!received.has(state)) received.set(state, performance.now());
  return (performance.now() - received.get(state)) / 1000;
}

// The frame of every view: title, chip, times, a place for a problem, a polite voice.
function frame({ model, el }, { kind, draw, parts, tick }) {
  const sign = element("span", "qnb-sign");
  const word = element("span", "qnb-word");
  const chip = element("span", "qnb-chip", sign, word);
  const name = element("strong", "qnb-name");
  const id = element("code", "qnb-id");
  const time = element("span", "qnb-time");
  const buttons = element("div", "qnb-buttons");
  const said = element("span", "qnb-said");
  const problem = element("div", "qnb-problem");
  const voice = element("div", "qnb-voice");
  voice.setAttribute("role", "status");
  voice.setAttribute("aria-live", "polite");
  sign.setAttribute("aria-hidden", "true");
  const root = element("section", "qnb-view",
    element("header", "qnb-head", chip, name, id, time), ...parts, buttons, problem, voice);
  root.setAttribute("role", "group");

  // The static card below stands for this view in a file without a kernel. This rule hides it for
  // exactly as long as the view is in the page.
  const card = `.qnb-card-${model.get("card").replace(/[^0-9a-f]/g, "")}`;
  const rule = element("style", "");
  rule.textContent = `${card}, .jp-OutputArea-child:has(${card}) { display: none !important; }`;
  el.append(root, rule);

  let raf = 0, spoken = "", spokenAt = -Infinity;
  const say = (state, text) => { // at a change of state, else at most every 20 s
    const now = performance.now();
    if (state === spoken && now - spokenAt < 20000) return;
    spoken = state;
    spokenAt = now;
    voice.textContent = text;
  };
  // A button stays the same node while it is there, so that it keeps the keyboard's focus.
  const pressed = new Map();
  const drawButtons = (state) => {
    const actions = state.actions ?? [];
    for (const [action, label] of actions) {
      if (pressed.has(action)) continue;
      const button = element("button", "qnb-button", label);
      button.type = "button";
      button.addEventListener("click", () => {
        setText(said, `${label}: sent`);
        voice.textContent = `${label}: sent`;
        model.send({ press: action });
      });
      pressed.set(action, button);
    }
    const wanted = actions.map(([action]) => pressed.get(action));
    for (const [action, button] of pressed) {
      if (!wanted.includes(button)) { button.remove(); pressed.delete(action); }
    }
    wanted.forEach((button, i) => {
      if (buttons.children[i] !== button) buttons.insertBefore(button, buttons.children[i] ?? null);
    });
    if (said.parentNode !== buttons) buttons.append(said);
    setText(said, state.said ?? "");
    buttons.hidden = wanted.length === 0 && !state.said;
  };
  const drawTime = () => setText(time, tick(model.get("state")));
  const paint = () => {
    raf = 0;
    const state = model.get("state");
    root.dataset.tone = state.tone;
    root.setAttribute("aria-label", `${kind} ${state.name}`);
    setText(sign, state.glyph);
    setText(word, state.word);
    setText(name, state.name);
    setText(id, state.id);
    setText(problem, state.problem ?? "");
    drawButtons(state);
    drawTime();
    say(state.word, `${state.name}: ${draw(state) || state.word}`);
  };
  const schedule = () => { raf ||= requestAnimationFrame(paint); };
  // When the kernel restarts, its end of the view is gone: leave the page to the card. A message is
  // proof of life.
  const present = (is) => {
    root.hidden = !is;
    rule.disabled = !is;
  };
  const alive = () => present(true), lost = () => present(false);
  model.on("change:state", schedule);
  model.on("change:cells", schedule);
  model.on("change:state", alive);
  model.on("comm_live_update", lost);
  const resized = new ResizeObserver(schedule);
  resized.observe(root);
  const clock = setInterval(() => {
    if (model.get("state").ticking && !document.hidden) drawTime();
  }, 500);
  paint();
  return () => {
    clearInterval(clock);
    cancelAnimationFrame(raf);
    resized.disconnect();
    model.off("change:state", schedule);
    model.off("change:cells", schedule);
    model.off("change:state", alive);
    model.off("comm_live_update", lost);
  };
}

// A progress bar of coloured segments that reads as one value.
function progressBar(label) {
  const bar = element("div", "qnb-bar");
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-label", label);
  bar.setAttribute("aria-valuemin", "0");
  const segments = new Map();
  return {
    node: bar,
    set(total, value, text, shares) {
      bar.setAttribute("aria-valuemax", total);
      bar.setAttribute("aria-valuenow", value);
      bar.setAttribute("aria-valuetext", text);
      for (const [tone, share] of shares) {
        if (!segments.has(tone)) {
          const segment = element("i", "");
          segment.dataset.tone = tone;
          bar.append(segment);
          segments.set(tone, segment);
        }
        segments.get(tone).style.width = `${(100 * share) / Math.max(1, total)}%`;
      }
    },
  };
}

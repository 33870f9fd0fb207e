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

// What the kernel deflated.
async function inflate(view) {
  const stream = new Blob([view]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function button(label, onclick) {
  const node = element("button", "qnb-button", label);
  node.type = "button";
  node.addEventListener("click", onclick);
  return node;
}

const PAGE = crypto.randomUUID?.() ?? String(Math.random()); // this page, as the kernel knows it
const PATIENCE = 1500; // ms, then the reader is told what it is waiting for
const BUSY = "the kernel is busy: it hears this when its cell has ended";

// What a view says to the kernel. `said` is where the reader is told that it was sent.
function talker({ model }, said) {
  const name = `${PAGE}/${Math.random()}`;
  const waiting = new Map(); // id → what to do with an answer
  const open = new Map(); // id → the question, until it is answered or no more followed
  let count = 0, late = 0;

  const send = (content) => {
    try {
      model.send(content);
    } catch {
      setText(said, "no kernel: run the cell again");
    }
  };
  const sending = (text) => {
    setText(said, text);
    clearTimeout(late);
    late = setTimeout(() => {
      if (said.textContent === text) setText(said, `${text}; ${BUSY}`);
    }, PATIENCE);
  };
  const hear = (content, buffers) => {
    const heard = waiting.get(content?.answer);
    if (heard) heard(content, buffers ?? []);
  };
  model.on("msg:custom", hear);

  const question = (kind, params, follow, heard) => {
    const id = `${name}/${++count}`;
    const slow = setTimeout(() => { if (!said.textContent) setText(said, BUSY); }, PATIENCE);
    waiting.set(id, (content, buffers) => {
      clearTimeout(slow);
      if (said.textContent === BUSY) setText(said, "");
      if (!follow) {
        waiting.delete(id);
        open.delete(id);
      }
      heard({ ...content, buffers });
    });
    const asked = { ...params, ask: kind, id, follow, page: PAGE };
    open.set(id, asked);
    send(asked);
    return () => {
      clearTimeout(slow);
      open.delete(id);
      if (waiting.delete(id)) send({ drop: id });
    };
  };

  return {
    // One answer; it rejects with what went wrong.
    ask: (kind, params = {}) => new Promise((resolve, reject) => {
      question(kind, params, false, (answer) => {
        if (answer.error) reject(new Error(answer.error));
        else resolve(answer);
      });
    }),
    // An answer now and whenever the thing has changed; returns what ends that. An answer may be
    // an `error`.
    follow: (kind, params, onAnswer) => question(kind, params, true, onAnswer),
    press: (action, label, value = null) => {
      sending(`${label}: sent`);
      send({ press: action, value });
    },
    see: (is) => {
      send({ see: name, page: PAGE, is });
      if (is) open.forEach(send); // another window may have taken this one's place
    },
    heard: () => clearTimeout(late),
    close: () => {
      clearTimeout(late);
      model.off("msg:custom", hear);
      for (const id of waiting.keys()) send({ drop: id });
      waiting.clear();
      open.clear();
      send({ see: name, page: PAGE, is: null });
    },
  };
}

// Calls back with whether `node` is in sight: on the screen, in a page that is not hidden.
function watchSight(node, changed) {
  let near = true, last = null;
  const tell = () => {
    const is = near && !document.hidden;
    if (is !== last) changed(last = is);
  };
  const seen = new IntersectionObserver((entries) => {
    near = entries[entries.length - 1].isIntersecting;
    tell();
  }, { rootMargin: "200px" });
  seen.observe(node);
  document.addEventListener("visibilitychange", tell);
  return () => {
    seen.disconnect();
    document.removeEventListener("visibilitychange", tell);
  };
}

// The frame of every view: title, chip, times, buttons, a place for a problem, a polite voice.
// `build(talk)` gives the view's own { draw, tick, parts, own }: what to do with a state, what to say
// of its times, its nodes, and the actions that it draws itself.
function frame({ model, el }, kind, build) {
  const sign = element("span", "qnb-sign");
  const word = element("span", "qnb-word");
  const chip = element("span", "qnb-chip", sign, word);
  const name = element("strong", "qnb-name");
  const id = element("code", "qnb-id");
  const time = element("span", "qnb-time");
  const said = element("span", "qnb-said");
  const buttons = element("div", "qnb-buttons", said);
  const problem = element("div", "qnb-problem");
  const voice = element("div", "qnb-voice");
  voice.setAttribute("role", "status");
  voice.setAttribute("aria-live", "polite");
  sign.setAttribute("aria-hidden", "true");

  const talk = talker({ model }, said);
  const { draw, tick, parts, own = [], close = () => {} } = build(talk);
  const root = element("section", "qnb-view",
    element("header", "qnb-head", chip, name, id, time), ...parts, buttons, problem, voice);
  root.setAttribute("role", "group");

  // The static card below stands for this view in a file without a kernel. This rule hides it for
  // exactly as long as the view is in the page; not that of another notebook that shows the same.
  const card = `.qnb-card-${model.get("card").replace(/[^0-9a-f]/g, "")}`;
  const here = `qnb-at-${Math.random().toString(36).slice(2)}`;
  root.classList.add(here);
  const below = `.jp-OutputArea-child:has(.${here}) ~ .jp-OutputArea-child:has(${card})`;
  const rule = element("style", "");
  rule.textContent = `${"jpThemeLight" in document.body.dataset ? below : card} { display: none !important; }`;
  el.append(root, rule);

  let raf = 0, spoken = "", spokenAt = -Infinity, inSight = true, saidByKernel = "";
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
    const actions = (state.actions ?? []).filter(([action]) => !own.includes(action));
    for (const [action, label] of actions) {
      if (pressed.has(action)) continue;
      pressed.set(action, button(label, () => {
        voice.textContent = `${label}: sent`;
        talk.press(action, label);
      }));
    }
    const wanted = actions.map(([action]) => pressed.get(action));
    for (const [action, node] of pressed) {
      if (!wanted.includes(node)) { node.remove(); pressed.delete(action); }
    }
    wanted.forEach((node, i) => {
      if (buttons.children[i] !== node) buttons.insertBefore(node, buttons.children[i] ?? null);
    });
    if ((state.said ?? "") !== saidByKernel) {
      saidByKernel = state.said ?? "";
      talk.heard();
      setText(said, saidByKernel);
      voice.textContent = saidByKernel;
    }
  };
  setText(said, "");
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
  const schedule = () => { if (inSight) raf ||= requestAnimationFrame(paint); };
  const unwatch = watchSight(el, (is) => {
    inSight = is;
    talk.see(is);
    schedule();
  });
  // When the kernel restarts, its end of the view is gone: leave the page to the card. A message is
  // proof of life.
  const present = (is) => {
    root.hidden = !is;
    rule.disabled = !is;
  };
  const alive = () => present(true), lost = () => present(false);
  const listeners = [
    ["change:state", schedule], ["change:cells", schedule],
    ["change:state", alive], ["comm_live_update", lost],
  ];
  for (const [event, heard] of listeners) model.on(event, heard);
  const resized = new ResizeObserver(schedule);
  resized.observe(root);
  const clock = setInterval(() => {
    if (model.get("state").ticking && inSight) drawTime();
  }, 500);
  const breath = setInterval(() => { if (inSight) talk.see(true); }, 30000);
  paint();
  return () => {
    clearInterval(clock);
    clearInterval(breath);
    cancelAnimationFrame(raf);
    resized.disconnect();
    unwatch();
    for (const [event, heard] of listeners) model.off(event, heard);
    close();
    talk.close();
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

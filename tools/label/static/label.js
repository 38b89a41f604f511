// The labelling page. Everything from the server is put into the page as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const POLL_MS = 2000;
const HIDDEN_POLL_MS = 10000;
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000;
const PER_SAVE = 500; // answers in one request
const ORPHAN_MS = 10000; // a tab that has not been heard of for so long is closed
const IDLE_SECONDS = 120; // a longer pause is not time spent on an image
const OVERSCAN_ROWS = 2;
// Letters that are commands: undo, and the reasons to skip. All others may stand for classes.
const SKIP_KEYS = { s: "unsure", x: "unusable", n: "not in the class list" };
const RESERVED = "usxnz";
const CLASS_KEYS = [..."123456789", ..."abcdefghijklmnopqrstuvwxyz"].filter(
  (key) => !RESERVED.includes(key));
// Okabe & Ito's colours, which people who cannot tell red from green tell apart.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#7f7f7f"];

const state = {
  annotator: localStorage.getItem("annotator") || "",
  role: "annotator",
  info: null, // what /api/batch said
  images: [],
  byIndex: new Map(),
  shown: [], // what the grid shows, in its order
  place: new Map(), // image -> position in `shown`
  cursor: 0,
  anchor: 0,
  selected: new Set(), // images
  history: [], // actions that can be undone, the latest last
  position: 0, // lines of the log that the page knows
  known: new Set(), // ids of events that this page has made or seen
  states: {},
  single: false,
  lastAction: Date.now(),
  pace: [], // [seconds, images] of the latest actions
  examples: {},
  training: { state: "idle", text: "" },
};

// --- small helpers ------------------------------------------------------------------------------

const newId = () => crypto.randomUUID ? crypto.randomUUID()
  : [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

async function request(address, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(address, options);
  const values = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(values.error || `the server answered ${response.status}`);
    error.status = response.status;
    error.closed = Boolean(values.closed);
    throw error;
  }
  return values;
}

const query = (values) => new URLSearchParams(values).toString();
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const adjudicating = () => state.role === "adjudicator";

// Whether the image waits for an answer of this annotator.
function isToDo(image) {
  if (state.info.closed) return false;
  if (adjudicating()) return image.state === "disputed";
  if (image.own) return false;
  if (image.turn === "all") return true;
  return image.state === "waiting" && image.turn === state.annotator;
}

// Whether the image is for somebody else to answer, or answered by somebody else.
function isOthers(image) {
  if (state.info.closed || adjudicating() || image.own || image.turn === "all") return false;
  return image.turn !== state.annotator || image.state !== "waiting";
}

// --- loading a batch ----------------------------------------------------------------------------

async function load(batch) {
  const info = await request("/api/batch?" + query({
    annotator: state.annotator, role: state.role, ...(batch ? { batch } : {}) }));
  state.info = info;
  state.training = info.training;
  $("title").textContent = info.run;
  document.title = `Label ${info.run}`;
  if (!info.images) return;
  state.images = info.images.map(([index, source, suggested, probability, uncertainty, turn, old]) => ({
    index, source, suggested, probability, uncertainty, turn, old,
    own: null, unsaved: 0, state: "waiting", answer: null, skip: null, votes: [], node: null,
  }));
  state.byIndex = new Map(state.images.map((image) => [image.index, image]));
  for (const image of state.images) {
    const label = info.labels && info.labels[image.index];
    if (label !== undefined) image.own = { answer: label, skip: null };
  }
  state.history = [];
  state.known = new Set();
  state.selected.clear();
  takeOwn(info.own, true);
  takeOutcomes(info.outcomes);
  state.position = info.position;
  state.states = info.states;
  adoptOrphans();
  buildBatchList();
  buildClasses();
  $("hints-label").hidden = info.blind || state.images.every((image) => image.suggested === null);
  $("sort").querySelector("[value=suggested]").disabled = $("hints-label").hidden;
  if ($("hints-label").hidden && $("sort").value === "suggested") $("sort").value = "asked";
  arrange();
  moveTo(Math.max(0, state.shown.findIndex(isToDo)));
  state.anchor = state.cursor;
  showSaveState();
  loadExamples();
}

// Lines of the log about this annotator's own answers, from an earlier visit or another tab.
function takeOwn(lines, fresh) {
  for (const line of lines) {
    if (line.event && state.known.has(line.event)) continue;
    if (line.event) state.known.add(line.event);
    const image = state.byIndex.get(line.image);
    if (!image || image.unsaved) continue;
    const before = image.own;
    if (!(state.info.closed && fresh && line.old === null)) {
      image.own = line.answer === null && line.skip === null ? null
        : { answer: line.answer, skip: line.skip };
    }
    if (line.undoes) {
      forgetChange(line.undoes, line.image);
    } else if (!state.info.closed || line.old !== null) {
      remember(line.action || line.event, image, before, image.own);
    }
    redraw(image);
  }
  // Labels of a closed batch are what counts now, whatever this annotator had answered.
  if (fresh && state.info.closed) {
    for (const image of state.images) {
      const label = state.info.labels[image.index];
      if (label !== undefined) image.own = { answer: label, skip: null };
    }
  }
}

function takeOutcomes(rows) {
  for (const [index, outcome, answer, skip, votes] of rows) {
    const image = state.byIndex.get(index);
    if (!image) continue;
    Object.assign(image, { state: outcome, answer, skip, votes });
    redraw(image);
  }
}

async function loadExamples() {
  try {
    state.examples = await request("/api/examples");
    drawExamples();
  } catch (error) { /* They are a help and nothing depends on them. */ }
}

// --- saving -------------------------------------------------------------------------------------

// Answers wait here until the server has them on its disk. The queue is kept in the browser too, so
// that closing the tab or a crash of the browser loses nothing.
const TAB = newId();
const queue = { events: [], busy: false, failed: "", delay: FIRST_RETRY_MS, timer: 0, retryAt: 0 };
const queuePrefix = () => `queue ${location.host} ${state.info.version} ${state.role} ${state.annotator} `;

function keepQueue() {
  try {
    const key = queuePrefix() + TAB;
    if (queue.events.length === 0) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify({ alive: Date.now(), events: queue.events }));
  } catch (error) { /* Storage is full or off: the page still retries as long as it is open. */ }
}

// Answers that another tab, closed by now, could not save.
function adoptOrphans() {
  const prefix = queuePrefix();
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(prefix) || key === prefix + TAB) continue;
    try {
      const { alive, events } = JSON.parse(localStorage.getItem(key));
      if (Date.now() - alive < ORPHAN_MS) continue;
      localStorage.removeItem(key);
      for (const event of events) {
        const image = state.byIndex.get(event.image);
        if (!image || image.own || state.known.has(event.event)) continue;
        apply(image, event, event.action);
        enqueue(image, event);
      }
    } catch (error) { localStorage.removeItem(key); }
  }
  flush();
}

function enqueue(image, event) {
  state.known.add(event.event);
  image.unsaved += 1;
  queue.events.push(event);
}

async function flush() {
  keepQueue();
  showSaveState();
  if (queue.busy || queue.events.length === 0) return;
  clearTimeout(queue.timer);
  queue.busy = true;
  const sent = queue.events.slice(0, PER_SAVE);
  const address = state.info.closed ? "/api/corrections" : "/api/answers";
  try {
    await request(address, {
      batch: state.info.batch, annotator: state.annotator, role: state.role, answers: sent });
    queue.events.splice(0, sent.length);
    queue.failed = "";
    queue.delay = FIRST_RETRY_MS;
    settle(sent);
    queue.busy = false;
    if (queue.events.length === 0 && !state.images.some(isToDo)) catchUp(); // is it complete?
    flush();
  } catch (error) {
    queue.busy = false;
    if (error.status >= 400 && error.status < 500 && error.status !== 408) refused(sent, error);
    else retryLater(error);
  }
}

function settle(events) {
  for (const event of events) {
    const image = state.byIndex.get(event.image);
    if (!image) continue;
    image.unsaved -= 1;
    redraw(image);
  }
}

function retryLater(error) {
  queue.failed = error.status ? error.message : "the server does not answer";
  queue.retryAt = Date.now() + queue.delay;
  queue.timer = setTimeout(flush, queue.delay);
  queue.delay = Math.min(2 * queue.delay, LONGEST_RETRY_MS);
  showSaveState();
}

// The server does not take these answers and never will: say so and show what it has.
function refused(events, error) {
  queue.events.splice(0, events.length);
  keepQueue();
  const why = error.closed
    ? `${plural(events.length, "answer")} came too late, as training has begun. `
      + "Choose the images again to correct their labels."
    : `${plural(events.length, "answer")} refused: ${error.message}`;
  load(state.info.batch).then(() => banner(why, [["OK", refreshBanner]]));
}

function showSaveState() {
  const box = $("save-state");
  const count = queue.events.length;
  if (queue.failed && count) {
    const seconds = Math.max(0, Math.ceil((queue.retryAt - Date.now()) / 1000));
    box.className = "save-state failed";
    box.textContent = `${plural(count, "answer")} not saved: ${queue.failed}; `
      + (queue.busy ? "trying again" : `next try in ${seconds} s`);
  } else if (count) {
    box.className = "save-state saving";
    box.textContent = `Saving ${count}`;
  } else {
    box.className = "save-state saved";
    box.textContent = "All saved";
  }
}

setInterval(() => {
  if (queue.failed) showSaveState();
}, 500);

window.addEventListener("online", flush);
window.addEventListener("beforeunload", (event) => {
  if (queue.events.length) event.preventDefault();
});

// --- answering and undoing ----------------------------------------------------------------------

function secondsPerImage(count) {
  const now = Date.now();
  const seconds = Math.min(IDLE_SECONDS, (now - state.lastAction) / 1000);
  state.lastAction = now;
  return seconds / count;
}

function apply(image, value, action) {
  const before = image.own;
  image.own = value.answer == null && value.skip == null ? null
    : { answer: value.answer ?? null, skip: value.skip ?? null };
  remember(action, image, before, image.own);
  redraw(image);
}

function remember(action, image, before, after) {
  const last = state.history[state.history.length - 1];
  const entry = last && last.id === action ? last : { id: action, changes: [] };
  if (entry !== last) state.history.push(entry);
  entry.changes.push({ image, before, after });
}

// Another tab, or an earlier visit, took back what `action` did to an image.
function forgetChange(action, index) {
  const at = state.history.findLastIndex((entry) => entry.id === action);
  if (at < 0) return;
  const entry = state.history[at];
  entry.changes = entry.changes.filter((change) => change.image.index !== index);
  if (entry.changes.length === 0) state.history.splice(at, 1);
}

// Gives `value`, a class or a skip reason, to the selected images or to the one with the frame.
function answerWith(value) {
  if (!state.info || !state.info.images || state.shown.length === 0) return;
  const chosen = targets().filter((image) => !adjudicating() || image.state === "disputed" || image.own);
  if (chosen.length === 0) return;
  if (state.info.closed && value.skip) {
    banner("This batch is in training: choose a class to correct a label.", [["OK", refreshBanner]]);
    return;
  }
  const action = newId();
  const seconds = secondsPerImage(chosen.length);
  state.pace.push([seconds * chosen.length, chosen.length]);
  if (state.pace.length > 40) state.pace.shift();
  for (const image of chosen) {
    apply(image, value, action);
    enqueue(image, { event: newId(), action, undoes: "", image: image.index,
      answer: value.answer ?? null, skip: value.skip ?? null, seconds });
  }
  const last = Math.max(...chosen.map((image) => state.place.get(image)));
  state.selected.clear();
  chosen.forEach(redraw);
  moveTo(nextToDo(last));
  state.anchor = state.cursor;
  countSoon();
  flush();
}

function targets() {
  if (state.selected.size && !state.single) return [...state.selected];
  const image = state.shown[state.cursor];
  return image ? [image] : [];
}

// The position of the next image to do after `from`, else of the first one, else of the next one.
function nextToDo(from) {
  for (let k = from + 1; k < state.shown.length; k += 1) if (isToDo(state.shown[k])) return k;
  for (let k = 0; k < from; k += 1) if (isToDo(state.shown[k])) return k;
  return Math.min(from + 1, state.shown.length - 1);
}

function undo() {
  const entry = state.history.pop();
  if (!entry) return;
  for (const { image, before } of [...entry.changes].reverse()) {
    image.own = before;
    enqueue(image, { event: newId(), action: newId(), undoes: entry.id, image: image.index,
      answer: before ? before.answer : null, skip: before ? before.skip : null, seconds: null });
    redraw(image);
  }
  const first = entry.changes[0].image;
  if (!state.place.has(first)) arrange();
  if (state.place.has(first)) moveTo(state.place.get(first));
  countSoon();
  flush();
}

// --- what is shown, in which order --------------------------------------------------------------

const FILTERS = {
  all: (image) => !adjudicating() || image.state === "disputed" || image.own,
  todo: isToDo,
  answered: (image) => image.own && image.own.answer !== null,
  skipped: (image) => image.own && image.own.skip !== null,
  others: isOthers,
};
const ORDERS = {
  asked: null,
  uncertain: (a, b) => (b.uncertainty ?? -1) - (a.uncertainty ?? -1),
  suggested: (a, b) => rank(a.suggested) - rank(b.suggested) || (b.probability ?? 0) - (a.probability ?? 0),
  source: (a, b) => a.source.localeCompare(b.source, "en", { numeric: true }),
};
const rank = (name) => name === null ? Infinity : state.info.classes.indexOf(name);

function arrange() {
  const here = state.shown[state.cursor];
  state.shown = state.images.filter(FILTERS[$("show").value]);
  const order = ORDERS[$("sort").value];
  if (order) state.shown.sort(order);
  state.place = new Map(state.shown.map((image, position) => [image, position]));
  for (const image of state.selected) if (!state.place.has(image)) state.selected.delete(image);
  state.cursor = state.place.get(here) ?? 0;
  state.anchor = state.cursor;
  layOut();
  showProgress();
}

// --- the grid: only the rows in view are in the page --------------------------------------------

const layout = { columns: 1, width: 0, height: 0, first: 0, last: -1 };
const nodes = new Map(); // position -> tile

function layOut() {
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const wanted = Number($("size").value) * rem;
  const width = $("grid").clientWidth || 1;
  layout.columns = Math.max(1, Math.floor(width / wanted));
  layout.width = Math.floor(width / layout.columns);
  layout.height = Math.round(wanted + 1.7 * rem);
  const rows = Math.ceil(state.shown.length / layout.columns);
  $("tiles").style.height = `${rows * layout.height}px`;
  for (const node of nodes.values()) node.remove();
  nodes.clear();
  for (const image of state.images) image.node = null;
  layout.first = 0;
  layout.last = -1;
  drawRows();
}

function drawRows() {
  const grid = $("grid");
  const rows = Math.ceil(state.shown.length / layout.columns);
  const from = Math.max(0, Math.floor(grid.scrollTop / layout.height) - OVERSCAN_ROWS);
  const to = Math.min(rows, Math.ceil((grid.scrollTop + grid.clientHeight) / layout.height) + OVERSCAN_ROWS);
  const first = from * layout.columns;
  const last = Math.min(state.shown.length, to * layout.columns) - 1;
  if (first === layout.first && last === layout.last) return;
  for (const [position, node] of nodes) {
    if (position < first || position > last) {
      state.shown[position].node = null;
      node.remove();
      nodes.delete(position);
    }
  }
  const fragment = document.createDocumentFragment();
  for (let position = first; position <= last; position += 1) {
    if (!nodes.has(position)) fragment.append(makeTile(position));
  }
  $("tiles").append(fragment);
  layout.first = first;
  layout.last = last;
}

function makeTile(position) {
  const image = state.shown[position];
  const picture = element("img", { alt: "", draggable: false, decoding: "async" });
  picture.src = `/api/thumbnails/${state.info.batch}/${image.index}?v=${state.info.version}`;
  const node = element("div", { className: "tile" }, picture, element("div", { className: "caption" }));
  node.setAttribute("role", "option");
  node.id = `tile-${position}`;
  node.setAttribute("aria-setsize", state.shown.length);
  node.setAttribute("aria-posinset", position + 1);
  node.style.width = `${layout.width}px`;
  node.style.height = `${layout.height}px`;
  const column = position % layout.columns;
  const row = Math.floor(position / layout.columns);
  node.style.transform = `translate(${column * layout.width}px, ${row * layout.height}px)`;
  nodes.set(position, node);
  image.node = node;
  redraw(image);
  return node;
}

function meaning(value) {
  if (!value) return "";
  return value.answer !== null ? value.answer : `skipped: ${value.skip}`;
}

function describe(image) {
  if (adjudicating() && image.votes.length && !image.own) {
    return image.votes.map(([name, answer]) => name ? `${name}: ${answer}` : answer).join(" / ");
  }
  if (image.own) return meaning(image.own);
  if (isOthers(image)) {
    if (image.state === "waiting") return `for ${image.turn}`;
    return image.answer ? `${image.answer} (other annotator)` : "answered";
  }
  if (image.old) return `${image.old}, in doubt`;
  if (image.suggested !== null && $("hints").checked) {
    const share = image.probability === null ? "" : ` ${Math.round(100 * image.probability)} %`;
    return `${image.suggested}?${share}`;
  }
  return "";
}

function redraw(image) {
  const node = image.node;
  if (!node) return;
  const position = state.place.get(image);
  const own = image.own;
  const text = describe(image);
  const caption = node.lastChild;
  caption.textContent = text;
  caption.classList.toggle("hint", !own);
  const classes = node.classList;
  classes.toggle("answered", Boolean(own));
  classes.toggle("skipped", Boolean(own && own.skip !== null));
  classes.toggle("others", isOthers(image));
  classes.toggle("unsaved", image.unsaved > 0);
  classes.toggle("selected", state.selected.has(image));
  classes.toggle("cursor", position === state.cursor);
  node.style.setProperty("--class-colour", own && own.answer !== null ? colour(own.answer) : "");
  node.title = image.source;
  node.setAttribute("aria-selected", state.selected.has(image));
  const said = own ? text : text ? `not labelled; ${text}` : "not labelled";
  node.setAttribute("aria-label", `${image.source}: ${said}`);
}

const colour = (name) => COLOURS[state.info.classes.indexOf(name) % COLOURS.length];

function moveTo(position) {
  const before = state.shown[state.cursor];
  state.cursor = Math.max(0, Math.min(position, state.shown.length - 1));
  const image = state.shown[state.cursor];
  if (before) redraw(before);
  if (!image) return;
  scrollTo(state.cursor);
  redraw(image);
  $("grid").setAttribute("aria-activedescendant", `tile-${state.cursor}`);
  if (state.single) drawSingle();
  showSelection();
}

function scrollTo(position) {
  const grid = $("grid");
  const top = Math.floor(position / layout.columns) * layout.height;
  if (top < grid.scrollTop) grid.scrollTop = top;
  else if (top + layout.height > grid.scrollTop + grid.clientHeight) {
    grid.scrollTop = top + layout.height - grid.clientHeight;
  }
  drawRows();
}

function select(images, keep) {
  const before = [...state.selected];
  if (!keep) state.selected.clear();
  for (const image of images) state.selected.add(image);
  for (const image of new Set([...before, ...images])) redraw(image);
  showSelection();
}

function selectRange(from, to) {
  select(state.shown.slice(Math.min(from, to), Math.max(from, to) + 1), false);
}

function showSelection() {
  const count = state.selected.size;
  $("selection").textContent = count
    ? `${plural(count, "image")} selected: a key or click labels all of them` : "";
  markChosen();
}

// --- mouse: click, drag a rectangle, double click -----------------------------------------------

function positionAt(x, y) {
  const column = Math.floor(x / layout.width);
  const position = Math.floor(y / layout.height) * layout.columns + column;
  return column < layout.columns && position >= 0 && position < state.shown.length ? position : -1;
}

const drag = { active: false, moved: false, x: 0, y: 0, keep: false, before: [], box: null };

function gridPoint(event) {
  const box = $("grid").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top + $("grid").scrollTop];
}

$("grid").addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || event.offsetX > $("grid").clientWidth) return;
  [drag.x, drag.y] = gridPoint(event);
  Object.assign(drag, { active: true, moved: false, keep: event.ctrlKey || event.metaKey,
    before: [...state.selected] });
});
window.addEventListener("pointermove", (event) => {
  if (!drag.active) return;
  const [x, y] = gridPoint(event);
  if (!drag.moved && Math.hypot(x - drag.x, y - drag.y) < 6) return;
  drag.moved = true;
  if (!drag.box) {
    drag.box = element("div", { className: "rubber" });
    $("tiles").append(drag.box);
  }
  const left = Math.min(x, drag.x), right = Math.max(x, drag.x);
  const top = Math.min(y, drag.y), bottom = Math.max(y, drag.y);
  Object.assign(drag.box.style, { left: `${left}px`, top: `${top}px`,
    width: `${right - left}px`, height: `${bottom - top}px` });
  const picked = [];
  const columns = [Math.max(0, Math.floor(left / layout.width)),
    Math.min(layout.columns - 1, Math.floor(right / layout.width))];
  for (let row = Math.max(0, Math.floor(top / layout.height)); row <= bottom / layout.height; row += 1) {
    for (let column = columns[0]; column <= columns[1]; column += 1) {
      const image = state.shown[row * layout.columns + column];
      if (image) picked.push(image);
    }
  }
  select(drag.keep ? [...drag.before, ...picked] : picked, false);
  const grid = $("grid").getBoundingClientRect();
  if (event.clientY > grid.bottom - 30) $("grid").scrollTop += 20;
  if (event.clientY < grid.top + 30) $("grid").scrollTop -= 20;
});
window.addEventListener("pointerup", (event) => {
  if (!drag.active) return;
  drag.active = false;
  if (drag.box) drag.box.remove();
  drag.box = null;
  const position = positionAt(...gridPoint(event));
  if (drag.moved) {
    if (position >= 0) moveTo(position);
    return;
  }
  if (position < 0) {
    select([], false);
    return;
  }
  const image = state.shown[position];
  if (event.shiftKey) selectRange(state.anchor, position);
  else if (event.ctrlKey || event.metaKey) toggle(image);
  else select(state.selected.size === 1 && state.selected.has(image) ? [] : [image], false);
  if (!event.shiftKey) state.anchor = position;
  moveTo(position);
});
$("grid").addEventListener("dblclick", (event) => {
  const position = positionAt(...gridPoint(event));
  if (position < 0) return;
  moveTo(position);
  showSingle(true);
});

function toggle(image) {
  if (state.selected.has(image)) {
    state.selected.delete(image);
    redraw(image);
    showSelection();
  } else select([image], true);
}

let frame = 0;
$("grid").addEventListener("scroll", () => {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(drawRows);
});
new ResizeObserver(() => {
  if (!state.info || !state.info.images || $("grid").clientWidth === 0) return;
  const top = state.shown.length ? Math.floor($("grid").scrollTop / layout.height) * layout.columns : 0;
  layOut();
  $("grid").scrollTop = Math.floor(top / layout.columns) * layout.height;
  drawRows();
}).observe($("grid"));

// --- one image at its original resolution -------------------------------------------------------

const view = { scale: 1, x: 0, y: 0, fit: true, image: null };

function showSingle(on) {
  state.single = on;
  $("single").hidden = !on;
  $("grid").hidden = on;
  if (on) {
    select([], false);
    view.fit = true;
    drawSingle();
    $("single").querySelector("button").focus();
  } else {
    view.image = null;
    layOut();
    scrollTo(state.cursor);
    $("grid").focus();
  }
}

function drawSingle() {
  const image = state.shown[state.cursor];
  if (!image) return;
  const picture = $("picture");
  if (view.image !== image) {
    view.image = image;
    picture.src = `/api/images/${state.info.batch}/${image.index}.png?v=${state.info.version}`;
    picture.alt = image.source;
  }
  $("single-name").textContent = `${state.cursor + 1} of ${state.shown.length.toLocaleString("en")} · ${image.source}`;
  const parts = [image.own ? `Your answer: ${meaning(image.own)}` : describe(image)];
  if (image.uncertainty !== null) parts.push(`uncertainty ${image.uncertainty.toFixed(2)} nats`);
  if (image.unsaved) parts.push("not saved yet");
  $("single-text").textContent = parts.filter(Boolean).join(" · ");
  markChosen();
}

$("picture").addEventListener("load", () => {
  if (view.fit) fit(); else place();
});

function fit() {
  const stage = $("stage"), picture = $("picture");
  if (!picture.naturalWidth) return;
  view.fit = true;
  view.scale = Math.min(stage.clientWidth / picture.naturalWidth, stage.clientHeight / picture.naturalHeight);
  view.x = (stage.clientWidth - view.scale * picture.naturalWidth) / 2;
  view.y = (stage.clientHeight - view.scale * picture.naturalHeight) / 2;
  place();
}

function place() {
  $("picture").style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  $("zoom-text").textContent = `${Math.round(100 * view.scale)} %`;
}

function zoom(factor, x = $("stage").clientWidth / 2, y = $("stage").clientHeight / 2) {
  const scale = Math.min(64, Math.max(0.05, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  view.fit = false;
  place();
}

$("stage").addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = $("stage").getBoundingClientRect();
  zoom(event.deltaY < 0 ? 1.25 : 0.8, event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
let pan = null;
$("stage").addEventListener("pointerdown", (event) => {
  pan = [event.clientX - view.x, event.clientY - view.y];
  $("stage").setPointerCapture(event.pointerId);
});
$("stage").addEventListener("pointermove", (event) => {
  if (!pan) return;
  [view.x, view.y] = [event.clientX - pan[0], event.clientY - pan[1]];
  view.fit = false;
  place();
});
$("stage").addEventListener("pointerup", () => { pan = null; });
new ResizeObserver(() => { if (state.single && view.fit) fit(); }).observe($("stage"));
$("back").addEventListener("click", () => showSingle(false));
$("previous").addEventListener("click", () => moveTo(state.cursor - 1));
$("next").addEventListener("click", () => moveTo(state.cursor + 1));
$("zoom-in").addEventListener("click", () => zoom(1.5));
$("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
$("zoom-fit").addEventListener("click", fit);

// --- the classes beside the images --------------------------------------------------------------

const keyOfClass = (position) => CLASS_KEYS[position] || "";

function buildClasses() {
  $("classes").replaceChildren(...state.info.classes.map((name, position) => {
    const button = element("button", { type: "button", className: "choice" },
      element("kbd", { textContent: keyOfClass(position) || "/" }),
      element("span", { className: "name", textContent: name }),
      element("span", { className: "tally" }),
      element("span", { className: "examples" }));
    button.style.setProperty("--class-colour", colour(name));
    button.dataset.answer = name;
    button.title = name;
    button.addEventListener("click", () => answerWith({ answer: name }));
    return element("li", {}, button);
  }));
  $("skips").replaceChildren(...Object.entries(SKIP_KEYS).map(([key, reason]) => {
    const button = element("button", { type: "button", className: "choice" },
      element("kbd", { textContent: key.toUpperCase() }),
      element("span", { className: "name", textContent: reason }),
      element("span", { className: "tally" }));
    button.dataset.skip = reason;
    button.addEventListener("click", () => answerWith({ skip: reason }));
    return element("li", {}, button);
  }));
  $("find-box").hidden = state.info.classes.length <= CLASS_KEYS.length / 2;
  drawExamples();
}

function drawExamples() {
  for (const button of $("classes").querySelectorAll(".choice")) {
    const pictures = (state.examples[button.dataset.answer] || []).map(
      (address) => element("img", { alt: "", src: address, loading: "lazy" }));
    button.querySelector(".examples").replaceChildren(...pictures);
  }
}

// Marks the class that the image with the frame has.
function markChosen() {
  const image = state.shown[state.cursor];
  const own = image ? image.own : null;
  for (const button of document.querySelectorAll(".choice")) {
    const chosen = Boolean(own) && (button.dataset.answer !== undefined
      ? own.answer === button.dataset.answer : own.skip === button.dataset.skip);
    button.classList.toggle("chosen", chosen);
    button.setAttribute("aria-pressed", chosen);
  }
}

$("find").addEventListener("input", () => {
  const wanted = $("find").value.trim().toLowerCase();
  for (const button of $("classes").querySelectorAll(".choice")) {
    button.parentNode.hidden = !button.dataset.answer.toLowerCase().includes(wanted);
  }
});
$("find").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    const first = $("classes").querySelector("li:not([hidden]) .choice");
    if (first && $("find").value.trim()) answerWith({ answer: first.dataset.answer });
  }
  if (event.key === "Enter" || event.key === "Escape") {
    $("find").value = "";
    $("find").dispatchEvent(new Event("input"));
    $("find-box").hidden = state.info.classes.length <= CLASS_KEYS.length / 2;
    (state.single ? $("back") : $("grid")).focus();
    event.preventDefault();
  }
});

// --- progress -----------------------------------------------------------------------------------

// Counting 10,000 images takes longer than showing one answer, so the answer is shown first.
let counting = 0;
function countSoon() {
  clearTimeout(counting);
  counting = setTimeout(showProgress, 40);
}

function showProgress() {
  if (!state.info || !state.info.images) return;
  let answered = 0, skipped = 0, left = 0;
  const counts = new Map();
  for (const image of state.images) {
    if (image.own) {
      if (image.own.skip !== null) skipped += 1; else answered += 1;
      const key = image.own.skip !== null ? `skip ${image.own.skip}` : image.own.answer;
      counts.set(key, (counts.get(key) || 0) + 1);
    }
    if (isToDo(image)) left += 1;
  }
  const total = answered + skipped + left;
  $("bar").max = Math.max(1, total);
  $("bar").value = answered + skipped;
  const parts = [`${answered.toLocaleString("en")} labelled`];
  if (skipped) parts.push(`${skipped.toLocaleString("en")} skipped`);
  parts.push(state.info.closed ? "in training; answers are corrections" : `${left.toLocaleString("en")} left`);
  const images = state.pace.reduce((sum, [, count]) => sum + count, 0);
  if (left && images >= 5) {
    const minutes = state.pace.reduce((sum, [seconds]) => sum + seconds, 0) / images * left / 60;
    parts.push(minutes < 1 ? "less than a minute" : `about ${Math.round(minutes)} min at this pace`);
  }
  $("progress-text").textContent = parts.join(" · ");
  $("count").textContent = state.shown.length === state.images.length ? ""
    : `${state.shown.length.toLocaleString("en")} of ${plural(state.images.length, "image")}`;
  for (const button of document.querySelectorAll(".choice")) {
    const key = button.dataset.answer !== undefined ? button.dataset.answer : `skip ${button.dataset.skip}`;
    button.querySelector(".tally").textContent = counts.get(key) || "";
  }
  $("undo").disabled = state.history.length === 0;
  markChosen();
  refreshBanner();
}

function banner(text, buttons = []) {
  $("banner").hidden = !text;
  if ($("banner-text").textContent !== text) $("banner-text").textContent = text;
  const names = buttons.map(([name]) => name).join("|");
  if ($("banner-buttons").dataset.names === names) return;
  $("banner-buttons").dataset.names = names;
  $("banner-buttons").replaceChildren(...buttons.map(([name, work], position) => {
    const button = element("button", { type: "button", textContent: name, className: position ? "" : "primary" });
    button.addEventListener("click", work);
    return button;
  }));
}

function refreshBanner() {
  const info = state.info;
  const training = state.training;
  const running = training.state === "running";
  $("training-bar").hidden = !running;
  if (running && training.total) {
    $("training-bar").max = training.total;
    $("training-bar").value = training.done;
  } else $("training-bar").removeAttribute("value");
  $("training-text").hidden = !(running || training.state === "failed") || !training.text;
  $("training-text").textContent = training.text;
  if (info.current && info.current !== info.batch && !running) {
    const newer = info.batches.every((batch) => batch.name !== info.current);
    banner(newer ? "The next round asks for new labels." : "Another batch waits for labels.",
      [["Open it", () => open(info.current)]]);
  } else if (running) {
    banner("The next round is in training. You can look at images and correct labels meanwhile.");
  } else if (training.state === "failed") {
    banner("Training has failed; its last lines:", [["Try again", train]]);
  } else if (training.state === "finished" && info.closed) {
    banner("The run is over: its budget is spent or a stopping rule holds.",
      [["Progress", openReport]]);
  } else if (info.closed || state.images.some(isToDo) || queue.events.length) {
    banner("");
  } else {
    completeBanner();
  }
}

function completeBanner() {
  const waiting = state.images.filter((image) => image.state === "waiting" && !image.own);
  const disputed = state.images.filter((image) => image.state === "disputed").length;
  const pending = (state.states.waiting || 0);
  if (disputed && !adjudicating()) {
    banner(`Your images are done. ${plural(disputed, "image")} with different answers wait for an adjudicator.`,
      [["I decide", () => adjudicate(true)]]);
  } else if (waiting.length || pending) {
    const others = waiting.filter(isOthers).length;
    banner(`Your images are done. ${plural(Math.max(waiting.length, pending), "image")} wait for other annotators.`,
      others ? [["Help with theirs", () => { $("show").value = "others"; arrange(); }]] : []);
  } else if (adjudicating()) {
    banner("Nothing is left to decide.", [["Back to labelling", () => adjudicate(false)]]);
  } else if (state.training.state === "waiting") {
    banner("All images of this batch have their answer. The run continues by itself.");
  } else {
    banner("All images of this batch have their answer.",
      [["Train the next round", train], ["Look through them", () => { $("show").value = "all"; arrange(); }]]);
  }
}

async function train() {
  try {
    state.training = await request("/api/train", {});
    refreshBanner();
  } catch (error) {
    banner(`Training cannot start: ${error.message}`, [["Try again", train]]);
  }
}

async function open(name) {
  if (queue.events.length) {
    banner("Some answers are not saved yet; wait until they are.", []);
    return;
  }
  await load(name);
}

async function adjudicate(on) {
  state.role = on ? "adjudicator" : "annotator";
  $("adjudicator").checked = on;
  await open(state.info.batch);
}

// --- what others do, other tabs, training -------------------------------------------------------

async function catchUp() {
  if (!state.info || !state.info.images) return;
  if (queue.events.length) keepQueue(); // tells other tabs that this one is open
  const batch = state.info.batch;
  try {
    const changes = await request("/api/changes?" + query({
      batch, annotator: state.annotator, role: state.role, since: state.position }));
    if (batch === state.info.batch) takeChanges(changes);
  } catch (error) { /* The save state tells of a server that is away as soon as that matters. */ }
}

async function poll() {
  await catchUp();
  setTimeout(poll, document.hidden ? HIDDEN_POLL_MS : POLL_MS);
}

function takeChanges(changes) {
  if (changes.position < state.position || changes.closed !== state.info.closed) {
    // The log was put back, or training has taken the answers: begin again from what counts now.
    if (queue.events.length === 0) load(state.info.batch);
    return;
  }
  takeOwn(changes.own, false);
  takeOutcomes(changes.outcomes);
  state.position = changes.position;
  state.states = changes.states;
  const before = state.training.state;
  state.training = changes.training;
  state.info.current = changes.current;
  showProgress();
  if (state.single) drawSingle();
  // The round that this page waited for has been trained: open its batch.
  const trained = before === "running" && state.training.state !== "running";
  if (trained && changes.current !== state.info.batch && queue.events.length === 0) load(changes.current);
}

// --- dialogs and settings -----------------------------------------------------------------------

function buildBatchList() {
  const name = (batch) => {
    const part = /_part_(\d+)$/.exec(batch.name);
    const base = batch.split === "validation" ? "Validation sample" : `Round ${batch.round}`;
    const what = batch.closed ? "in training" : "to label";
    return `${base}${part ? `, part ${part[1]}` : ""}: ${plural(batch.size, "image")}, ${what}`;
  };
  $("batch").replaceChildren(...state.info.batches.map((batch) => element("option", {
    value: batch.name, textContent: name(batch), selected: batch.name === state.info.batch })));
}
$("batch").addEventListener("change", () => open($("batch").value));

function askAnnotator() {
  const names = state.info.annotators;
  $("annotator-list").replaceChildren(...names.map((name) => element("option", {
    value: name, textContent: name, selected: name === state.annotator })));
  $("annotator-list").hidden = names.length === 0;
  $("annotator-name").parentNode.hidden = names.length > 0;
  $("annotator-name").value = state.annotator;
  $("annotator-error").textContent = "";
  $("annotator-dialog").showModal();
}

$("annotator-dialog").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("annotator-list").hidden ? $("annotator-name").value.trim() : $("annotator-list").value;
  const before = [state.annotator, state.role];
  state.annotator = name;
  state.role = $("adjudicator").checked ? "adjudicator" : "annotator";
  try {
    if (!name) throw new Error("Give a name.");
    await load();
    localStorage.setItem("annotator", name);
    showAnnotator();
    $("annotator-dialog").close();
    $("grid").focus();
  } catch (error) {
    [state.annotator, state.role] = before;
    $("annotator-error").textContent = error.message;
  }
});
$("annotator-dialog").addEventListener("cancel", (event) => {
  if (!state.annotator) event.preventDefault();
});
function showAnnotator() {
  $("open-annotator").textContent = `${state.annotator}${adjudicating() ? " (decides)" : ""}`;
}

function openHelp() {
  const rows = [
    ["1 … 9", "the first nine classes; further classes have the letters shown beside them"],
    ["/", "find a class by its name"],
    ["S  X  N", "skip: unsure, unusable, not in the class list"],
    ["U", "undo, any number of steps (also Ctrl+Z or Backspace)"],
    ["← → ↑ ↓", "move; with Shift, select on the way"],
    ["Space", "select or deselect the image with the frame"],
    ["Ctrl+A", "select all images shown that wait for an answer"],
    ["Enter", "open the image at its original resolution; Esc goes back"],
    ["+  −  0", "larger, smaller, fit (in the single view; the wheel and dragging work too)"],
    ["Esc", "deselect"],
    ["?", "this list"],
  ];
  $("keys").replaceChildren(...rows.flatMap(([key, text]) => [
    element("dt", {}, ...key.split("  ").map((part) => element("kbd", { textContent: part }))),
    element("dd", { textContent: text })]));
  $("help-dialog").showModal();
}

async function openReport() {
  $("report").textContent = "Loading";
  $("report-dialog").showModal();
  try {
    drawReport(await request("/api/report"));
  } catch (error) {
    $("report").textContent = `The figures cannot be had: ${error.message}`;
  }
}

function drawReport({ curve, class_counts: counts, agreement }) {
  const parts = [element("h3", { textContent: "Accuracy against labels" })];
  if (curve.length) {
    parts.push(chart(curve), element("p", { className: "note", textContent:
      "Accuracy on the validation images after each round; the band is the 95 % interval." }));
  } else parts.push(element("p", { textContent: "No round has been trained yet." }));
  parts.push(element("h3", { textContent: "Labels by class" }));
  const most = Math.max(1, ...Object.values(counts));
  const rows = state.info.classes.map((name) => element("tr", {},
    element("td", { textContent: name }),
    element("td", { textContent: (counts[name] || 0).toLocaleString("en") }),
    element("td", {}, element("meter", { max: most, value: counts[name] || 0 }))));
  parts.push(element("table", { className: "bars" }, element("tbody", {}, ...rows)));
  if (agreement.length) {
    parts.push(element("h3", { textContent: "Agreement of annotators" }));
    const number = (value) => value === null ? "not defined" : value.toFixed(2);
    parts.push(element("ul", {}, ...agreement.map((entry) => element("li", { textContent:
      `${entry.batch}: ${entry.statistic} ${number(entry.kappa)} (95 % interval ${number(entry.low)} to `
      + `${number(entry.high)}) on ${plural(entry.images, "image")} of ${entry.annotators.join(", ")}` }))));
  }
  $("report").replaceChildren(...parts);
}

function chart(points) {
  const [width, height, left, bottom, top, right] = [560, 260, 52, 40, 12, 16];
  const most = Math.max(...points.map((point) => point.labels));
  const lowest = Math.max(0, Math.floor(10 * Math.min(...points.map((point) => point.low))) / 10);
  const x = (labels) => left + (width - left - right) * labels / most;
  const y = (share) => top + (height - top - bottom) * (1 - share) / (1 - lowest || 1);
  const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img" });
  const last = points[points.length - 1];
  node.append(svg("title", {}, `Validation accuracy ${last.accuracy.toFixed(3)} with ${last.labels} labels`));
  for (let k = 0; k <= 4; k += 1) {
    const share = lowest + (1 - lowest) * k / 4;
    node.append(svg("line", { class: "rule", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
      svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, share.toFixed(2)));
  }
  for (const point of points) {
    node.append(svg("text", { x: x(point.labels), y: height - bottom + 18, "text-anchor": "middle" }, point.labels));
  }
  node.append(svg("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "labels"));
  const path = (values) => values.map(([a, b]) => `${x(a)},${y(b)}`).join(" ");
  node.append(svg("polygon", { class: "band", points: path([
    ...points.map((point) => [point.labels, point.high]),
    ...[...points].reverse().map((point) => [point.labels, point.low])]) }));
  node.append(svg("polyline", { class: "line", points: path(points.map((point) => [point.labels, point.accuracy])) }));
  for (const point of points) {
    node.append(svg("line", { class: "line", x1: x(point.labels), x2: x(point.labels), y1: y(point.low), y2: y(point.high) }),
      svg("circle", { class: "dot", cx: x(point.labels), cy: y(point.accuracy), r: 4 }));
  }
  return node;
}

function openFiles() {
  for (const kind of ["csv", "json", "xml"]) $(`export-${kind}`).href = `/api/export/${state.info.batch}.${kind}`;
  $("import-text").textContent = "";
  $("import-file").value = "";
  $("files-dialog").showModal();
}
$("import-file").addEventListener("change", async () => {
  const file = $("import-file").files[0];
  if (!file) return;
  const box = $("import-text");
  const format = file.name.toLowerCase().endsWith(".json") ? "json" : "csv";
  try {
    const response = await fetch("/api/import?" + query({
      batch: state.info.batch, annotator: state.annotator, format }), { method: "POST", body: file });
    const values = await response.json();
    box.className = response.ok ? "good" : "bad";
    box.textContent = response.ok ? `${plural(values.imported, "label")} imported.` : values.error;
    if (response.ok) await load(state.info.batch);
  } catch (error) {
    box.className = "bad";
    box.textContent = `The file cannot be sent: ${error.message}`;
  }
});

$("undo").addEventListener("click", undo);
$("open-help").addEventListener("click", openHelp);
$("open-report").addEventListener("click", openReport);
$("open-files").addEventListener("click", openFiles);
$("open-annotator").addEventListener("click", askAnnotator);
$("show").addEventListener("change", arrange);
$("sort").addEventListener("change", arrange);
$("size").addEventListener("input", layOut);
$("hints").addEventListener("change", () => state.images.forEach(redraw));

$("smooth").addEventListener("change", () => {
  document.body.classList.toggle("sharp", !$("smooth").checked);
});

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
  localStorage.setItem("theme", dark ? "light" : "dark");
});
setTheme(localStorage.getItem("theme"));

// --- keys ---------------------------------------------------------------------------------------

const STEPS = {
  ArrowLeft: () => -1, ArrowRight: () => 1,
  ArrowUp: () => -layout.columns, ArrowDown: () => layout.columns,
  PageUp: () => -layout.columns * Math.max(1, Math.floor($("grid").clientHeight / layout.height)),
  PageDown: () => layout.columns * Math.max(1, Math.floor($("grid").clientHeight / layout.height)),
  Home: () => -state.cursor, End: () => state.shown.length,
};

function press(event) {
  const key = event.key;
  const lower = key.toLowerCase();
  const command = event.ctrlKey || event.metaKey;
  const onButton = event.target instanceof HTMLButtonElement || event.target instanceof HTMLAnchorElement;
  if (command && lower === "z") return undo();
  if (command && lower === "a") {
    const waiting = state.shown.filter(isToDo);
    return select(waiting.length ? waiting : state.shown, false);
  }
  if (command || event.altKey) return false;
  if (key in STEPS && (!state.single || key.startsWith("Arrow"))) {
    const step = state.single ? Math.sign(STEPS[key]()) : STEPS[key]();
    const to = Math.max(0, Math.min(state.cursor + step, state.shown.length - 1));
    if (event.shiftKey && !state.single) selectRange(state.anchor, to);
    else state.anchor = to;
    return moveTo(to);
  }
  if (key === "Escape") return state.single ? showSingle(false) : select([], false);
  if (onButton && (key === "Enter" || key === " ")) return false;
  if (key === "Enter") return showSingle(!state.single);
  if (key === " ") return state.single ? false : toggle(state.shown[state.cursor]);
  if (key === "?") return openHelp();
  if (key === "/") {
    $("find-box").hidden = false;
    return $("find").focus();
  }
  if (lower === "u" || key === "Backspace") return undo();
  if (state.single && (key === "+" || key === "=")) return zoom(1.5);
  if (state.single && key === "-") return zoom(1 / 1.5);
  if (state.single && key === "0") return fit();
  if (lower in SKIP_KEYS) return answerWith({ skip: SKIP_KEYS[lower] });
  const position = CLASS_KEYS.indexOf(lower);
  if (position >= 0 && position < state.info.classes.length) {
    return answerWith({ answer: state.info.classes[position] });
  }
  return false;
}

document.addEventListener("keydown", (event) => {
  if (!state.info || !state.info.images || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
  if (typing || event.isComposing || event.repeat && !(event.key in STEPS)) return;
  if (event.target.matches("input[type=range]") && event.key in STEPS) return;
  if (event.target.matches("input[type=checkbox]") && event.key === " ") return;
  if (press(event) !== false) event.preventDefault();
});

// --- start --------------------------------------------------------------------------------------

async function start() {
  try {
    const wanted = new URLSearchParams(location.search);
    if (wanted.get("annotator")) state.annotator = wanted.get("annotator");
    if (wanted.get("role") === "adjudicator") state.role = "adjudicator";
    await load(wanted.get("batch"));
    const names = state.info.annotators;
    if (!state.annotator || (names.length && !names.includes(state.annotator) && !adjudicating())) askAnnotator();
    showAnnotator();
    $("grid").focus();
  } catch (error) {
    $("save-state").className = "save-state failed";
    $("save-state").textContent = `The batch cannot be loaded: ${error.message}`;
    setTimeout(start, POLL_MS);
    return;
  }
  poll();
}

start();

"use strict";
/* The upload page: sends files, shows predictions, maps and corrections. Nothing is kept. */

const STEP = 120; // cards added at a time
const TOP = 3; // classes shown on a card
const $ = (id) => document.getElementById(id);

let model = null;
let results = []; // predictions, each with its file
let shownClass = null; // null: all
let shownCount = STEP;
let running = null; // AbortController of the upload
let redraw = 0;

function percent(value) {
  return (100 * value).toFixed(1) + " %";
}

async function loadModel() {
  const response = await fetch("/model");
  if (!response.ok) throw new Error((await response.json()).error);
  model = await response.json();
  $("title").textContent = `Classify images: ${model.training.dataset}`;
  const outliers = model.outliers ? "" : " No outlier flag: exported without its data.";
  $("model").textContent =
    `${model.architecture}, ${model.classes.length} classes, trained on ` +
    `${model.training.labelled_images} labels. ` +
    `Version ${model.version}.${outliers} Research use only.`;
  $("annotator-label").hidden = !model.corrections;
}

/* --- uploading --- */

async function classify(files) {
  if (running || !files.length) return;
  running = new AbortController();
  const total = files.reduce((sum, one) => sum + one.file.size, 0) || 1;
  let answered = 0;
  $("progress").hidden = false;
  const note = (bytes) => {
    // The network's work counts as the other half.
    $("bar").value = 0.5 * Math.min(1, bytes / total) + 0.5 * (answered / files.length);
    $("done").textContent = `${answered} of ${files.length} files`;
  };
  let sent = 0;
  note(0);
  try {
    await sendGroups(
      requestGroups(files),
      running.signal,
      (group, answer) => {
        answered += group.length;
        take(group, answer);
        note(sent);
      },
      (bytes) => note((sent = bytes)),
    );
    $("done").textContent = `${answered} of ${files.length} files`;
  } catch (error) {
    const cancelled = error.name === "AbortError";
    $("done").textContent =
      (cancelled ? "Cancelled" : error.message) + ` after ${answered} of ${files.length} files`;
    running.abort();
  } finally {
    running = null;
    $("cancel").disabled = true;
  }
}

function take(group, answer) {
  if (answer.status !== 200) {
    const text = answer.body?.error ?? `status ${answer.status}`;
    for (const { name } of group) addProblem(name, text);
    return;
  }
  for (const refusal of answer.body.refused) addProblem(refusal.file, refusal.error);
  for (const prediction of answer.body.predictions) {
    results.push({ ...prediction, source: group[prediction.index].file, map: null, corrected: "" });
  }
  schedule();
}

function addProblem(file, text) {
  const item = document.createElement("li");
  item.textContent = `${file}: ${text}`;
  $("problem-list").append(item);
  const count = $("problem-list").children.length;
  $("problem-count").textContent =
    count === 1 ? "1 file was not read" : `${count} files were not read`;
  $("problems").hidden = false;
}

/* --- showing --- */

function schedule() {
  if (redraw) return;
  redraw = requestAnimationFrame(() => {
    redraw = 0;
    draw();
  });
}

const ORDERS = {
  uncertainty: (a, b) => b.uncertainty - a.uncertainty,
  confidence: (a, b) => a.uncertainty - b.uncertainty,
  distance: (a, b) => (b.distance ?? 0) - (a.distance ?? 0),
  class: (a, b) => a.class.localeCompare(b.class) || b.uncertainty - a.uncertainty,
  file: (a, b) => a.file.localeCompare(b.file, undefined, { numeric: true }),
};

function chosen() {
  return results
    .filter((one) => shownClass === null || one.class === shownClass)
    .filter((one) => !$("outliers").checked || one.outlier)
    .sort(ORDERS[$("sort").value]);
}

function draw() {
  $("results").hidden = !results.length;
  drawCounts();
  const list = chosen();
  const visible = list.slice(0, shownCount);
  $("cards").className = $("view").value;
  $("cards").replaceChildren(...visible.map((one) => (one.card ??= makeCard(one))));
  $("more").hidden = visible.length === list.length;
  const flagged = results.filter((one) => one.outlier).length;
  $("shown").textContent =
    `${results.length} images, ${flagged} flagged as outliers; ${visible.length} of ` +
    `${list.length} shown`;
}

function drawCounts() {
  const counts = new Map(model.classes.map((name) => [name, 0]));
  for (const one of results) counts.set(one.class, counts.get(one.class) + 1);
  const buttons = [[null, `all ${results.length}`]];
  for (const [name, count] of counts) buttons.push([name, `${name} ${count}`]);
  $("counts").replaceChildren(
    ...buttons.map(([name, text]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.title = text;
      button.setAttribute("aria-pressed", String(shownClass === name));
      button.addEventListener("click", () => {
        shownClass = name;
        shownCount = STEP;
        draw();
      });
      return button;
    }),
  );
}

function makeCard(one) {
  const card = $("card").content.firstElementChild.cloneNode(true);
  const part = (name) => card.querySelector("." + name);
  const name = one.file + (one.image ? ` ${one.image}` : "");
  part("image").src = one.preview;
  part("image").alt = name;
  part("file").textContent = name;
  part("class").textContent = part("top").title = one.class;
  part("probability").textContent = percent(one.probability);
  part("uncertainty").textContent = `uncertainty ${one.uncertainty.toFixed(2)} nats`;
  part("outlier").hidden = !one.outlier;
  card.classList.toggle("flagged", Boolean(one.outlier));
  const top = Object.entries(one.probabilities).sort((a, b) => b[1] - a[1]).slice(0, TOP);
  part("classes").append(...top.map(([label, value]) => classRow(label, value)));
  part("show-map").addEventListener("click", () => toggleMap(one, card));
  if (model.corrections) addCorrection(one, card);
  return card;
}

function classRow(label, value) {
  const row = document.createElement("li");
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = name.title = label;
  const meter = document.createElement("meter");
  meter.value = value;
  meter.setAttribute("aria-hidden", "true");
  const number = document.createElement("span");
  number.className = "value";
  number.textContent = percent(value);
  row.append(name, meter, number);
  return row;
}

/* --- activation maps and corrections --- */

/* The image alone: its file, or its picture where a file holds many. */
function imageBody(one) {
  if (!one.image) return one.source;
  // fetch() of a data: address is what the page's security policy forbids.
  const text = atob(one.preview.slice(one.preview.indexOf(",") + 1));
  return new Blob([Uint8Array.from(text, (c) => c.charCodeAt(0))], { type: "image/png" });
}

async function toggleMap(one, card) {
  const map = card.querySelector(".map");
  const button = card.querySelector(".show-map");
  const answer = card.querySelector(".answer");
  if (!one.map) {
    button.disabled = true;
    answer.textContent = "The map is computed.";
    try {
      const form = new FormData();
      const name = one.image ? "picture.png" : one.source.name;
      form.append("file", imageBody(one), name);
      const url = "/activation?class=" + encodeURIComponent(one.class);
      const response = await fetch(url, { method: "POST", body: form });
      if (!response.ok) throw new Error((await response.json()).error);
      one.map = URL.createObjectURL(await response.blob());
      map.src = one.map;
      map.alt = `Where the image speaks for ${one.class}`;
      map.hidden = true;
      answer.textContent = "";
    } catch (error) {
      answer.textContent = error.message;
      return;
    } finally {
      button.disabled = false;
    }
  }
  map.hidden = !map.hidden;
  button.setAttribute("aria-pressed", String(!map.hidden));
}

function addCorrection(one, card) {
  const select = card.querySelector(".correction");
  select.append(new Option("choose a class", ""), ...model.classes.map((c) => new Option(c, c)));
  card.querySelector(".correct").hidden = false;
  select.addEventListener("change", () => correct(one, card, select));
}

async function correct(one, card, select) {
  const answer = card.querySelector(".answer");
  const annotator = $("annotator").value.trim();
  if (!select.value) return;
  if (!annotator) {
    answer.textContent = "Give your name first: the log notes who corrects.";
    select.value = one.corrected;
    $("annotator").focus();
    return;
  }
  const form = new FormData();
  form.append("file", imageBody(one), one.image ? "picture.png" : one.source.name);
  form.append("name", one.file + (one.image ? ` ${one.image}` : ""));
  form.append("class", select.value);
  form.append("annotator", annotator);
  try {
    const response = await fetch("/corrections", { method: "POST", body: form });
    const body = await response.json();
    if (!response.ok) throw new Error(body.error);
    one.corrected = select.value;
    answer.textContent = `Saved as ${select.value}; the next round trains on it.`;
  } catch (error) {
    select.value = one.corrected;
    answer.textContent = `Not saved: ${error.message}`;
  }
}

/* --- the rest of the page --- */

function saveCsv() {
  const header = ["file", "image", "class", "probability", "uncertainty_nats", "outlier"];
  header.push("distance", "corrected_to", ...model.classes.map((name) => `p(${name})`));
  const rows = chosen().map((one) => [
    one.file, one.image, one.class, one.probability, one.uncertainty, one.outlier, one.distance,
    one.corrected, ...model.classes.map((name) => one.probabilities[name]),
  ]);
  download("predictions.csv", csvText([header, ...rows]));
}

function clear() {
  for (const one of results) if (one.map) URL.revokeObjectURL(one.map);
  results = [];
  shownClass = null;
  shownCount = STEP;
  $("problem-list").replaceChildren();
  $("problems").hidden = true;
  $("progress").hidden = true;
  draw();
}

async function start(files) {
  $("cancel").disabled = false;
  await classify(files);
}

function begin() {
  const drop = $("drop");
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    const files = namedFiles($("files").files);
    $("files").value = "";
    start(files);
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    start(await droppedFiles(event.dataTransfer));
  });
  $("cancel").addEventListener("click", () => running?.abort());
  for (const id of ["sort", "outliers", "view"]) {
    $(id).addEventListener("change", () => {
      shownCount = STEP;
      draw();
    });
  }
  $("more").addEventListener("click", () => {
    shownCount += STEP;
    draw();
  });
  $("csv").addEventListener("click", saveCsv);
  $("clear").addEventListener("click", clear);
  loadModel().catch((error) => {
    $("model").textContent = error.message;
  });
}

begin();

"use strict";
/* Files of the page: walking dropped folders, cutting them into requests, sending, CSV.
   A file is {file, name}; the name has the folders that it was dropped with. */

const REQUEST_FILES = 32;
const REQUEST_BYTES = 8 * 2 ** 20;
const SENDERS = 2;
const HIDDEN = /^(\.|Thumbs\.db$|__MACOSX$)/;

/* All files of a drop, those in folders too, without hidden ones. */
async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return namedFiles(transfer.files);
  const files = [];
  for (const entry of entries) await walk(entry, files);
  return files;
}

function namedFiles(list) {
  return [...list].map((file) => ({ file, name: file.name }));
}

async function walk(entry, files) {
  if (HIDDEN.test(entry.name)) return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    files.push({ file, name: entry.fullPath.replace(/^\/+/, "") });
    return;
  }
  const reader = entry.createReader();
  for (;;) {  // the browser lists a folder in parts
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return;
    for (const child of part) await walk(child, files);
  }
}

/* The files cut into groups, each small enough for one request. */
function requestGroups(files) {
  const groups = [];
  let group = [];
  let bytes = 0;
  for (const one of files) {
    const full = group.length >= REQUEST_FILES || bytes + one.file.size > REQUEST_BYTES;
    if (group.length && full) {
      groups.push(group);
      group = [];
      bytes = 0;
    }
    group.push(one);
    bytes += one.file.size;
  }
  if (group.length) groups.push(group);
  return groups;
}

/* Sends one form; resolves to {status, body, retry}. fetch() tells no progress, so not that. */
function sendForm(url, form, onBytes, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.responseType = "json";
    request.upload.onprogress = (event) => onBytes(event.loaded);
    request.onload = () => resolve({
      status: request.status,
      body: request.response,
      retry: Number(request.getResponseHeader("Retry-After") || 1),
    });
    request.onerror = () => reject(new Error("The service cannot be reached."));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  });
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    }, { once: true });
  });
}

/* Sends all groups, a few at a time. onAnswer(files, answer) and onBytes(total) tell of it. */
async function sendGroups(groups, signal, onAnswer, onBytes) {
  const sent = new Map();
  let next = 0;
  async function sender() {
    while (next < groups.length) {
      const group = groups[next++];
      const form = new FormData();
      for (const { file, name } of group) form.append("file", file, name);
      const note = (bytes) => {
        sent.set(group, bytes);
        onBytes([...sent.values()].reduce((sum, one) => sum + one, 0));
      };
      let answer;
      do {
        if (answer) await pause(answer.retry, signal);
        answer = await sendForm("/predict?preview=true", form, note, signal);
      } while (answer.status === 503);
      onAnswer(group, answer);
    }
  }
  await Promise.all(Array.from({ length: SENDERS }, sender));
}

/* One cell of a CSV file. A leading sign would make a spreadsheet run the text as a formula. */
function csvCell(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = "'" + text;
  return '"' + text.replaceAll('"', '""') + '"';
}

function csvText(rows) {
  return rows.map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff" + text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The page "Inspect": takes images, sends them two at a time, shows the results in their order.

import { badge, byId, make, probability } from "./dom.js";
import { getBlob, getJson, postJson, sendImage } from "./http.js";
import { FrameView } from "./view.js";
import {
  MOST_ROWS, fillBars, fillDefects, fillFacts, regionsOf, styleOf, summary, swatch, timesOf,
} from "./result.js";

const AT_ONCE = 2;
const EXPLORE_AFTER_MS = 120;
const KEEP_BITMAPS = 6;

const items = []; // {name, blob, row, result, explored, error, bitmap}
const waiting = [];
const hidden = new Set();
let inWork = 0;
let current = null;
let model = null;
let changes = {};
let asked = 0;
let view = null;

function tell(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

// ------------------------------------------------------------------------------------ frames in

function add(name, blob) {
  const state = make("span", { class: "waits soft" }, "waits");
  const button = make("button", { type: "button" }, state, make("bdi", {}, name));
  const item = { name, blob, button, state };
  button.addEventListener("click", () => show(item));
  byId("frames").append(make("li", {}, button));
  items.push(item);
  waiting.push(item);
  current ??= item;
  byId("work").hidden = false;
  byId("intro").hidden = true;
  count();
  work();
}

function count() {
  const done = items.filter((item) => item.result || item.error).length;
  byId("frames-count").textContent = done < items.length ? `${done} of ${items.length}` : `${items.length}`;
}

function work() {
  while (inWork < AT_ONCE && waiting.length) {
    inWork++;
    send(waiting.shift()).finally(() => {
      inWork--;
      count();
      work();
    });
  }
}

async function send(item) {
  item.state.textContent = "…";
  try {
    item.result = await sendImage("/v1/inspect", item.blob, item.name);
    item.state.replaceWith(item.state = badge(item.result.verdict));
  } catch (error) {
    item.error = error.message;
    item.state.textContent = "not sent";
    tell(`${item.name}: ${error.message}`);
  }
  if (current === item) await show(item);
}

/** Frames of several megabytes are decoded again when they are shown again. */
async function bitmapOf(item) {
  if (item.bitmap === undefined) {
    item.bitmap = await createImageBitmap(item.blob).catch(() => null);
    const kept = items.filter((one) => one.bitmap && one !== item);
    for (const old of kept.slice(0, Math.max(0, kept.length - KEEP_BITMAPS))) {
      old.bitmap.close();
      old.bitmap = undefined;
    }
  }
  return item.bitmap;
}

// ----------------------------------------------------------------------------------------- shown

async function show(item) {
  if (current !== item) {
    current = item;
    changes = {};
    asked++;
    item.explored = null;
  }
  for (const one of items) one.button.toggleAttribute("aria-current", one === item);
  if (!item.result) return;
  const bitmap = await bitmapOf(item);
  if (current !== item) return;
  byId("shown").hidden = false;
  byId("shown-name").textContent = item.result.image;
  byId("undrawn").hidden = bitmap !== null;
  const size = item.result.size_wh ?? (bitmap ? [bitmap.width, bitmap.height] : [1600, 256]);
  if (!view) {
    view = new FrameView(byId("view"), { label: "The frame with outlined defects" });
    view.onPick = (key) => choose(key, false);
  }
  view.setFrame(bitmap, ...size);
  fillThresholds();
  render();
}

const shownResult = () => current.explored ?? current.result;

function thresholds() {
  const types = {};
  for (const [id, rule] of Object.entries(model.types)) types[id] = { ...rule, ...changes.types?.[id] };
  return { gate: { ...model.gate, ...changes.gate }, types };
}

function render() {
  const result = shownResult();
  byId("verdict").replaceChildren(badge(result.verdict));
  byId("summary").textContent = summary(result, model);
  byId("explored").hidden = !current.explored;
  byId("explored").firstElementChild.textContent =
    `Thresholds of this page, not of decision ${model.decision}: nothing is stored.`;
  view.setRegions(regionsOf(result, model, hidden));
  const on = { focus: (key) => view.highlight(key), choose: (key) => choose(key, true) };
  const left = fillDefects(byId("defects"), result, model, hidden, on);
  byId("defects-none").textContent = left
    ? `The ${MOST_ROWS} largest of ${left + MOST_ROWS} are listed; all are outlined.`
    : result.defects.length ? "" : "No region is outlined.";
  fillBars(byId("bars"), result, model, thresholds());
  fillFacts(byId("facts"), [
    ["Inspection", `${result.id}, stored`],
    ["Size", result.size_wh ? `${result.size_wh[0]} × ${result.size_wh[1]} px` : null],
    ["Time", timesOf(result)],
    ["Model", result.model],
    ["Decision", result.decision],
    ["Engine", result.engine],
    ["Notes", result.notes?.join("; ")],
    ["SHA-256", result.sha256],
  ]);
}

/** Marks a defect in the picture and in the table. */
function choose(key, zoom) {
  view.highlight(key);
  for (const row of byId("defects").children) {
    row.classList.toggle("chosen", row.dataset.key === `${key}`);
    if (row.dataset.key === `${key}` && !zoom) row.scrollIntoView({ block: "nearest" });
  }
  if (zoom) view.zoomTo(shownResult().defects[key].bbox_xywh);
}

// ------------------------------------------------------------------------------------ thresholds

function control(name, value, range, onValue) {
  const { least, most, step } = range;
  const number = make("input", { type: "number", min: least, step: "any", "aria-label": name });
  const slider = make("input", { type: "range", min: least, max: most, step, "aria-label": `${name}, slider` });
  number.value = `${Number(value.toPrecision(4))}`;
  slider.value = value;
  const given = (text) => {
    const to = Number(text);
    if (text === "" || !Number.isFinite(to)) return;
    number.value = text;
    slider.value = to;
    onValue(to);
  };
  number.addEventListener("input", () => given(number.value));
  slider.addEventListener("input", () => given(slider.value));
  return make("span", { class: "threshold" }, slider, number);
}

const SHARE = { least: 0, most: 1, step: 0.01 };

function fillThresholds() {
  const set = (table, key) => (value) => {
    changes = structuredClone(changes);
    (changes[table] ??= {})[key] = value;
    exploreSoon();
  };
  const setType = (id, key) => (value) => {
    changes = structuredClone(changes);
    ((changes.types ??= {})[id] ??= {})[key] = value;
    exploreSoon();
  };
  const { gate, types } = thresholds();
  byId("gate-thresholds").replaceChildren(
    make("label", { class: "threshold" }, "Clear below (clear_below)",
      control("clear_below", gate.clear_below, SHARE, set("gate", "clear_below"))),
    make("label", { class: "threshold" }, "NG from (ng_from)",
      control("ng_from", gate.ng_from, SHARE, set("gate", "ng_from"))),
  );
  const area = { least: 0, most: 5000, step: 10 };
  byId("type-thresholds").replaceChildren(...model.classes.map(({ id, name, colour }) => make(
    "tr", {}, make("td", { class: "nowrap" }, swatch(colour), ` ${name}`),
    ...[["label_from", SHARE], ["pixel_from", SHARE], ["min_area_px", area]].map(([key, range]) =>
      make("td", { class: "value" }, control(`${name} ${key}`, types[id][key], range, setType(id, key)))),
  )));
}

let timer = 0;
function exploreSoon() {
  clearTimeout(timer);
  timer = setTimeout(explore, EXPLORE_AFTER_MS);
}

async function explore() {
  const mine = ++asked;
  const item = current;
  byId("explored").hidden = false;
  byId("explored").firstElementChild.textContent = "Trying these thresholds on this frame …";
  try {
    const result = await postJson(`/v1/explore/${item.result.id}`, changes);
    // The last question counts; earlier answers may come later.
    if (mine !== asked || current !== item) return;
    item.explored = result;
    tell("");
    render();
  } catch (error) {
    if (mine !== asked) return;
    tell(error.message);
    byId("explored").hidden = !item.explored;
  }
}

function reset() {
  changes = {};
  asked++;
  current.explored = null;
  tell("");
  fillThresholds();
  render();
}

// ----------------------------------------------------------------------------------------- begin

function listen() {
  byId("files").addEventListener("change", (event) => {
    for (const file of event.target.files) add(file.name, file);
    event.target.value = "";
  });
  byId("reset").addEventListener("click", reset);
  byId("opacity").addEventListener("input", (event) => {
    view.fillOpacity = Number(event.target.value);
    view.redraw();
  });
  byId("outlines").addEventListener("change", (event) => {
    view.outlines = event.target.checked;
    view.redraw();
  });
  let depth = 0; // of nested elements that are dragged over
  const over = (by) => {
    depth = Math.max(0, depth + by);
    byId("dropping").hidden = depth === 0;
  };
  addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    for (const file of event.dataTransfer.files) add(file.name, file);
  });
  addEventListener("paste", (event) => {
    for (const file of event.clipboardData.files) add(file.name, file);
  });
}

function fillTypes() {
  byId("types").replaceChildren(...model.classes.map(({ id, name, colour }) => {
    const box = make("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(id);
      else hidden.add(id);
      render();
    });
    return make("label", {}, box, swatch(colour), `${name} (${styleOf(model, id).dashName})`);
  }));
}

async function fillSamples() {
  for (const { name, url } of await getJson("/v1/samples")) {
    const picture = make("img", { src: url, alt: `Drawn frame ${name}`, loading: "lazy" });
    const button = make("button", { type: "button", title: name }, picture);
    button.addEventListener("click", async () => add(name, await getBlob(url)));
    byId("samples").append(button);
  }
}

/** A stored result: ?id=17. */
async function open(id) {
  const result = await getJson(`/v1/results/${id}`);
  let blob = new Blob();
  try {
    blob = await getBlob(`/v1/results/${id}/frame`);
  } catch (error) {
    tell(error.message);
  }
  const state = badge(result.verdict);
  const button = make("button", { type: "button" }, state, make("bdi", {}, result.image));
  const item = { name: result.image, blob, button, state, result };
  button.addEventListener("click", () => show(item));
  byId("frames").append(make("li", {}, button));
  items.push(item);
  byId("work").hidden = false;
  byId("intro").hidden = true;
  count();
  await show(item);
}

try {
  model = (await getJson("/v1/models")).active;
  byId("bar-model").textContent = `${model.model}, decision ${model.decision}`;
  byId("bar-model").title = `NG from ${probability(model.gate.ng_from)}`;
  fillTypes();
  listen();
  const id = new URLSearchParams(location.search).get("id");
  if (/^[0-9]{1,15}$/.test(id ?? "")) await open(id);
  await fillSamples();
  document.documentElement.dataset.ready = "true";
} catch (error) {
  tell(error.message);
}

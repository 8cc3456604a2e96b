// The page "Review": one frame after the other, one key per verdict, and a brush for its regions.

import { badge, byId, make } from "./dom.js";
import { getBlob, getJson, postForBlob, postJson } from "./http.js";
import { FrameView } from "./view.js";
import { Painting } from "./brush.js";
import { fillBars, fillFacts, regionsOf, styleOf, summary, swatch, why } from "./result.js";

const NAME = "steelsight-reviewer";
const KINDS = [["ng", "NG"], ["unknown", "UNKNOWN"], ["ok", "OK, sampled"]];
const AHEAD = 2;
const MOST_HISTORY = 10;

let who = "";
let model = null;
let queue = []; // of the server, less what was judged or skipped here
let loaded = new Map(); // id -> promise of {result, bitmap, problem}
let current = null; // {item, result, bitmap, problem}
let painting = null;
let brush = { value: 1, classId: null };
let chosen = null; // {classId, region}
let last = null; // {review, item}
let busy = false;
const skipped = new Set();
const view = new FrameView(byId("view"), { label: "The frame with the model's regions" });

function tell(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

const kinds = () => [...byId("kinds").querySelectorAll("input:checked")].map((box) => box.value);

// ----------------------------------------------------------------------------------------- queue

async function refill() {
  const items = await fillCounts(200);
  queue = items.filter((item) => !skipped.has(item.id));
}

async function fillCounts(limit = 1) {
  const given = new URLSearchParams({ who, kinds: kinds().join(",") || "ng", limit });
  const { waiting, items } = await getJson(`/v1/review/queue?${given}`);
  const told = KINDS.map(([kind, label]) => `${waiting[kind.toUpperCase()]} ${label}`);
  byId("waiting").textContent = `waiting for you: ${told.join(", ")}`;
  return kinds().length ? items : [];
}

function load(id) {
  if (!loaded.has(id)) {
    loaded.set(id, (async () => {
      const result = await getJson(`/v1/results/${id}`);
      try {
        const blob = await getBlob(`/v1/results/${id}/frame`);
        const bitmap = await createImageBitmap(blob).catch(() => null);
        const problem = bitmap ? "" : "The browser cannot show this frame; it is damaged, or no image.";
        return { result, bitmap, problem };
      } catch (error) {
        return { result, bitmap: null, problem: error.message };
      }
    })());
    // A failed one is asked for again.
    loaded.get(id).catch(() => loaded.delete(id));
  }
  return loaded.get(id);
}

async function next() {
  if (!queue.length) await refill();
  const item = queue[0] ?? null;
  const kept = new Set(queue.slice(0, AHEAD + 1).map((one) => one.id));
  loaded = new Map([...loaded].filter(([id]) => kept.has(id)));
  for (const one of queue.slice(0, AHEAD + 1)) load(one.id).catch(() => {});
  await show(item);
}

async function show(item) {
  endEdit();
  byId("note").value = "";
  current = item && { item, ...(await load(item.id)) };
  byId("empty").hidden = current !== null;
  byId("case").hidden = current === null;
  if (!current) return;
  const { result, bitmap, problem } = current;
  byId("verdict").replaceChildren(badge(result.verdict));
  byId("case-name").textContent = result.image;
  byId("summary").textContent = `The model says: ${summary(result, model)}`;
  byId("undrawn").textContent = problem;
  byId("undrawn").hidden = !problem;
  byId("edit").disabled = !result.size_wh;
  const size = result.size_wh ?? (bitmap ? [bitmap.width, bitmap.height] : [1600, 256]);
  view.setFrame(bitmap, ...size);
  view.setRegions(regionsOf(result, model));
  fillBars(byId("bars"), result, model, model);
  const said = item.n_said;
  fillFacts(byId("facts"), [
    ["Inspection", `${item.id}`],
    ["Coil", item.coil],
    ["Inspected", new Date(item.inspected).toLocaleString()],
    ["Others", said ? `${said} ${said === 1 ? "person has" : "people have"} judged it` : "nobody has judged it yet"],
    ["Reason", why(result)],
    ["Model", result.model],
  ]);
}

// --------------------------------------------------------------------------------------- verdicts

/** One thing at a time; what goes wrong is told in a line. */
async function alone(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    tell(error.message);
  } finally {
    busy = false;
  }
}

/** Whether something was drawn that is not stored; says what to do. */
function unstored() {
  if (!painting?.changed) return false;
  tell("You have drawn regions: Enter or N stores them as NG, Escape drops them.");
  return true;
}

async function say(verdict, labels = null) {
  if (!current || (!labels && unstored())) return;
  const { item } = current;
  await alone(async () => {
    const note = byId("note").value.trim();
    const stored = await postJson("/v1/verdicts", { id: item.id, verdict, who, note, labels });
    last = { review: stored.review, item };
    told(stored, item);
    queue = queue.filter((one) => one.id !== item.id);
    await next();
    tell("");
    refreshCounts();
  });
}

function told(stored, item) {
  const regions = stored.labels && Object.keys(stored.labels).length ? ", with corrected regions" : "";
  const when = new Date().toLocaleTimeString();
  const same = stored.verdict === stored.machine ? "as the model" : `the model said ${stored.machine}`;
  byId("stored").hidden = false;
  byId("stored").firstElementChild.textContent =
    `Stored: ${item.image} is ${stored.verdict} (${same})${regions}, by ${stored.who} at ${when}, number ${stored.review}.`;
  const line = make("li", { "data-review": stored.review }, badge(stored.verdict), " ", make("bdi", {}, item.image),
    make("span", { class: "soft" }, ` ${same}${regions}, ${when}`));
  byId("history").prepend(line);
  while (byId("history").children.length > MOST_HISTORY) byId("history").lastElementChild.remove();
}

async function undo() {
  if (!last || unstored()) return;
  await alone(async () => {
    await postJson(`/v1/verdicts/${last.review}/undo`, { who });
    byId("stored").hidden = true;
    byId("history").querySelector(`[data-review="${last.review}"]`)?.remove();
    queue = [last.item, ...queue.filter((one) => one.id !== last.item.id)];
    last = null;
    await show(queue[0]);
    tell("");
    refreshCounts();
  });
}

async function skip() {
  if (!current || unstored()) return;
  await alone(async () => {
    skipped.add(current.item.id);
    queue = queue.filter((one) => one.id !== current.item.id);
    await next();
    tellSkipped();
  });
}

function tellSkipped() {
  byId("skipped").hidden = skipped.size === 0;
  byId("skipped").firstElementChild.textContent = `${skipped.size} skipped`;
}

async function again() {
  await alone(async () => {
    skipped.clear();
    tellSkipped();
    await refill();
    await next();
  });
}

/** Beside the work: the next verdict need not wait for it. */
async function refreshCounts() {
  try {
    await fillCounts();
    await fillAgreement();
  } catch (error) {
    tell(error.message);
  }
}

// ------------------------------------------------------------------------------------------ brush

function beginEdit() {
  const { result } = current;
  if (!result.size_wh) return;
  painting = new Painting(...result.size_wh, model.classes.map((one) => one.id), result.defects);
  brush = { value: 1, classId: result.defects[0]?.class ?? model.classes[0].id };
  byId("tools").hidden = false;
  byId("edit").setAttribute("aria-pressed", "true");
  byId("view").classList.add("editing");
  byId("brush-types").replaceChildren(...model.classes.map(({ id, name, colour }, index) => {
    const radio = make("input", { type: "radio", name: "brush-type", value: id });
    radio.checked = id === brush.classId;
    radio.addEventListener("change", () => (brush.classId = id));
    return make("label", {}, radio, swatch(colour), name, make("kbd", {}, `${index + 1}`));
  }));
  byId("retype").replaceChildren(...model.classes.map(({ id, name }) => make("option", { value: id }, name)));
  pick(null);
  setBrush(1);
  paint();
}

function endEdit() {
  painting = null;
  chosen = null;
  byId("tools").hidden = true;
  byId("edit").setAttribute("aria-pressed", "false");
  byId("view").classList.remove("editing");
}

function toggleEdit() {
  if (!painting) beginEdit();
  else if (!unstored()) dropEdit();
}

function dropEdit() {
  endEdit();
  tell("");
  view.setRegions(regionsOf(current.result, model));
}

function setBrush(value) {
  brush.value = value;
  byId("draw").setAttribute("aria-pressed", `${value === 1}`);
  byId("erase").setAttribute("aria-pressed", `${value === 0}`);
}

function chooseType(index) {
  const radio = byId("brush-types").querySelectorAll("input")[index];
  if (radio) radio.click();
}

function paint() {
  view.setRegions(painting.parts().map(({ id, bbox, mask }) => {
    const { colour, dash } = styleOf(model, id);
    return { key: id, classId: id, colour, dash, bbox, mask };
  }));
}

function pick(found) {
  chosen = found;
  byId("region-tools").hidden = !found;
  if (found) byId("retype").value = found.classId;
}

let from = null; // of the stroke under way
let moved = false;
view.onPointer = (kind, x, y) => {
  if (!painting) return false;
  if (kind === "down") {
    from = [x, y];
    moved = false;
    painting.begin();
    return true;
  }
  if (!from) return false;
  if (kind === "cancel") {
    painting.undo();
    from = null;
    paint();
  } else if (kind === "move" || kind === "up") {
    if (kind === "move") moved = true;
    // A click on a region chooses it; elsewhere it is a dot of the brush.
    const region = kind === "up" && !moved && brush.value ? regionUnder(x, y) : null;
    if (region) {
      painting.undo();
      pick(region);
    } else {
      const ids = brush.value ? [brush.classId] : [...painting.masks.keys()];
      for (const id of ids) painting.stroke(id, from, [x, y], Number(byId("size").value) / 2, brush.value);
      pick(null);
    }
    from = kind === "up" ? null : [x, y];
    paint();
  }
  return true;
};

function regionUnder(x, y) {
  for (const classId of painting.masks.keys()) {
    const region = painting.regionAt(classId, x, y);
    if (region) return { classId, region };
  }
  return null;
}

function change(act) {
  if (!painting) return;
  painting.begin();
  act();
  pick(null);
  paint();
}

function unstroke() {
  if (painting?.undo()) paint();
}

// -------------------------------------------------------------------------------------- agreement

const percent = (share) => `${Math.round(100 * share)} %`;

function agreed(name, { n, agree, share, interval, kappa, kappa_interval: between }) {
  if (!n) return null;
  const sure = `95 % interval ${percent(interval[0]).replace(" %", "")} to ${percent(interval[1])}`;
  const beyond = kappa === null ? ""
    : `; beyond chance (kappa) ${kappa.toFixed(2)}, ${between.map((end) => end.toFixed(2)).join(" to ")}`;
  return make("p", {}, make("bdi", {}, name), `: ${agree} of ${n} frames, ${percent(share)} (${sure})${beyond}`);
}

async function fillAgreement() {
  const found = await getJson("/v1/review/agreement");
  const lines = [
    agreed("All people and the model", found.model),
    ...found.by_reviewer.map((one) => agreed(`${one.who} and the model`, one)),
    ...found.pairs.map((one) => agreed(`${one.a} and ${one.b}`, one)),
    ...found.pairs.filter((one) => one.dice.n).map(({ a, b, dice }) => make(
      "p", {}, make("bdi", {}, `${a} and ${b}`), `: regions overlap (Dice) ${dice.mean.toFixed(2)}`
        + `${dice.interval ? `, ${dice.interval.map((end) => end.toFixed(2)).join(" to ")},` : ""} on ${dice.n} frames`)),
  ].filter(Boolean);
  byId("agreement").replaceChildren(...(lines.length ? lines
    : [make("p", { class: "soft" }, "Nobody has judged a frame yet.")]));
}

async function download() {
  try {
    const link = make("a", { href: URL.createObjectURL(await postForBlob("/v1/review/export")), download: "corrected.zip" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    tell("");
  } catch (error) {
    tell(error.message);
  }
}

// ------------------------------------------------------------------------------------------ begin

const actions = {
  a: () => say(current.result.verdict),
  o: () => say("OK"),
  n: () => say("NG", painting?.changed ? painting.labels() : null),
  u: () => say("UNKNOWN"),
  s: skip,
  e: toggleEdit,
  z: undo,
  b: () => painting && setBrush(1),
  x: () => painting && setBrush(0),
  Enter: () => painting && say("NG", painting.labels()),
  Escape: () => painting && dropEdit(),
};

function onKey(event) {
  const typing = event.target.closest("input:not([type=checkbox]):not([type=radio]):not([type=range]), textarea, select");
  if (event.key === "Escape" && typing) typing.blur();
  if (typing || event.altKey || event.metaKey || byId("desk").hidden) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey) {
    if (key === "z" && painting) unstroke();
    return;
  }
  if (key === "Enter" && event.target.closest("button, a, summary")) return;
  if (painting && /^[1-9]$/.test(key)) chooseType(Number(key) - 1);
  else if (!actions[key] || (!current && key !== "z") || event.repeat) return;
  else actions[key]();
  event.preventDefault();
}

function listen() {
  addEventListener("keydown", onKey);
  for (const button of document.querySelectorAll("[data-key]")) {
    button.addEventListener("click", () => current && actions[button.dataset.key]());
  }
  byId("undo").addEventListener("click", undo);
  byId("again").addEventListener("click", again);
  byId("unstroke").addEventListener("click", unstroke);
  byId("clear").addEventListener("click", () => change(() => painting.clear()));
  byId("remove").addEventListener("click", () => change(() => painting.move(chosen.region, chosen.classId)));
  byId("retype").addEventListener("change", (event) =>
    change(() => painting.move(chosen.region, chosen.classId, event.target.value)));
  byId("size").addEventListener("input", (event) => {
    byId("size-told").value = `${event.target.value} px`;
  });
  byId("export").addEventListener("click", download);
  byId("rename").addEventListener("click", askName);
  byId("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = byId("name").value.trim();
    if (!name) return;
    localStorage.setItem(NAME, name);
    begin(name).catch((error) => tell(error.message));
  });
  byId("kinds").replaceChildren(...KINDS.map(([kind, label]) => {
    const box = make("input", { type: "checkbox", value: kind, checked: true });
    box.addEventListener("change", () => {
      if (!unstored()) alone(async () => {
        await refill();
        await next();
      });
    });
    return make("label", {}, box, label);
  }));
}

function askName() {
  byId("desk").hidden = true;
  byId("name-form").hidden = false;
  byId("name").value = who;
  byId("name").focus();
}

async function begin(name) {
  who = name;
  last = null;
  byId("who").textContent = name;
  byId("name-form").hidden = true;
  byId("desk").hidden = false;
  byId("stored").hidden = true;
  byId("history").replaceChildren();
  skipped.clear();
  tellSkipped();
  loaded.clear();
  await refill();
  await next();
  await fillAgreement();
}

try {
  model = (await getJson("/v1/models")).active;
  byId("bar-model").textContent = `${model.model}, decision ${model.decision}`;
  listen();
  const name = localStorage.getItem(NAME);
  if (name) await begin(name);
  else askName();
  document.documentElement.dataset.ready = "true";
} catch (error) {
  tell(error.message);
}

// The page "Runs and models": what ran, what is active, and how two runs differ.

import { byId, make } from "./dom.js";
import { getJson, postJson } from "./http.js";
import { fillFacts, swatch } from "./result.js";

let runs = [];
const chosen = [];

function tell(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Wilson's 95 % interval of a share. */
function wilson(successes, trials) {
  const z = 1.959964, p = successes / trials, z2 = (z * z) / trials;
  const middle = (p + z2 / 2) / (1 + z2);
  const half = (z * Math.sqrt((p * (1 - p)) / trials + z2 / (4 * trials))) / (1 + z2);
  return [middle - half, middle + half];
}

function share({ ng, seen }) {
  if (!seen) return "no frames";
  const [low, high] = wilson(ng, seen);
  return `${percent(ng / seen)} (${percent(low)} to ${percent(high)})`;
}

function fillModels({ active, available, shadow }) {
  byId("bar-model").textContent = `${active.model}, decision ${active.decision}`;
  fillFacts(byId("active"), [
    ["Model", active.model], ["Decision", active.decision], ["Engine", active.engine],
    ["Clear below", `${active.gate.clear_below}`], ["NG from", `${active.gate.ng_from}`],
    ["Frames since it is active", `${active.frames}`],
  ]);
  byId("types").replaceChildren(...active.classes.map(({ id, name, colour }) => make("tr", {},
    make("td", { class: "nowrap" }, swatch(colour), ` ${name}`),
    ...["label_from", "pixel_from", "min_area_px"].map((key) =>
      make("td", { class: "number" }, `${Number(active.types[id][key].toPrecision(4))}`)))));
  byId("available").replaceChildren(...available.map((name) => {
    const button = make("button", { type: "button" }, "Activate");
    button.addEventListener("click", () => activate(name, button));
    return make("li", {}, button, make("bdi", {}, name === "default" ? "default: the one it was started with" : name));
  }));
  byId("shadow").hidden = !shadow;
  if (shadow) fillShadow(shadow);
}

function fillShadow({ model, verdicts }) {
  const rows = Object.entries(verdicts).filter(([pair]) => pair !== "skipped");
  const total = rows.reduce((sum, [, n]) => sum + n, 0);
  const differ = rows.filter(([pair]) => pair.split(" ")[0] !== pair.split(" ")[1]).reduce((sum, [, n]) => sum + n, 0);
  byId("shadow-words").textContent = total
    ? `${model} says something else on ${differ} of ${total} frames (${share({ ng: differ, seen: total })})`
      + `${verdicts.skipped ? `; ${verdicts.skipped} frames were not shown to it, it could not keep up` : ""}.`
    : `${model} has not judged a frame yet.`;
  byId("shadow-rows").replaceChildren(...rows.map(([pair, n]) => make("tr", {},
    ...pair.split(" ").map((verdict) => make("td", {}, verdict)), make("td", { class: "number" }, `${n}`))));
}

async function activate(name, button) {
  button.disabled = true;
  byId("done").hidden = true;
  try {
    const { active } = await postJson("/v1/models/activate", { name });
    byId("done").textContent = `${active.model} with decision ${active.decision} is active; frames in work ended on the old one.`;
    tell("");
    try {
      await refresh();
    } finally { // It is active, also where the page could not be brought up to date.
      byId("done").hidden = false;
    }
  } catch (error) {
    tell(error.message);
  } finally {
    button.disabled = false;
  }
}

function fillRuns() {
  byId("runs").replaceChildren(...[...runs].reverse().map((run) => {
    const box = make("input", { type: "checkbox", "aria-label": `compare run ${run.run}` });
    box.checked = chosen.includes(run.run);
    box.addEventListener("change", () => choose(run.run, box.checked));
    const number = (text) => make("td", { class: "number" }, `${text}`);
    const state = run.complete ? "complete" : run.finished_ms ? "ended early" : "open";
    return make("tr", {}, make("td", {}, box), make("td", {}, `${run.run}`),
      make("td", { class: "nowrap" }, new Date(run.started_ms).toLocaleString()), make("td", {}, make("bdi", {}, run.source)),
      make("td", {}, run.model), make("td", {}, run.decision), make("td", {}, run.engine), number(run.seen), number(run.ok),
      number(run.ng), number(run.unknown), number(run.seen ? percent(run.ng / run.seen) : ""), make("td", {}, state));
  }));
}

function choose(run, wanted) {
  if (wanted) chosen.push(run);
  else chosen.splice(chosen.indexOf(run), 1);
  while (chosen.length > 2) chosen.shift();
  fillRuns();
  compare();
}

function compare() {
  const [a, b] = chosen.map((number) => runs.find((run) => run.run === number));
  if (!b) {
    byId("comparison").replaceChildren();
    return;
  }
  const row = (name, value) => make("tr", {}, make("th", {}, name), make("td", {}, value(a)), make("td", {}, value(b)));
  const changed = [["model", "model"], ["decision", "decision"], ["engine", "engine"]]
    .filter(([key]) => a[key] !== b[key]).map(([, name]) => name);
  byId("comparison").replaceChildren(
    make("h2", {}, `Run ${a.run} and run ${b.run}`),
    make("p", {}, changed.length ? `They differ in ${changed.join(", ")}.` : "Same model, decision and engine.",
      " The intervals say how sure the shares are; what lay on the line may differ, too."),
    make("table", {}, make("tbody", {}, row("Model", (run) => run.model), row("Decision", (run) => run.decision),
      row("Frames", (run) => `${run.seen} = ${run.ok} OK + ${run.ng} NG + ${run.unknown} UNKNOWN`),
      row("NG share, 95 % interval", share), row("UNKNOWN share", (run) => share({ ng: run.unknown, seen: run.seen })))));
}

async function refresh() {
  fillModels(await getJson("/v1/models"));
  ({ runs } = await getJson("/v1/runs"));
  fillRuns();
}

try {
  await refresh();
  document.documentElement.dataset.ready = "true";
} catch (error) {
  tell(error.message);
}

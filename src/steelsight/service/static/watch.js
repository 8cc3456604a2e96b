// The page "Watch": asks every few seconds while it is seen, and says what is out of the ordinary.

import { REASONS, byId, make } from "./dom.js";
import { getJson, postJson } from "./http.js";
import { chart } from "./chart.js";
import { styleOf, swatch } from "./result.js";

const EVERY_MS = 3000;
let model = null;

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

function tile(cls, name, value, more) {
  return make("div", { class: cls }, make("dt", {}, name), make("dd", {}, value, make("small", {}, more)));
}

function fill(seen) {
  const { counts, frames, totals, latency_ms: latency, queue } = seen;
  byId("empty").hidden = frames > 0;
  byId("all").hidden = frames === 0;
  if (!frames) return;
  const share = (n) => `${percent(n / frames)} of the last ${frames}`;
  byId("tiles").replaceChildren(
    tile("ok", "OK", `${counts.OK}`, share(counts.OK)),
    tile("ng", "NG", `${counts.NG}`, share(counts.NG)),
    tile("unknown", "UNKNOWN", `${counts.UNKNOWN}`, share(counts.UNKNOWN)),
    tile("", "All frames ever", `${totals.seen}`, `${totals.ok} + ${totals.ng} + ${totals.unknown}`),
    tile("", "Frames a second", seen.frames_per_s.toFixed(1), "in the last minute"),
    tile("", "Time of a frame", latency.all ? `${latency.all.median.toFixed(0)} ms` : "", latency.all ? `95 % within ${latency.all.p95.toFixed(0)} ms` : ""),
    tile("", "Waiting", `${queue.waiting}`, `of ${queue.places} places`),
  );
  fillChart(seen);
  fillTrends(seen);
  fillDrift(seen);
  fillTimes(seen);
}

function fillChart({ chart: limits, groups, frames }) {
  const ends = groups.length ? [clock(groups[0].from_ms), clock(groups.at(-1).to_ms)] : ["", ""];
  byId("signals").replaceChildren();
  if (!groups.length) {
    byId("chart").replaceChildren();
    byId("chart-words").textContent = `${frames} ${frames === 1 ? "frame" : "frames"} so far; a group has 50.`;
    return;
  }
  const size = limits?.group ?? 50;
  byId("chart-what").textContent = `groups of ${size} frames`;
  chart(byId("chart"), {
    lines: [{ values: groups.map((group) => group.ng) }],
    levels: limits ? [
      { at: limits.high, cls: "limit", label: `most expected ${limits.high}` },
      { at: limits.centre * size, cls: "centre", label: "baseline" },
      ...(limits.low ? [{ at: limits.low, cls: "limit", label: `least expected ${limits.low}` }] : []),
    ] : [],
    out: limits ? limits.signals.map((signal) => signal.group) : [],
    baseline: limits?.baseline_groups ?? 0,
    ends,
    label: "NG frames of each group, with control limits",
  });
  if (!limits) {
    byId("chart-words").textContent = `Limits follow from the first 20 groups (1,000 frames) of this model and decision; ${groups.length} are there.`;
    return;
  }
  const told = limits.signals;
  byId("chart-words").textContent = told.length
    ? `${told.length} groups are out of control (diamonds); limits from the shaded baseline, ${percent(limits.centre)} NG:`
    : `In control: all groups lie within the limits of the shaded baseline, ${percent(limits.centre)} NG.`;
  byId("signals").replaceChildren(...told.slice(-5).reverse().map(({ group, words }) =>
    make("li", {}, `${clock(groups[group].from_ms)} to ${clock(groups[group].to_ms)}: ${words}`)));
}

function fillTrends({ groups }) {
  if (!groups.length) return;
  const ends = [clock(groups[0].from_ms), clock(groups.at(-1).to_ms)];
  const lines = model.classes.map(({ id }) => {
    const { colour, dash } = styleOf(model, id);
    return { values: groups.map((group) => group.by_type[id] ?? 0), colour, dash };
  });
  chart(byId("types"), { lines, ends, label: "Frames with each type, by group" });
  byId("types").append(make("p", { class: "soft" }, ...model.classes.flatMap(({ id, name }) =>
    [swatch(styleOf(model, id).colour), ` ${name} (${styleOf(model, id).dashName})  `])));
  chart(byId("light"), { lines: [{ values: groups.map((group) => group.brightness) }], ends, label: "Mean brightness by group" });
}

function fillDrift({ drift, reference }) {
  byId("reference").textContent = reference
    ? `The last frames against: ${reference}.`
    : "There is no reference for this model; after 1,000 frames the first ones become it.";
  byId("drift").replaceChildren(...drift.map(({ words, alarm, distance }) => make(
    "li", { class: alarm ? "alarm" : "" }, alarm ? "ALARM: " : distance === null ? "" : "Like it: ", words)));
  const alarms = drift.filter((one) => one.alarm);
  byId("alarms").replaceChildren(...alarms.map(({ words }) => make("p", { class: "banner error" }, words)));
}

function fillTimes({ latency_ms: latency, reasons }) {
  byId("times").replaceChildren(...Object.entries(latency).map(([step, { median, p95 }]) => make(
    "tr", {}, make("td", {}, step), make("td", { class: "number" }, median.toFixed(1)),
    make("td", { class: "number" }, p95.toFixed(1)))));
  byId("reasons").replaceChildren(...Object.entries(reasons).map(([reason, n]) =>
    make("li", {}, `${n} UNKNOWN: ${REASONS[reason] ?? reason}`)));
}

async function refresh() {
  if (document.hidden) return;
  try {
    fill(await getJson("/v1/watch"));
    byId("error").hidden = true;
    byId("state").textContent = `as of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    byId("error").textContent = error.message;
    byId("error").hidden = false;
  }
}

async function take() {
  try {
    await postJson("/v1/watch/reference", {});
    await refresh();
  } catch (error) {
    byId("error").textContent = error.message;
    byId("error").hidden = false;
  }
}

try {
  byId("take").addEventListener("click", take);
  model = (await getJson("/v1/models")).active;
  byId("bar-model").textContent = `${model.model}, decision ${model.decision}`;
  await refresh();
  setInterval(refresh, EVERY_MS);
  document.addEventListener("visibilitychange", refresh);
  document.documentElement.dataset.ready = "true";
} catch (error) {
  byId("error").textContent = error.message;
  byId("error").hidden = false;
}

// What is shown of a result: regions for the frame, the table of defects, bars, facts.

import { decodeRle } from "./rle.js";
import { REASONS, make, probability } from "./dom.js";

/** Pixels on and off along an outline, by the position of the type: those of the reports. */
const DASHES = [[], [14, 5], [14, 4, 3, 4], [6, 4]];
const DASH_NAMES = ["full line", "long dashes", "dash and dot", "short dashes"];
export const MOST_ROWS = 200;

export function styleOf(model, classId) {
  const index = model.classes.findIndex((one) => one.id === classId);
  const known = model.classes[index] ?? { name: `Type ${classId}`, colour: "#ffb000" };
  const dash = DASHES[Math.max(index, 0) % DASHES.length];
  return { ...known, dash, dashName: DASH_NAMES[Math.max(index, 0) % DASHES.length] };
}

/** Regions for FrameView, with the keys 0, 1, ... of the defects; without hidden types. */
export function regionsOf(result, model, hidden = new Set()) {
  return result.defects.flatMap((defect, key) => {
    if (hidden.has(defect.class)) return [];
    const { colour, dash } = styleOf(model, defect.class);
    const bbox = defect.bbox_xywh;
    return [{ key, classId: defect.class, colour, dash, bbox,
      mask: decodeRle(defect.rle, ...result.size_wh, bbox) }];
  });
}

export function swatch(colour) {
  const made = make("span", { class: "swatch", "aria-hidden": "true" });
  made.style.background = colour;
  return made;
}

/** Why the verdict is not simply OK or NG; "" if it is. */
export function why(result) {
  if (!result.reason) return "";
  const words = REASONS[result.reason] ?? result.reason;
  return result.detail && result.reason !== "not-localised" ? `${words}: ${result.detail}` : words;
}

/** What the verdict means, in one sentence. */
export function summary(result, model) {
  if (result.verdict === "UNKNOWN") return `No verdict can be given: ${why(result)}.`;
  if (result.verdict === "OK") return "No defect found.";
  if (!result.defects.length) return `Faulty: ${why(result)}.`;
  const counts = new Map();
  for (const defect of result.defects) counts.set(defect.class, (counts.get(defect.class) ?? 0) + 1);
  const parts = [...counts].map(([id, n]) => `${n} × ${styleOf(model, id).name}`);
  return `${result.defects.length} ${result.defects.length === 1 ? "region" : "regions"}: ${parts.join(", ")}.`;
}

/** Fills the body of a table with defects; `on` has focus(key|null) and choose(key). */
export function fillDefects(body, result, model, hidden, on) {
  body.replaceChildren();
  const shown = result.defects.map((defect, key) => [key, defect]).filter(([, d]) => !hidden.has(d.class));
  for (const [key, defect] of shown.slice(0, MOST_ROWS)) {
    const { name, colour } = styleOf(model, defect.class);
    const [x, y] = defect.bbox_xywh;
    const number = (text) => make("td", { class: "number" }, text);
    const go = make("button", { type: "button", class: "row-button" }, swatch(colour), ` ${name}`);
    const row = make(
      "tr", { "data-key": key }, make("td", {}, go), number(`${defect.area_px}`),
      number(defect.length_px.toFixed(0)), number(defect.width_px.toFixed(0)),
      number(probability(defect.probability)), number(`${x}, ${y}`),
    );
    go.addEventListener("click", () => on.choose(key));
    go.addEventListener("focus", () => on.focus(key));
    go.addEventListener("blur", () => on.focus(null));
    row.addEventListener("mouseenter", () => on.focus(key));
    row.addEventListener("mouseleave", () => on.focus(null));
    body.append(row);
  }
  return shown.length - Math.min(shown.length, MOST_ROWS);
}

/** A bar from 0 to 1 with marks of thresholds [{at, title}]. */
function bar(label, value, colour, marks) {
  const filled = make("span", { class: "bar-fill" });
  filled.style.width = `${100 * (value ?? 0)}%`;
  if (colour) filled.style.background = colour;
  const lane = make("span", { class: "bar-lane" }, filled);
  for (const { at, title } of marks) {
    const mark = make("span", { class: "bar-mark", title });
    mark.style.left = `${100 * at}%`;
    lane.append(mark);
  }
  const told = marks.map(({ title }) => title).join(", ");
  return make("div", { class: "bar-row" },
    make("span", {}, label), lane, make("span", { class: "number" }, probability(value)),
    make("small", { class: "bar-told" }, told));
}

/** Probabilities with the thresholds that judged them. */
export function fillBars(host, result, model, thresholds) {
  const { gate, types } = thresholds;
  host.replaceChildren(
    bar("Faulty at all", result.faulty_probability, null, [
      { at: gate.clear_below, title: `clear below ${probability(gate.clear_below)}` },
      { at: gate.ng_from, title: `NG from ${probability(gate.ng_from)}` },
    ]),
  );
  for (const { id, name, colour } of model.classes) {
    const value = result.class_probabilities[id];
    if (value === undefined) continue;
    const from = types[id].label_from;
    host.append(bar(name, value, colour, [{ at: from, title: `taken from ${probability(from)}` }]));
  }
}

/** Pairs of a definition list. */
export function fillFacts(list, facts) {
  list.replaceChildren(...facts.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, make("bdi", {}, `${value}`))]));
}

export function timesOf(result) {
  const steps = Object.entries(result.milliseconds ?? {});
  if (!steps.length) return null;
  const sum = steps.reduce((total, [, ms]) => total + ms, 0);
  return `${sum.toFixed(0)} ms (${steps.map(([step, ms]) => `${step} ${ms.toFixed(0)}`).join(", ")})`;
}

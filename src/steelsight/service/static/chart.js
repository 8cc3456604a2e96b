// Line charts as SVG, made by DOM calls: no text of strangers becomes markup.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 170, LEFT = 44, RIGHT = 10, TOP = 10, BOTTOM = 22;

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** A round number of at least `value`. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value) ?? value;
}

/**
 * Fills `host` with a chart.
 *
 * lines: [{values: [number | null], colour?, dash?, name?}]; levels: [{at, cls, label}] across;
 * out: indexes of points of the first line that stand out; ends: labels of the first and last point;
 * baseline: how many points from the left are shaded; from: lowest value shown.
 */
export function chart(host, { lines, levels = [], out = [], ends = ["", ""], baseline = 0, from = 0, unit = "", label }) {
  const width = Math.max(280, host.clientWidth);
  const values = [...lines.flatMap((line) => line.values), ...levels.map(({ at }) => at)].filter((v) => v !== null);
  const most = from + ceiling(Math.max(1e-9, ...values.map((v) => v - from)));
  const count = Math.max(2, ...lines.map((line) => line.values.length));
  const x = (index) => LEFT + ((width - LEFT - RIGHT) * index) / (count - 1);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - from) / (most - from));
  const picture = draw("svg", { class: "chart", height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label });
  if (baseline > 1) {
    picture.append(draw("rect", { class: "baseline", x: x(0), y: TOP, width: x(baseline - 1) - x(0), height: HEIGHT - TOP - BOTTOM }));
  }
  for (const part of [0, 0.5, 1]) {
    const value = from + (most - from) * part;
    picture.append(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    picture.append(draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, `${Number(value.toPrecision(3))}${unit}`));
  }
  for (const { at, cls, label: text } of levels) {
    picture.append(draw("line", { class: cls, x1: LEFT, x2: width - RIGHT, y1: y(at), y2: y(at) }));
    picture.append(draw("text", { x: LEFT + 6, y: y(at) - 4 }, text));
  }
  for (const { values: points, colour, dash } of lines) {
    let path = "", pen = "M";
    points.forEach((value, index) => {
      if (value === null) pen = "M";
      else {
        path += `${pen}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
      }
    });
    const line = draw("path", { class: "line", d: path || "M0 0" });
    if (colour) line.style.stroke = colour;
    if (dash?.length) line.style.strokeDasharray = dash.join(" ");
    picture.append(line);
  }
  for (const index of out) {
    const [px, py] = [x(index), y(lines[0].values[index])];
    // A shape of its own, not only a colour.
    picture.append(draw("path", { class: "out", d: `M${px} ${py - 7}l7 7l-7 7l-7 -7z` }));
  }
  picture.append(draw("text", { x: LEFT, y: HEIGHT - 5 }, ends[0]));
  picture.append(draw("text", { x: width - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, ends[1]));
  host.replaceChildren(picture);
}

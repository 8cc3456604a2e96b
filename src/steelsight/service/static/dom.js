// Makes elements. Text is always text: nothing of a frame is ever read as HTML.

/** make("td", {class: "number", title: "..."}, "text" | element, ...) */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const byId = (id) => document.getElementById(id);

export function badge(verdict) {
  return make("span", { class: `badge ${verdict.toLowerCase()}` }, verdict);
}

/** Probability with the digits that can be read; tiny ones do not become 0. */
export function probability(value) {
  if (value == null) return "none";
  if (value > 0 && value < 0.001) return "< 0.001";
  return value > 0.999 && value < 1 ? "> 0.999" : value.toFixed(3);
}

/** Reasons in words for people; the code stays beside them. */
export const REASONS = {
  unreadable: "the file could not be read",
  "not-a-file": "this is no file",
  empty: "the file is empty",
  "not-an-image": "this is no image that we know",
  "unsupported-format": "an image format that is not taken",
  "wrong-extension": "the name claims another format than the content has",
  truncated: "the image ends too early",
  "decode-failed": "the image is damaged",
  "decoder-crashed": "the image decoder broke on it",
  "decoder-hung": "the image decoder did not finish",
  "decoder-memory": "the image wanted too much memory",
  "multiple-frames": "several pictures in one file",
  "too-large": "too large",
  "wrong-size": "too small for the network",
  "unsupported-pixels": "pixels of a kind that would have to be guessed",
  coloured: "coloured, though the camera should be grey",
  blank: "practically one flat grey: no light, no strip?",
  "not-finite": "the network gave no number",
  "engine-failed": "the engine failed on this frame",
  timeout: "no verdict in time",
  "not-localised": "faulty as a whole, no single region stands out",
};

// Masks as run-length encoding: pairs of start and length, 1-based, down the columns first (Kaggle).
// Masks are row-major Uint8Array of 0 and 1.

/** Pairs of 0-based start and length. */
function runs(text) {
  return text.trim() === "" ? [] : text.trim().split(/\s+/).map(Number);
}

/**
 * The mask of a box [x, y, width, height] of a frame (the whole frame by default).
 * Pixels outside the box are left out.
 */
export function decodeRle(text, width, height, box = [0, 0, width, height]) {
  const [left, top, boxWidth, boxHeight] = box;
  const mask = new Uint8Array(boxWidth * boxHeight);
  const numbers = runs(text);
  for (let i = 0; i + 1 < numbers.length; i += 2) {
    let at = numbers[i] - 1;
    let length = Math.min(numbers[i + 1], width * height - at);
    while (length > 0) {
      const x = Math.floor(at / height), y = at % height;
      const part = Math.min(length, height - y);
      if (x >= left && x < left + boxWidth) {
        const last = Math.min(y + part, top + boxHeight) - top;
        for (let row = Math.max(y, top) - top; row < last; row++) mask[row * boxWidth + x - left] = 1;
      }
      at += part;
      length -= part;
    }
  }
  return mask;
}

/** The text of a whole frame's mask; "" if it is empty. */
export function encodeRle(mask, width, height) {
  const parts = [];
  let start = -1;
  for (let x = 0, at = 0; x < width; x++) {
    for (let y = 0; y < height; y++, at++) {
      if (mask[y * width + x]) {
        if (start < 0) start = at;
      } else if (start >= 0) {
        parts.push(start + 1, at - start);
        start = -1;
      }
    }
  }
  if (start >= 0) parts.push(start + 1, width * height - start);
  return parts.join(" ");
}

/** The box [x, y, width, height] around all pixels of a mask, or null if there is none. */
export function boundsOf(mask, width, height) {
  let left = width, right = -1, top = -1, bottom = -1;
  for (let y = 0; y < height; y++) {
    const first = mask.indexOf(1, y * width);
    if (first < 0) break;
    if (first >= (y + 1) * width) {
      y = Math.floor(first / width) - 1;
      continue;
    }
    const last = mask.lastIndexOf(1, (y + 1) * width - 1);
    if (top < 0) top = y;
    bottom = y;
    left = Math.min(left, first - y * width);
    right = Math.max(right, last - y * width);
  }
  return top < 0 ? null : [left, top, right - left + 1, bottom - top + 1];
}

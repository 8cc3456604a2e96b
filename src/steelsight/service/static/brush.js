// Masks that a person corrects, one for each type, as large as the frame. Knows nothing of the page.

import { boundsOf, decodeRle, encodeRle } from "./rle.js";

const MOST_STROKES = 20, MOST_KEPT_BYTES = 256e6;

export class Painting {
  /** Begins with the regions of a result. */
  constructor(width, height, classIds, defects) {
    this.width = width;
    this.height = height;
    this.masks = new Map(classIds.map((id) => [id, new Uint8Array(width * height)]));
    for (const defect of defects) {
      const mask = this.masks.get(defect.class);
      if (!mask) continue;
      const [left, top, boxWidth, boxHeight] = defect.bbox_xywh;
      const part = decodeRle(defect.rle, width, height, defect.bbox_xywh);
      for (let row = 0; row < boxHeight; row++) {
        const to = (top + row) * width + left;
        for (let i = 0; i < boxWidth; i++) mask[to + i] |= part[row * boxWidth + i];
      }
    }
    this._before = [];
  }

  /** Whether anything is other than it was in the beginning. */
  get changed() {
    return this._before.length > 0;
  }

  /** Call before a stroke: `undo` comes back to here. */
  begin() {
    this._before.push(new Map([...this.masks].map(([id, mask]) => [id, mask.slice()])));
    const each = this.width * this.height * this.masks.size;
    const most = Math.max(1, Math.min(MOST_STROKES, Math.floor(MOST_KEPT_BYTES / each)));
    if (this._before.length > most) this._before.shift();
  }

  undo() {
    const before = this._before.pop();
    if (before) this.masks = before;
    return before !== undefined;
  }

  /** A round brush along a line; value 1 draws, 0 erases. */
  stroke(classId, [x0, y0], [x1, y1], radius, value) {
    const mask = this.masks.get(classId);
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(1, radius / 2)));
    for (let step = 0; step <= steps; step++) {
      const x = x0 + ((x1 - x0) * step) / steps, y = y0 + ((y1 - y0) * step) / steps;
      const top = Math.max(0, Math.floor(y - radius)), bottom = Math.min(this.height - 1, Math.floor(y + radius));
      for (let row = top; row <= bottom; row++) {
        const half = radius * radius - (row + 0.5 - y) ** 2;
        if (half < 0) continue;
        const reach = Math.sqrt(half);
        const left = Math.max(0, Math.ceil(x - reach - 0.5)), right = Math.min(this.width, Math.floor(x + reach + 0.5));
        if (right > left) mask.fill(value, row * this.width + left, row * this.width + right);
      }
    }
  }

  /** Pixels of the connected region around a place of a type; 8 neighbours, as the engine counts. */
  regionAt(classId, x, y) {
    const { width, height } = this;
    const mask = this.masks.get(classId);
    const start = Math.floor(y) * width + Math.floor(x);
    if (!(x >= 0 && y >= 0 && x < width && y < height) || !mask[start]) return null;
    const found = new Uint8Array(mask.length);
    const open = [start];
    found[start] = 1;
    while (open.length) {
      const at = open.pop();
      const column = at % width;
      for (let dy = -1; dy <= 1; dy++) {
        for (let dx = -1; dx <= 1; dx++) {
          const next = at + dy * width + dx;
          if (column + dx < 0 || column + dx >= width || next < 0 || next >= mask.length) continue;
          if (mask[next] && !found[next]) {
            found[next] = 1;
            open.push(next);
          }
        }
      }
    }
    return found;
  }

  /** Takes a region out of a type, and gives it to another if there is one. */
  move(region, from, to = null) {
    const source = this.masks.get(from), target = to && this.masks.get(to);
    for (let i = 0; i < region.length; i++) {
      if (!region[i]) continue;
      source[i] = 0;
      if (target) target[i] = 1;
    }
  }

  clear() {
    for (const mask of this.masks.values()) mask.fill(0);
  }

  /** Masks with their boxes, for FrameView; empty ones are left out. */
  parts() {
    return [...this.masks].flatMap(([id, mask]) => {
      const bbox = boundsOf(mask, this.width, this.height);
      return bbox ? [{ id, bbox, mask: cut(mask, this.width, bbox) }] : [];
    });
  }

  /** RLE by type; empty ones are left out. */
  labels() {
    const found = {};
    for (const [id, mask] of this.masks) {
      const rle = encodeRle(mask, this.width, this.height);
      if (rle) found[id] = rle;
    }
    return found;
  }
}

function cut(mask, stride, [left, top, width, height]) {
  const part = new Uint8Array(width * height);
  for (let row = 0; row < height; row++) {
    const from = (top + row) * stride + left;
    part.set(mask.subarray(from, from + width), row * width);
  }
  return part;
}

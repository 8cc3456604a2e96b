// A frame on a canvas with outlined regions: zoom, pan, choose. Regions are kept as paths along the
// edges of their pixels, so that lines stay thin and dashes even at any zoom and any frame size.

import { make } from "./dom.js";

const MOST_ZOOM = 32;
const KEY_STEP_PX = 60;
const CLICK_WITHIN_PX = 5;

/**
 * The path around the pixels of a mask, in frame coordinates; holes run the other way round.
 *
 * Edges are directed so that the region is on their right; they are followed from corner to corner.
 */
export function outlineOf(mask, [left, top, width, height]) {
  const path = new Path2D();
  const stride = width + 1;
  // Edges that leave a corner: 1 right, 2 down, 4 left, 8 up.
  const leaving = new Uint8Array(stride * (height + 1));
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!mask[at]) continue;
      const corner = y * stride + x;
      if (y === 0 || !mask[at - width]) leaving[corner] |= 1;
      if (x === width - 1 || !mask[at + 1]) leaving[corner + 1] |= 2;
      if (y === height - 1 || !mask[at + width]) leaving[corner + stride + 1] |= 4;
      if (x === 0 || !mask[at - 1]) leaving[corner + stride] |= 8;
    }
  }
  const step = [1, stride, -1, -stride];
  for (let start = 0; start < leaving.length; start++) {
    while (leaving[start]) {
      let corner = start, direction = -1;
      do {
        // At a corner that two regions share turn right first: they stay two.
        const turns = direction < 0 ? [0, 1, 2, 3] : [1, 0, 3].map((turn) => (direction + turn) % 4);
        const next = turns.find((one) => leaving[corner] & (1 << one));
        if (next !== direction) {
          const x = left + (corner % stride), y = top + Math.floor(corner / stride);
          if (direction < 0) path.moveTo(x, y);
          else path.lineTo(x, y);
        }
        direction = next;
        leaving[corner] &= ~(1 << direction);
        corner += step[direction];
      } while (corner !== start);
      path.closePath();
    }
  }
  return path;
}

export class FrameView {
  /** Puts a canvas and its buttons into an element; `label` names it for screen readers. */
  constructor(host, { label }) {
    this.fillOpacity = 0.14;
    this.outlines = true;
    this.onPick = () => {};
    this.onPointer = () => false;
    this._regions = [];
    this._highlighted = null;
    this._bitmap = null;
    this._size = [1, 1];
    this._pointers = new Map();
    this._drawing = 0;
    this.canvas = make("canvas", { tabindex: "0", role: "img", "aria-label": label });
    const button = (text, title, act) => {
      const made = make("button", { type: "button", title, "aria-label": title }, text);
      made.addEventListener("click", act);
      return made;
    };
    const buttons = make(
      "div", { class: "view-buttons" },
      button("+", "Zoom in (+)", () => this.zoomBy(1.5)),
      button("−", "Zoom out (-)", () => this.zoomBy(1 / 1.5)),
      button("Fit", "Whole frame (0)", () => this.fit()),
    );
    host.classList.add("view");
    host.append(this.canvas, buttons);
    this._listen();
    new ResizeObserver(() => this._resized()).observe(host);
    this._host = host;
  }

  /** Shows another frame; `bitmap` may be null if the browser cannot show it. */
  setFrame(bitmap, width, height) {
    this._bitmap = bitmap;
    this._size = [width, height];
    this._resized();
    this.fit();
  }

  /** Regions: {key, classId, colour, dash, bbox, mask}; the mask of the box or of the whole frame. */
  setRegions(regions) {
    this._regions = regions.map((region) => this._made(region));
    this._draw();
  }

  /** Another mask for one region, of the same extent as before. */
  updateRegion(key, mask) {
    const index = this._regions.findIndex((region) => region.key === key);
    if (index < 0) return;
    this._regions[index] = this._made({ ...this._regions[index], mask });
    this._draw();
  }

  highlight(key) {
    if (this._highlighted === key) return;
    this._highlighted = key;
    this._draw();
  }

  redraw() {
    this._draw();
  }

  fit() {
    this._scale = this._fitScale();
    this._centre = [this._size[0] / 2, this._size[1] / 2];
    this._draw();
  }

  /** Shows a box [x, y, width, height] of the frame with some steel around it. */
  zoomTo([x, y, width, height]) {
    const shown = this.canvas.getBoundingClientRect();
    const scale = Math.min(shown.width / (width * 1.3), shown.height / (height * 1.3), 8);
    this._scale = Math.max(scale, this._fitScale());
    this._centre = [x + width / 2, y + height / 2];
    this._draw();
  }

  zoomBy(factor, at = null) {
    const before = at && this.toFrame(at);
    this._scale = Math.min(MOST_ZOOM, Math.max(this._fitScale(), this._scale * factor));
    if (before) {
      const after = this.toFrame(at);
      this._centre = this._centre.map((value, i) => value + before[i] - after[i]);
    }
    this._draw();
  }

  /** Frame coordinates of a pointer event. */
  toFrame(event) {
    const shown = this.canvas.getBoundingClientRect();
    return [
      (event.clientX - shown.left - shown.width / 2) / this._scale + this._centre[0],
      (event.clientY - shown.top - shown.height / 2) / this._scale + this._centre[1],
    ];
  }

  /** Key of the smallest region that holds a place of the frame, or null. */
  regionAt(x, y) {
    const found = this._regions.filter(({ mask, box: [left, top, width, height] }) => {
      const column = Math.floor(x) - left, row = Math.floor(y) - top;
      return column >= 0 && row >= 0 && column < width && row < height && mask[row * width + column];
    });
    found.sort((a, b) => a.box[2] * a.box[3] - b.box[2] * b.box[3]);
    return found.length ? found[0].key : null;
  }

  _made(region) {
    const [width, height] = this._size;
    const whole = region.mask.length === width * height;
    const box = whole ? [0, 0, width, height] : region.bbox;
    return { ...region, box, path: outlineOf(region.mask, box) };
  }

  _fitScale() {
    const shown = this.canvas.getBoundingClientRect();
    return Math.max(1e-3, Math.min(shown.width / this._size[0], shown.height / this._size[1]));
  }

  _resized() {
    const width = this._host.clientWidth;
    const wanted = (width * this._size[1]) / this._size[0];
    const height = Math.round(Math.min(Math.max(wanted, 140), window.innerHeight * 0.7));
    this.canvas.style.height = `${height}px`;
    const ratio = window.devicePixelRatio || 1;
    const fitted = this._scale === undefined || this._scale <= this._lastFit * 1.001;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this._lastFit = this._fitScale();
    if (fitted) this.fit();
    else this._draw();
  }

  _draw() {
    if (this._drawing) return;
    this._drawing = requestAnimationFrame(() => {
      this._drawing = 0;
      this._drawNow();
    });
  }

  _drawNow() {
    const context = this.canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    const scale = this._scale * ratio;
    const [width, height] = this._size;
    // Do not lose the frame out of sight.
    this._centre = [
      Math.min(Math.max(this._centre[0], 0), width),
      Math.min(Math.max(this._centre[1], 0), height),
    ];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(
      scale, 0, 0, scale,
      this.canvas.width / 2 - this._centre[0] * scale,
      this.canvas.height / 2 - this._centre[1] * scale,
    );
    if (this._bitmap) {
      context.imageSmoothingEnabled = this._scale < 2;
      context.drawImage(this._bitmap, 0, 0, width, height);
    } else {
      context.fillStyle = "#808080";
      context.fillRect(0, 0, width, height);
    }
    const px = 1 / this._scale;
    context.lineJoin = "round";
    for (const region of this._regions) {
      const chosen = region.key === this._highlighted;
      context.fillStyle = region.colour;
      context.globalAlpha = chosen ? Math.min(1, this.fillOpacity + 0.2) : this.fillOpacity;
      context.fill(region.path);
      context.globalAlpha = 1;
      if (!this.outlines && !chosen) continue;
      // A dark line beneath: it must show on any steel.
      context.setLineDash([]);
      context.strokeStyle = "rgba(0, 0, 0, 0.65)";
      context.lineWidth = (chosen ? 6 : 4) * px;
      context.stroke(region.path);
      context.setLineDash(region.dash.map((length) => length * px));
      context.strokeStyle = region.colour;
      context.lineWidth = (chosen ? 3.5 : 2) * px;
      context.stroke(region.path);
    }
    context.setLineDash([]);
    this.canvas.dataset.zoom = (this._scale / this._fitScale()).toFixed(2);
  }

  _listen() {
    const canvas = this.canvas;
    canvas.addEventListener("wheel", (event) => {
      const out = event.deltaY > 0;
      // Where there is nothing to zoom out of the page scrolls.
      if (out && this._scale <= this._fitScale() * 1.001) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY / 400), event);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this._onKey(event));
    canvas.addEventListener("pointerdown", (event) => this._onDown(event));
    canvas.addEventListener("pointermove", (event) => this._onMove(event));
    canvas.addEventListener("pointerup", (event) => this._onUp(event));
    canvas.addEventListener("pointercancel", (event) => this._onUp(event));
  }

  _onKey(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) {
      this._centre = this._centre.map((value, i) => value + (move[i] * KEY_STEP_PX) / this._scale);
      this._draw();
    } else if (event.key === "+" || event.key === "=") this.zoomBy(1.5);
    else if (event.key === "-") this.zoomBy(1 / 1.5);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  _onDown(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this._pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (this._pointers.size === 1) {
      this._moved = 0;
      this._tool = this.onPointer("down", ...this.toFrame(event), event) === true;
    } else if (this._tool) {
      // A second finger zooms: what the first has begun ends.
      this.onPointer("cancel", ...this.toFrame(event), event);
      this._tool = false;
    }
  }

  _onMove(event) {
    const before = this._pointers.get(event.pointerId);
    if (!before) {
      this.onPointer("hover", ...this.toFrame(event), event);
      return;
    }
    const [dx, dy] = [event.clientX - before.x, event.clientY - before.y];
    this._moved += Math.hypot(dx, dy);
    if (this._tool) {
      this.onPointer("move", ...this.toFrame(event), event);
    } else if (this._pointers.size === 1) {
      this._centre = [this._centre[0] - dx / this._scale, this._centre[1] - dy / this._scale];
      this._draw();
    } else {
      const other = [...this._pointers].find(([id]) => id !== event.pointerId)[1];
      const was = Math.hypot(before.x - other.x, before.y - other.y);
      const is = Math.hypot(event.clientX - other.x, event.clientY - other.y);
      const middle = { clientX: (event.clientX + other.x) / 2, clientY: (event.clientY + other.y) / 2 };
      if (was > 0) this.zoomBy(is / was, middle);
    }
    this._pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  }

  _onUp(event) {
    if (!this._pointers.delete(event.pointerId)) return;
    if (this._tool) {
      this._tool = false;
      this.onPointer(event.type === "pointerup" ? "up" : "cancel", ...this.toFrame(event), event);
    } else if (event.type === "pointerup" && !this._pointers.size && this._moved < CLICK_WITHIN_PX) {
      this.onPick(this.regionAt(...this.toFrame(event)));
    }
  }
}

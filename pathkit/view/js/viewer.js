// The browser's side of pathkit.view.SlideViewer: tiles, read-outs, keyboard, links. Run once a figure, by a Bokeh CustomJS.
// Everything is in level-0 pixels of the first slide, y downwards (the figure's y range is reversed).

const rounded = (values) => Array.from(values, (v) => Math.round(v * 10) / 10);
const clamp = (v, lo, hi) => Math.min(Math.max(v, lo), hi);
const page = (window.pathkit ??= { groups: new Map() });

/** Where Jupyter lives: "/" or a hub's prefix; null outside Jupyter's own pages. */
const base_url = () => {
  const config = document.getElementById("jupyter-config-data");
  return config ? JSON.parse(config.textContent).baseUrl : document.body?.dataset?.baseUrl ?? null;
};

/** The tiles of one slide, painted where Bokeh's tile renderer would paint: sharp, bounded to the pyramid, no request twice. */
class Tiles {
  constructor(view, slide, number, viewer) {
    Object.assign(this, { view, slide, number, viewer, tiles: new Map(), queue: [], busy: 0, clip: [0, 1], hidden: false });
    const base = base_url();
    this.url = slide.id && base ? `${base}pathkit/tiles/${slide.id}` : null;
    this.source = slide.embedded ? "page" : this.url ? "server" : "kernel";
    Object.assign(this, { asked: new Map(), unsent: [] }); // from the kernel
    view._tiles = [];
    view._paint = (ctx) => this.paint(ctx);
    view.model.visible = true;
  }

  paint(ctx) {
    const { tile, size, levels, finest, x, y, k } = this.slide, dpr = window.devicePixelRatio;
    const { left, top, width, height } = this.view.plot_view.frame.bbox;
    const [[sx0, sx1], [sy0]] = this.view.coordinates.map_to_screen([x, x + k], [y, y + k]);
    const scale = sx1 - sx0; // screen pixels per slide pixel
    const level = clamp(Math.floor(-Math.log2(scale * dpr) + 0.1), finest, levels - 1), side = tile * 2 ** level;
    const seen = (from, length, s0, n) => [
      Math.max(0, Math.floor((from - s0) / scale / side)),
      Math.min(Math.ceil(n / side) - 1, Math.floor((from + length - s0) / scale / side)),
    ];
    const [tx0, tx1] = seen(left, width, sx0, size[0]), [ty0, ty1] = seen(top, height, sy0, size[1]);
    const snap = (v) => Math.round(v * dpr) / dpr, missing = [];
    ctx.save();
    ctx.translate(-0.5, -0.5); // Bokeh paints between the pixels, for crisp lines; that would blur a picture
    ctx.beginPath();
    ctx.rect(left + this.clip[0] * width, top, (this.clip[1] - this.clip[0]) * width, height);
    ctx.clip();
    ctx.globalAlpha = this.hidden ? 0 : this.view.model.alpha;
    ctx.imageSmoothingEnabled = scale * 2 ** level < 2;
    for (let ty = ty0; ty <= ty1; ty++)
      for (let tx = tx0; tx <= tx1; tx++) {
        const key = `${level}/${tx}/${ty}`;
        if (!this.tiles.get(key)?.image) missing.push([key, Math.hypot(tx - (tx0 + tx1) / 2, ty - (ty0 + ty1) / 2)]);
        for (let up = 0; level + up < levels; up++) { // the tile, or its part of the nearest coarser one that is here
          const at = `${level + up}/${tx >> up}/${ty >> up}`, kept = this.tiles.get(at);
          if (!kept?.image) continue;
          const part = tile / 2 ** up, px = (tx % 2 ** up) * part, py = (ty % 2 ** up) * part, ds = 2 ** (level + up);
          const w = Math.min(part, kept.image.width - px), h = Math.min(part, kept.image.height - py);
          const x0 = sx0 + ((tx >> up) * tile + px) * ds * scale, y0 = sy0 + ((ty >> up) * tile + py) * ds * scale;
          const box = [x0, y0, x0 + w * ds * scale, y0 + h * ds * scale].map(snap); // ends where the next tile begins
          if (w > 0 && h > 0) ctx.drawImage(kept.image, px, py, w, h, box[0], box[1], box[2] - box[0], box[3] - box[1]);
          this.tiles.delete(at), this.tiles.set(at, kept); // used last
          break;
        }
      }
    ctx.restore();
    this.level = level;
    const top_tile = `${levels - 1}/0/0`;
    this.queue = missing.sort((a, b) => a[1] - b[1]).map(([key]) => key);
    if (!this.tiles.has(top_tile)) this.queue.unshift(top_tile);
    this.sharp = missing.length == 0;
    this.pump();
    clearTimeout(this.idle);
    if (this.sharp && this.source == "server") this.idle = setTimeout(() => { // a ring around the view, once it rests
      const around = [];
      for (let ty = ty0 - 1; ty <= ty1 + 1; ty++)
        for (let tx = tx0 - 1; tx <= tx1 + 1; tx++)
          if (tx >= 0 && ty >= 0 && tx * side < size[0] && ty * side < size[1]) around.push(`${level}/${tx}/${ty}`);
      this.queue.push(...around), this.pump();
    }, 150);
  }

  pump() {
    while (this.busy < 8 && this.queue.length) {
      const key = this.queue.shift();
      if (!this.tiles.has(key)) this.load(key);
    }
  }

  async load(key) {
    const kept = { image: null };
    this.tiles.set(key, kept);
    this.busy++;
    const late = setTimeout(() => this.viewer.say("late", this.source), 3000);
    try {
      const source = { page: this.from_page, server: this.from_server, kernel: this.from_kernel }[this.source];
      kept.image = await createImageBitmap(await source.call(this, key));
      this.viewer.say("tiles", this.source);
      for (const [old, { image }] of this.tiles) { // least recently used first
        if (this.tiles.size <= 250) break;
        if (image && old != `${this.slide.levels - 1}/0/0`) image.close(), this.tiles.delete(old);
      }
    } catch (error) {
      setTimeout(() => (this.tiles.delete(key), this.view.request_paint()), error.cause?.wait ?? 500);
    }
    clearTimeout(late);
    this.busy--;
    this.view.request_paint();
    this.pump();
  }

  async from_page(key) {
    return (await fetch(this.slide.embedded[key])).blob();
  }

  async from_server(key) {
    const answer = await fetch(`${this.url}/${key}.jpg`).catch(() => ({ ok: false, status: 0 }));
    if (answer.ok) return answer.blob();
    if (answer.status != 503) this.source = "kernel"; // no extension here, or the registration is gone
    throw new Error(`tile ${key}: ${answer.status}`);
  }

  from_kernel(key) {
    const ask = () => {
      if (!this.unsent.length) setTimeout(() => this.viewer.send({ k: "tiles", s: this.number, t: this.unsent.splice(0) }), 5);
      this.unsent.push(key);
    };
    ask(); // and again: a message may be lost, when the kernel's comms were away
    return new Promise((got, failed) => this.asked.set(key, { got, failed, again: setInterval(ask, 10_000) }));
  }

  async answer(key, uri) {
    const { got, failed, again } = this.asked.get(key) ?? {};
    this.asked.delete(key);
    clearInterval(again);
    if (uri) got?.(await (await fetch(uri)).blob());
    else failed?.(new Error(`tile ${key} cannot be read`, { cause: { wait: 10_000 } })); // Python has said why
  }
}

const STYLE = `
.pk { position: absolute; font: 12px/1.5 system-ui, sans-serif; color: #111; pointer-events: none; text-shadow: 0 0 3px #fff, 0 0 3px #fff; }
.pk-box { background: rgb(255 255 255 / 82%); border-radius: 3px; padding: 0 6px; text-shadow: none; white-space: nowrap; }
.pk-bar { border: solid #111; border-width: 0 2px 3px; text-align: center; white-space: nowrap; height: 20px; box-shadow: 0 2px 0 #fff; background: rgb(255 255 255 / 70%); }
.pk-map { border: 1px solid #555; background: #fff center/100% 100%; pointer-events: auto; cursor: crosshair; overflow: hidden; }
.pk-map div { position: absolute; border: 2px solid #d55e00; box-sizing: border-box; min-width: 5px; min-height: 5px; }
.pk-full { pointer-events: auto; cursor: pointer; }
.pk-line { background: #d55e00; opacity: 0.8; }
.pk-swipe { width: 14px; margin-left: -7px; pointer-events: auto; cursor: ew-resize; background: linear-gradient(90deg, transparent 6px, #111 6px 8px, transparent 8px); }`;
const CORNERS = '<svg width="12" height="12" style="vertical-align:-1px"><path d="M1 4V1h3M8 1h3v3M11 8v3H8M4 11H1V8" fill="none" stroke="#111" stroke-width="1.6"/></svg>';
const HELP = {
  server: "", page: "",
  kernel: "Tiles by the kernel",
  slow: "No tile for 3 s: Jupyter's server is busy or the slide's disk slow; tiles follow",
  late: "No tile for 3 s: the kernel is busy, tiles follow when its cell ends. Tiles that never wait: start Jupyter with the extension pathkit.view.server (jupyter server extension list)",
};

const DELETED = "click one and press backspace to delete it";
const GESTURES = { // of the active tool
  PolyDrawTool: `Click corner by corner, a double click or Enter ends; hold the first corner to begin inside a shape; ${DELETED}`,
  FreehandDrawTool: `Drag along the outline; ${DELETED}`,
  BoxEditTool: `Drag from corner to corner; drag a box to move it; ${DELETED}`,
  PointDrawTool: `Click; drag a point to move it; ${DELETED}`,
  PolyEditTool: "Click a shape, then drag its corners; hold one to add another; click a corner and press backspace to delete it",
  LassoSelectTool: "Drag around what to select; without lasso, click it",
};

class Viewer {
  constructor(args, figure, plot, index) {
    Object.assign(this, { ...args, figure, plot, sent: 0, lines: {} });
    const { spec } = args;
    this.tiles = this.bases.map((base, i) => new Tiles(index.find_one(base), spec.slides[i], i, this));
    const root = plot.shadow_el ?? plot.el;
    root.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    const make = (name, parent = root) => parent.appendChild(Object.assign(document.createElement("div"), { className: name }));
    Object.assign(this, { bar: make("pk pk-bar"), readout: make("pk pk-box pk-readout"), line: make("pk pk-box pk-status") });
    this.lines = { x: make("pk pk-line"), y: make("pk pk-line") };
    Object.assign(this, { swipe: make("pk pk-swipe"), map: make("pk pk-map"), full: make("pk pk-box pk-full") });
    Object.assign(this.full, { innerHTML: CORNERS, title: "Full screen (f)", onclick: () => this.fill() });
    this.here = make("", this.map);
    this.map.style.backgroundImage = `url(${spec.thumbnail})`;
    this.line.hidden = this.swipe.hidden = true;
    for (const line of Object.values(this.lines)) line.hidden = true;
    this.map.addEventListener("pointerdown", (e) => {
      const box = this.map.getBoundingClientRect(), [w, h] = spec.slides[0].size;
      this.go(((e.clientX - box.x) / box.width) * w, ((e.clientY - box.y) / box.height) * h);
    });
    this.swipe.addEventListener("pointerdown", (e) => this.swipe.setPointerCapture(e.pointerId));
    this.swipe.addEventListener("pointermove", (e) => e.buttons && this.compare("swipe", this.at + e.movementX / this.frame.width));
    this.keyboard();
    this.pinch();
    this.gestures();
    for (const range of [this.xr, this.yr]) range.change.connect(() => this.going || ((this.whole = null), this.moved()));
    this.down.properties.data.change.connect(() => this.hear(JSON.parse(this.down.get("msg")[0])));
    figure.on_event("mousemove", (e) => this.pointed(e.x, e.y));
    figure.on_event("mouseleave", () => this.pointed(NaN, NaN));
    figure.on_event("selectiongeometry", ({ final, geometry: g }) => final && this.send({ k: "lasso", g: { ...g, ...(g.x && { x: rounded(g.x), y: rounded(g.y) }) } }));
    figure.on_event("tap", (e) => this.drawing || this.send({ k: "tap", x: e.x, y: e.y, r: 8 / this.scale }));
    for (const tool of figure.toolbar.tools) tool.properties.active?.change.connect(() => this.tell());
    for (const source of Object.values(this.drawn)) // tools that draw tell one or the other
      for (const signal of [source.change, source.properties.data.change]) signal.connect(() => this.changed());
    this.whole = [this.xr.start, this.yr.end, this.xr.end, this.yr.start];
    this.resized();
    this.send({ k: "hello" });
  }

  get frame() { return this.plot.frame.bbox; }
  get scale() { return this.frame.width / (this.xr.end - this.xr.start); } // screen pixels per level-0 pixel
  get centre() { return [(this.xr.start + this.xr.end) / 2, (this.yr.start + this.yr.end) / 2]; }
  get drawing() { return this.figure.toolbar.tools.some((t) => t.active && /(Draw|Edit)Tool$/.test(t.type)); }

  send(message) { this.up.data = { msg: [JSON.stringify({ ...message, n: ++this.sent })] }; }

  hear(m) {
    if (m.k == "tiles") for (const [key, uri] of Object.entries(m.t)) this.tiles[m.s].answer(key, uri);
    if (m.k == "go") this.go(m.x, m.y, m.scale ?? this.scale);
    if (m.k == "home") this.home();
    if (m.k == "compare") this.compare(m.mode, 0.5);
    if (m.k == "link") {
      if (!page.groups.has(m.group)) page.groups.set(m.group, new Set());
      page.groups.get(m.group).add(this);
    }
  }

  allowed(scale) {
    const { width, height } = this.frame, [w, h] = this.spec.slides[0].size;
    return clamp(scale, Math.min(width / w, height / h) / 4, 16);
  }

  go(x, y, scale = this.scale, whole = null) {
    this.whole = whole; // what is seen whole at any size of the frame, until somebody moves
    const { width, height } = this.frame;
    scale = this.allowed(scale);
    this.going = true;
    this.xr.setv({ start: x - width / scale / 2, end: x + width / scale / 2 });
    this.yr.setv({ start: y + height / scale / 2, end: y - height / scale / 2 });
    this.going = false;
    this.moved();
  }

  home() {
    const [w, h] = this.spec.slides[0].size;
    this.whole = [-0.01 * w, -0.01 * h, 1.01 * w, 1.01 * h];
    this.resized();
  }

  resized() { // what was whole stays whole; else the same centre and scale at every size
    const { width, height } = this.frame;
    if (!(width > 0 && height > 0)) return;
    const [x0, y0, x1, y1] = this.whole ?? [];
    if (this.whole) this.go((x0 + x1) / 2, (y0 + y1) / 2, Math.min(width / (x1 - x0), height / (y1 - y0)), this.whole);
    else this.go(...this.centre, this.kept_scale);
  }

  moved() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      const skew = (this.scale * (this.yr.start - this.yr.end)) / this.frame.height;
      if (Math.abs(skew - 1) > 1e-3 || Math.abs(this.allowed(this.scale) / this.scale - 1) > 0.01) return this.go(...this.centre, this.scale, this.whole);
      this.kept_scale = this.scale;
      this.show();
      this.others((other, unit) => {
        other.following = true;
        other.go(...this.centre.map((c) => c * unit), this.scale / unit);
      });
      clearTimeout(this.telling);
      const { width, height } = this.frame;
      const box = [this.xr.start, this.yr.end, this.xr.end, this.yr.start].map((v) => Math.round(v * 100) / 100);
      this.telling = setTimeout(() => this.send({ k: "view", v: box, w: Math.round(width), h: Math.round(height), a: Boolean(this.whole) }), this.pressed ? 300 : 100); // few while it is dragged
    });
  }

  others(act) { // each viewer that is linked to this one, and its pixels per pixel here
    if (this.following) return void (this.following = false);
    for (const group of page.groups.values())
      if (group.has(this)) for (const other of group)
        if (!other.plot.el.isConnected) group.delete(other);
        else if (other != this) act(other, this.spec.mpp && other.spec.mpp ? this.spec.mpp / other.spec.mpp : 1);
  }

  show() { // scale bar, read-out, minimap
    const { left, top, width, height } = this.frame, { mpp, slides } = this.spec, um = mpp ?? 1, place = (e, s) => Object.assign(e.style, s);
    const goal = (150 / this.scale) * um, ten = 10 ** Math.floor(Math.log10(goal)), nice = [5, 2, 1].find((n) => n * ten <= goal) * ten;
    this.bar.textContent = mpp ? (nice >= 1000 ? `${nice / 1000} mm` : `${+nice.toPrecision(1)} µm`) : `${nice} px`;
    place(this.bar, { left: `${left + 14}px`, top: `${top + height - 36}px`, width: `${(nice / um) * this.scale}px` });
    const power = mpp ? `${+((10 * this.scale) / mpp).toPrecision(2)}×` : `${+(100 * this.scale).toPrecision(2)}%`;
    const n = (v) => Math.round(v).toLocaleString("en");
    const cursor = isFinite(this.x) ? ` · x ${n(this.x)}, y ${n(this.y)} px${mpp ? ` · ${n(this.x * mpp)}, ${n(this.y * mpp)} µm` : ""}` : "";
    this.readout.textContent = `${power} · level ${this.tiles[0].level ?? "–"}${cursor}`;
    place(this.readout, { right: `${this.plot.bbox.width - left - width + 40}px`, top: `${top + height - 28}px` });
    place(this.full, { right: `${this.plot.bbox.width - left - width + 8}px`, top: `${top + height - 28}px` });
    place(this.line, { left: `${left + 8}px`, top: `${top + 8}px`, maxWidth: `${width - 200}px`, whiteSpace: "normal" });
    const [w, h] = slides[0].size, side = 140 / Math.max(w, h), whole = (this.xr.start > 0 || this.xr.end < w || this.yr.end > 0 || this.yr.start < h);
    this.map.hidden = !whole;
    place(this.map, { left: `${left + width - w * side - 8}px`, top: `${top + 8}px`, width: `${w * side}px`, height: `${h * side}px` });
    place(this.here, { left: `${this.xr.start * side}px`, top: `${this.yr.end * side}px`, width: `${(width / this.scale) * side}px`, height: `${(height / this.scale) * side}px` });
    place(this.swipe, { left: `${left + width * (this.at ?? 0.5)}px`, top: `${top}px`, height: `${height}px` });
  }

  pointed(x, y) {
    Object.assign(this, { x, y });
    this.show();
    this.following = false;
    this.others((other, unit) => other.cross(x * unit, y * unit));
  }

  cross(x, y) { // where the pointer is in a linked viewer
    const { left, top, width, height } = this.frame, sx = left + (x - this.xr.start) * this.scale, sy = top + (y - this.yr.end) * this.scale;
    for (const line of Object.values(this.lines)) line.hidden = !(sx > left && sx < left + width && sy > top && sy < top + height);
    Object.assign(this.lines.x.style, { left: `${sx}px`, top: `${top}px`, width: "1px", height: `${height}px` });
    Object.assign(this.lines.y.style, { left: `${left}px`, top: `${sy}px`, width: `${width}px`, height: "1px" });
  }

  compare(mode, at) { // the second slide: right of the line, every other moment, or mixed (by its opacity)
    const second = this.tiles[1];
    if (!second) return;
    clearInterval(this.blinking);
    this.at = clamp(at, 0.02, 0.98);
    Object.assign(second, { clip: mode == "swipe" ? [this.at, 1] : [0, 1], hidden: false });
    this.swipe.hidden = mode != "swipe";
    if (mode == "blink") this.blinking = setInterval(() => ((second.hidden = !second.hidden), second.view.request_paint()), 700);
    this.show(), second.view.request_paint();
  }

  keyboard() {
    const { el } = this.plot, steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    el.tabIndex = 0, (el.style.outline = "none");
    let outer = el; // JupyterLab's shortcuts (0 0 restarts the kernel) must not see these keys
    while (outer.getRootNode().host) outer = outer.getRootNode().host;
    outer.dataset.lmSuppressShortcuts = "true";
    el.addEventListener("pointerdown", () => ((this.pressed = true), el.focus({ preventScroll: true })));
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => (this.pressed = false), true);
    el.addEventListener("keydown", (e) => {
      const [x, y] = this.centre, far = 0.25 / this.scale;
      if ((e.ctrlKey || e.metaKey) && e.key == "z") return this.undo(), e.preventDefault(), e.stopPropagation();
      if (e.ctrlKey || e.metaKey || e.altKey) return;
      if (e.key in steps) this.go(x + steps[e.key][0] * far * this.frame.width, y + steps[e.key][1] * far * this.frame.height);
      else if ("+=-_".includes(e.key)) this.go(x, y, this.scale * ("+=".includes(e.key) ? 1.5 : 1 / 1.5));
      else if (e.key == "0" || e.key == "Home") this.home();
      else if ("1234".includes(e.key) && this.spec.mpp) this.go(x, y, ((5 * 2 ** (e.key - 1)) / 10) * this.spec.mpp); // 5 to 40 x
      else if (e.key == "f") this.fill();
      else if (e.key == "Enter" && this.poly?._drawing) this.end();
      else return;
      e.preventDefault(), e.stopPropagation();
    });
  }

  pinch() { // two fingers, on the screen or on a trackpad (a wheel with ctrl): what is under them stays under them
    const area = this.plot.canvas_view.events_el, fingers = new Map();
    const own = (e) => (e.preventDefault(), e.stopPropagation());
    const place = (x, y) => ((box) => [x - box.x - this.frame.left, y - box.y - this.frame.top])(area.getBoundingClientRect());
    const zoom = ([fx, fy], factor, [tx, ty] = [fx, fy]) => {
      const scale = this.allowed(this.scale * factor), { width, height } = this.frame;
      this.go(this.xr.start + fx / this.scale + (width / 2 - tx) / scale, this.yr.end + fy / this.scale + (height / 2 - ty) / scale, scale);
    };
    const hand = () => (([a, b]) => [place((a.x + b.x) / 2, (a.y + b.y) / 2), Math.hypot(a.x - b.x, a.y - b.y)])([...fingers.values()]);
    const on = (types, act) => types.split(" ").forEach((type) => this.plot.el.addEventListener(type, act, { capture: true, passive: false }));
    let before = null; // where the hand was; Bokeh sees nothing of a gesture of two fingers until both are away
    on("pointerdown", (e) => {
      if (e.pointerType != "touch") return;
      fingers.set(e.pointerId, e);
      if (fingers.size < 2) return;
      own(e);
      for (const { pointerId, clientX, clientY } of before ? [] : fingers.values())
        area.dispatchEvent(new PointerEvent("pointercancel", { pointerId, clientX, clientY }));
      before = fingers.size == 2 ? hand() : before;
    });
    on("pointermove", (e) => {
      if (!fingers.has(e.pointerId)) return;
      fingers.set(e.pointerId, e);
      if (!before) return;
      own(e);
      if (fingers.size != 2) return;
      const now = hand();
      zoom(before[0], now[1] / before[1], now[0]);
      before = now;
    });
    on("pointerup pointercancel", (e) => {
      if (!e.isTrusted || !fingers.delete(e.pointerId)) return;
      if (before) own(e);
      if (fingers.size == 2) before = hand();
      if (!fingers.size) before = null;
    });
    on("wheel", (e) => e.ctrlKey && (own(e), zoom(place(e.clientX, e.clientY), Math.exp(-e.deltaY * (e.deltaMode ? 0.16 : 0.01)))));
  }

  gestures() { // of the tools that draw, as other viewers have them; Bokeh's own begin with a press or with shift
    const view = (type) => this.plot.tool_views.get(this.figure.toolbar.tools.find((t) => t.type == type));
    const [poly, edit, box] = ["PolyDrawTool", "PolyEditTool", "BoxEditTool"].map(view), { areas } = this.drawn;
    if (!poly) return; // a page without Python
    const tapped = poly._tap.bind(poly), picked = edit._tap.bind(edit);
    this.poly = poly;
    let last = { sx: NaN, sy: NaN, at: 0 };
    poly._tap = poly._doubletap = (e) => { // Bokeh calls two quick corners a double click, however far they are apart
      const begun = poly._drawing, twice = Math.hypot(e.sx - last.sx, e.sy - last.sy) < 8 && performance.now() - last.at < 500;
      last = { sx: e.sx, sy: e.sy, at: performance.now() };
      if (begun && twice) return this.end();
      tapped(e);
      if (!begun && !areas.selected.indices.length) poly._press(e);
    };
    edit._tap = (e) => {
      picked(e);
      if (!edit._drawing && !edit.model.vertex_renderer.data_source.selected.indices.length) edit._show_vertices(e);
    };
    let fresh = false; // a new box, or one that is moved
    for (const name of ["_pan_start", "_pan", "_pan_end"]) {
      const plain = box[name].bind(box);
      box[name] = (e, ...rest) => {
        if (name == "_pan_start") fresh = e.modifiers.shift || !box._select_event(e, "replace", box.model.renderers).length;
        plain({ ...e, modifiers: { ...e.modifiers, shift: fresh } }, ...rest);
      };
    }
  }

  end(keep = true) { // the polygon that is being drawn; its last corner follows the pointer
    const { poly } = this, xs = this.drawn.areas.get("xs") ?? [];
    if (!poly?._drawing || (keep && xs.at(-1).length < 4)) return;
    poly._drawing = false;
    if (keep) return poly._remove();
    this.drawn.areas.selected.indices = [xs.length - 1];
    poly._delete_selected(poly.model.renderers[0]);
  }

  changed() { // a drawing was finished, edited or deleted
    clearTimeout(this.drew);
    const column = (source, name) => Array.from(source.get(name) ?? [], (v) => (v?.length != null && typeof v != "string" ? Array.from(v) : v));
    const said = () => Object.fromEntries(Object.entries(this.drawn).map(([kind, source]) =>
      [kind, Object.fromEntries(source.columns().map((name) => [name, column(source, name)]))]));
    this.drew = setTimeout(() => (this.pressed ? this.changed() : this.poly?._drawing || this.send({ k: "drawn", d: said() })), 150);
  }

  fill() { document.fullscreenElement ? document.exitFullscreen() : this.plot.el.requestFullscreen(); }

  undo() { this.poly?._drawing ? this.end(false) : this.send({ k: "undo" }); }

  say(what, source) {
    this.status = HELP[what != "late" ? source : source == "kernel" ? "late" : "slow"];
    this.tell();
  }

  tell() { // where tiles come from, where that matters; how to use the active tool
    const gestures = this.figure.toolbar.tools.filter((t) => t.active).map((t) => GESTURES[t.type]);
    this.line.textContent = [this.status, ...gestures].filter(Boolean).join(" · ");
    this.line.hidden = !this.line.textContent;
    for (const tool of this.figure.toolbar.tools) if (tool.type == "HoverTool") tool.active = !this.drawing;
  }
}

export default (args, figure, _data, { index }) => {
  const plot = index.find_one(figure);
  if (!plot) return;
  if (figure.pathkit) figure.pathkit.resized();
  else figure.pathkit = new Viewer(args, figure, plot, index);
};

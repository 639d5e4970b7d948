// SPDX-License-Identifier: Apache-2.0
// Traffic between services, as an animated graph and as a table.
import { clipped } from "/paint.js";
import { inks, isDark, shade } from "/colours.js";
import { h, patch } from "/elements.js";
import { placed, ranked } from "/graph.js";
import { bytes, count } from "/words.js";
import { swatch } from "/views.js";

const MOST_DRAWN = 120, MOST_ROWS = 100;
const SIZE = { width: 150, height: 40 };
const FACE = "system-ui, \"DejaVu Sans\", sans-serif";
const OUTSIDE = "", ASKED = "→";
const KEPT = 8; // samples for which an idle connection is still shown, faintly

export class Traffic {
  #cluster; #open; #source = null; #told = null; #seen = new Map();
  #canvas = h("canvas", { role: "img", "aria-label": "Traffic between services" });
  #stage = document.createElement("canvas");
  #pen = this.#canvas.getContext("2d", { alpha: false });
  #holder = h("div", { class: "canvas" }, this.#canvas);
  #note = h("p", { class: "note soft", role: "status" });
  #table = h("div", { class: "edges" });
  #lines = []; #places = new Map(); #frame = 0; #pointed = null;
  #observer = new ResizeObserver(() => this.#layOut());
  element = h("div", { class: "traffic" }, this.#holder, this.#note, this.#table);

  constructor(cluster, open) {
    this.#cluster = cluster;
    this.#open = open;
    this.#canvas.addEventListener("pointermove", (event) => this.#point(this.#at(event)));
    this.#canvas.addEventListener("pointerleave", () => this.#point(null));
    this.#canvas.addEventListener("click", (event) => { const id = this.#at(event); if (id && id !== ASKED) this.#open(this.#hash(id)); });
  }

  /** Subscribe only while it is visible: sampling costs the nodes resources. */
  attach() {
    this.#told = null;
    this.#seen.clear();
    this.#source = new EventSource("/api/traffic");
    this.#source.addEventListener("traffic", (event) => this.take(JSON.parse(event.data)));
    this.#observer.observe(this.#holder);
    this.refresh();
  }

  detach() {
    this.#source.close();
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
  }

  /** Apply a `traffic` message of the manager. */
  take(told) {
    this.#told = told;
    for (const [key, edge] of this.#seen) if ((edge.age += 1) > KEPT) this.#seen.delete(key);
    for (const edge of told.edges) {
      this.#seen.set(keyOf(edge), { ...edge, age: 0 });
    }
    for (const edge of this.#seen.values()) if (edge.age) edge.sent = edge.received = edge.begun = edge.open = 0;
    this.refresh();
  }

  /** Active pairs, most bytes first. */
  get pairs() {
    const edges = [...this.#seen.values()].filter((edge) => !edge.age);
    return edges.sort((a, b) => b.sent + b.received - a.sent - a.received || b.open - a.open);
  }

  refresh() {
    this.#layOut();
    const edges = this.pairs;
    this.#note.textContent = this.#sentence(edges);
    patch(this.#table, edges.length ? h("table", {},
      h("caption", { class: "unseen" }, "Traffic between services"),
      h("thead", {}, h("tr", {}, ["From", "To", "Port"].map((head) => h("th", { scope: "col" }, head)),
        ["Open", "New", "Sent", "Received"].map((head, index) => h("th", { scope: "col", class: index < 2 ? "number extra" : "number" }, head)))),
      h("tbody", {}, edges.slice(0, MOST_ROWS).map((edge) => this.#row(edge)))) : null);
  }

  #row(edge) {
    return h("tr", { "data-key": keyOf(edge) },
      h("td", {}, this.#link(edge.from)), h("td", {}, this.#link(edge.to)), h("td", {}, `${edge.port}/${edge.protocol}`),
      h("td", { class: "number extra" }, String(edge.open)), h("td", { class: "number extra" }, `${rate(edge.begun)}/s`),
      h("td", { class: "number" }, `${bytes(edge.sent)}/s`), h("td", { class: "number" }, `${bytes(edge.received)}/s`));
  }

  #sentence(edges) {
    if (!this.#told) return "Waiting for the nodes …";
    const { nodes, telling, left_out: left } = this.#told;
    const silent = nodes - telling ? ` · ${nodes - telling} of ${nodes} nodes have not reported yet` : "";
    const more = left ? ` · ${left}more with less traffic` : "";
    return (edges.length ? `${count(edges.length, "pair")} with traffic` : "No traffic.") + silent + more;
  }

  #name(id) {
    return id === OUTSIDE || id === ASKED ? "outside" : this.#cluster.services.get(id)?.name ?? this.#cluster.tasks.get(id)?.name ?? "gone";
  }

  #hash(id) { return this.#cluster.services.has(id) ? `#/service/${id}` : `#/task/${id}`; }

  #link(id) {
    return id === OUTSIDE ? h("span", { class: "soft" }, "outside")
      : [swatch(this.#name(id)), h("a", { href: this.#hash(id) }, this.#name(id))];
  }

  #layOut() {
    const width = this.#holder.clientWidth, height = this.#holder.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!width || !height) return;
    for (const canvas of [this.#canvas, this.#stage]) {
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
    }
    const edges = [...this.#seen.values()].sort((a, b) => b.sent + b.received - a.sent - a.received).slice(0, MOST_DRAWN);
    // Sorted by key, not by volume, so that places are stable.
    edges.sort((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1));
    // The outside is at both ends: as client and as server.
    const ends = edges.map((edge) => [edge.from, edge.to || ASKED]);
    const ids = [...new Set(ends.flat())].sort((a, b) => (this.#name(a) < this.#name(b) ? -1 : 1));
    const { places, across } = placed(ranked(ids, ends), width, height, SIZE);
    this.#places = places;
    this.#lines = edges.map((edge, index) => {
      const [from, to] = ends[index];
      return { edge, from, to, curve: curve(places.get(from), places.get(to), across) };
    });
    this.#paint(ratio, width, height);
    if (!this.#frame) this.#frame = requestAnimationFrame((now) => this.#draw(now));
  }

  #paint(ratio, width, height) {
    const pen = this.#stage.getContext("2d", { alpha: false }), ink = inks();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = ink.ground;
    pen.fillRect(0, 0, width, height);
    for (const { edge, from, to, curve } of this.#lines) {
      const rest = edge.age || this.#aside(from, to);
      pen.globalAlpha = rest ? 0.15 : 0.55;
      pen.strokeStyle = edge.from === "" ? ink.soft : shade(this.#name(edge.from)).full;
      pen.lineWidth = thickness(edge);
      pen.beginPath();
      pen.moveTo(curve[0], curve[1]);
      pen.bezierCurveTo(...curve.slice(2));
      pen.stroke();
    }
    pen.globalAlpha = 1;
    this.#lines.forEach(({ edge, from, to, curve }, index) => {
      const crowded = this.#lines.length > 30 && this.#pointed === null;
      if (!edge.age && !crowded && !this.#aside(from, to)) this.#label(pen, ink, edge, at(curve, 0.27 + 0.09 * (index % 3)));
    });
    for (const [id, { x, y }] of this.#places) this.#node(pen, ink, id, x, y);
  }

  #label(pen, ink, edge, [x, y]) {
    const text = `${bytes(edge.sent + edge.received)}/s`;
    pen.font = `11px ${FACE}`;
    pen.textBaseline = "middle";
    const wide = pen.measureText(text).width;
    pen.fillStyle = ink.ground;
    pen.beginPath();
    pen.roundRect(x - wide / 2 - 5, y - 9, wide + 10, 18, 9);
    pen.fill();
    pen.fillStyle = ink.soft;
    pen.fillText(text, x - wide / 2, y);
  }

  #node(pen, ink, id, x, y) {
    const width = this.#boxWidth(), { height } = SIZE, name = this.#name(id);
    const left = x - width / 2, top = y - height / 2, outside = id === OUTSIDE || id === ASKED;
    pen.fillStyle = ink.card;
    pen.strokeStyle = outside ? ink.soft : shade(name).full;
    pen.lineWidth = id === this.#pointed ? 3 : 1.5;
    if (outside) pen.setLineDash([5, 4]);
    pen.beginPath();
    pen.roundRect(left, top, width, height, outside ? height / 2 : 9);
    pen.fill();
    pen.stroke();
    pen.setLineDash([]);
    pen.textBaseline = "middle";
    pen.font = `600 13px ${FACE}`;
    pen.fillStyle = outside ? ink.soft : ink.ink;
    const live = outside || !this.#cluster.services.has(id) ? "" : String(this.#cluster.ofService(id).live);
    const room = width - 30 - (live ? 18 : 0), said = clipped(pen, name, room);
    if (outside) pen.fillText(said, x - pen.measureText(said).width / 2, y + 0.5);
    else {
      pen.fillText(said, left + 22, y + 0.5);
      pen.fillStyle = shade(name).full;
      pen.beginPath();
      pen.roundRect(left + 9, top + 10, 5, height - 20, 2.5);
      pen.fill();
      pen.fillStyle = ink.soft;
      pen.font = `11px ${FACE}`;
      if (live) pen.fillText(live, left + width - 10 - pen.measureText(live).width, y + 0.5);
    }
  }

  /** Traffic as drops that move towards the server, in the client's colour. */
  #draw(now) {
    const pen = this.#pen, ratio = window.devicePixelRatio || 1, still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.drawImage(this.#stage, 0, 0);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    let flows = false;
    for (const { edge, from, to, curve } of this.#lines) {
      const said = edge.sent + edge.received;
      if (edge.age || !said || this.#aside(from, to)) continue;
      flows = true;
      const drops = Math.min(1 + Math.floor(Math.log10(said + 1)), 7), size = thickness(edge) / 2 + 1.5;
      pen.fillStyle = edge.from === "" ? (isDark() ? "#fff" : "#333") : shade(this.#name(edge.from)).full;
      for (let drop = 0; drop < drops; drop += 1) {
        const [x, y] = at(curve, (now / 2600 + drop / drops) % 1);
        pen.beginPath();
        pen.arc(x, y, size, 0, 7);
        pen.fill();
      }
    }
    this.#uncover(pen, ratio);
    this.#frame = flows && !still ? requestAnimationFrame((next) => this.#draw(next)) : 0;
  }

  /** Repaint the boxes above the drops. */
  #uncover(pen, ratio) {
    const width = this.#boxWidth(), { height } = SIZE;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    for (const { x, y } of this.#places.values()) {
      const box = [x - width / 2, y - height / 2, width, height].map((each) => Math.round(each * ratio));
      pen.drawImage(this.#stage, ...box, ...box);
    }
  }

  #boxWidth() { return Math.min(SIZE.width, this.#holder.clientWidth / 3.2); }

  /** Whether the pointer is on a box other than these two. */
  #aside(from, to) { return this.#pointed !== null && from !== this.#pointed && to !== this.#pointed; }

  #at(event) {
    const bounds = this.#canvas.getBoundingClientRect(), x = event.clientX - bounds.left, y = event.clientY - bounds.top;
    for (const [id, place] of this.#places) {
      if (Math.abs(place.x - x) < SIZE.width / 2 && Math.abs(place.y - y) < SIZE.height / 2) return id;
    }
    return null;
  }

  #point(id) {
    this.#canvas.style.cursor = id ? "pointer" : "default";
    if (id === this.#pointed) return;
    this.#pointed = id;
    this.#layOut();
  }
}

const keyOf = (edge) => `${edge.from} ${edge.to} ${edge.port} ${edge.protocol}`;

const rate = (number) => (number >= 10 || !number ? Math.round(number) : number.toFixed(1));

const thickness = (edge) => 1.5 + Math.min(Math.log10(edge.sent + edge.received + 1), 8) * 0.7;

/** A Bézier curve between two boxes that leaves in the ranks' direction. */
function curve(from, to, across) {
  if (from === to) return [from.x, from.y, from.x + 130, from.y - 80, from.x + 130, from.y + 80, to.x, to.y];
  const way = across ? to.x - from.x : to.y - from.y;
  // A backward edge bends around.
  const bend = way > 0 ? way / 2 : Math.max(-way / 2, 90);
  return across
    ? [from.x, from.y, from.x + bend, from.y, to.x - bend, to.y, to.x, to.y]
    : [from.x, from.y, from.x, from.y + bend, to.x, to.y - bend, to.x, to.y];
}

function at([ax, ay, bx, by, cx, cy, dx, dy], part) {
  const rest = 1 - part, b = 3 * rest * rest * part, c = 3 * rest * part * part;
  return [rest ** 3 * ax + b * bx + c * cx + part ** 3 * dx, rest ** 3 * ay + b * by + c * cy + part ** 3 * dy];
}

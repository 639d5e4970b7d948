// SPDX-License-Identifier: Apache-2.0
// Charts of the last hour, as SVG.
import { ask } from "/state.js";
import { h, patch, svg } from "/elements.js";
import { bytes, clock } from "/words.js";

const WIDTH = 480, HEIGHT = 96, PERIOD = 15000, HOUR = 3600, LEAST = 300, GAP = 60;

/** Resource usage as a line over time, with its value at the pointer's position. */
class Chart {
  #title; #words; #kind; #at = []; #values = []; #span = [0, 1]; #most = 1; #pointed = null;
  #caption = h("figcaption"); #svg; #axis = h("div", { class: "axis soft", "aria-hidden": "true" });
  element;

  constructor(title, kind, words) {
    [this.#title, this.#kind, this.#words] = [title, kind, words];
    this.#svg = svg("svg", { class: `chart ${kind}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const plot = h("div", { class: "plot", tabindex: "0", role: "img", onpointermove: (event) => this.#point(event), onpointerleave: () => this.#show(null), onblur: () => this.#show(null), onkeydown: (event) => this.#key(event) }, this.#svg);
    this.element = h("figure", {}, this.#caption, plot, this.#axis);
    this.plot = plot;
  }

  show(at, values) {
    [this.#at, this.#values] = [at, values];
    const now = Date.now() / 1000, begin = Math.max(Math.min(at[0] ?? now, now - LEAST), now - HOUR);
    this.#span = [begin, now];
    this.#most = Math.max(...values, 1e-9) * 1.1;
    this.#draw();
  }

  #x(time) { return ((time - this.#span[0]) / (this.#span[1] - this.#span[0])) * WIDTH; }

  #y(value) { return HEIGHT - 2 - (value / this.#most) * (HEIGHT - 6); }

  /** The line, in segments that are separated where the agent was not running. */
  #parts() {
    const parts = [];
    this.#at.forEach((time, index) => {
      const point = `${this.#x(time).toFixed(1)},${this.#y(this.#values[index]).toFixed(1)}`;
      if (!index || time - this.#at[index - 1] > GAP) parts.push([]);
      parts.at(-1).push(point);
    });
    return parts;
  }

  #draw() {
    const words = this.#words, values = this.#values;
    const said = values.length ? `${words(values.at(-1))} now, ${words(Math.max(...values))} at most` : "no data yet";
    this.plot.setAttribute("aria-label", `${this.#title} of the last hour: ${said}`);
    const lines = this.#parts().flatMap((points) => [
      svg("polygon", { points: `${points[0].split(",")[0]},${HEIGHT} ${points.join(" ")} ${points.at(-1).split(",")[0]},${HEIGHT}` }),
      svg("polyline", { points: points.join(" "), "vector-effect": "non-scaling-stroke" }),
    ]);
    const grid = [0.25, 0.5, 0.75].map((part) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT * part, y2: HEIGHT * part, "vector-effect": "non-scaling-stroke" }));
    const at = this.#pointed;
    const mark = at !== null && svg("line", { class: "mark", x1: this.#x(this.#at[at]), x2: this.#x(this.#at[at]), y1: 0, y2: HEIGHT, "vector-effect": "non-scaling-stroke" });
    patch(this.#svg, grid, lines, mark);
    patch(this.#caption, h("b", {}, this.#title), ": ", at === null ? said : `${words(values[at])} at ${clock(this.#at[at])}`);
    patch(this.#axis, h("span", {}, clock(this.#span[0])), h("span", {}, "now"));
  }

  #show(index) { this.#pointed = index; this.#draw(); }

  #point(event) {
    const bounds = this.plot.getBoundingClientRect();
    const time = this.#span[0] + ((event.clientX - bounds.left) / bounds.width) * (this.#span[1] - this.#span[0]);
    let best = null;
    this.#at.forEach((each, index) => { if (best === null || Math.abs(each - time) < Math.abs(this.#at[best] - time)) best = index; });
    this.#show(best);
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], last = this.#values.length - 1;
    if (!step || last < 0) return;
    event.preventDefault();
    this.#show(Math.min(Math.max((this.#pointed ?? last + (step > 0 ? 0 : 1)) + step, 0), last));
  }
}

/** Resource usage of a task or node, refreshed while it is visible. */
export class Charts {
  #timer; #query; #trouble = h("p", { class: "soft" });
  #charts = [
    new Chart("CPU", "cpu", (value) => `${value.toFixed(value < 0.1 ? 3 : 2)} cores`),
    new Chart("Memory", "memory", bytes),
  ];
  element = h("section", { class: "charts" }, h("h3", {}, "Used"), this.#trouble);

  constructor(kind, id) {
    this.#query = `/api/history?${kind}=${encodeURIComponent(id)}`;
    this.#look();
    this.#timer = setInterval(() => this.#look(), PERIOD);
  }

  end() { clearInterval(this.#timer); }

  async #look() {
    try {
      const { at, cores, memory } = await ask("GET", this.#query);
      this.#trouble.textContent = "";
      this.#charts[0].show(at, cores);
      this.#charts[1].show(at, memory);
      if (!this.#charts[0].element.isConnected) this.element.append(...this.#charts.map((chart) => chart.element));
    } catch (error) {
      this.#trouble.textContent = error.message;
    }
  }
}

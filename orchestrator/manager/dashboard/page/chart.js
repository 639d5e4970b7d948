// Charts of the last hour, as SVG.
import { ask } from "/state.js";
import { bytes, clock, h, patch } from "/words.js";

const WIDTH = 480, HEIGHT = 88, PERIOD = 15000, HOUR = 3600;
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A line over the last hour; `words` says a value. */
function chart(title, at, values, colour, words) {
  const last = values.at(-1) ?? 0, most = Math.max(...values, 1e-9), now = Date.now() / 1000;
  const x = (time) => (1 - (now - time) / HOUR) * WIDTH, y = (value) => HEIGHT - 4 - (value / most) * (HEIGHT - 12);
  const points = values.map((value, index) => `${x(at[index]).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const said = values.length ? `${words(last)} now, ${words(most)} at most` : "nothing measured yet";
  return h("figure", {},
    h("figcaption", {}, `${title}: ${said}`),
    svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title} over the last hour: ${said}` },
      svg("polyline", { points, fill: "none", stroke: colour, "stroke-width": "2", "vector-effect": "non-scaling-stroke" })));
}

/** What a task or node used, looked at anew for as long as it is shown. */
export class Charts {
  #timer; #query;
  element = h("div", { class: "charts" });

  constructor(kind, id) {
    this.#query = `/api/history?${kind}=${encodeURIComponent(id)}`;
    this.#look();
    this.#timer = setInterval(() => this.#look(), PERIOD);
  }

  end() { clearInterval(this.#timer); }

  async #look() {
    try {
      const { at, cores, memory } = await ask("GET", this.#query);
      const since = at.length ? ` since ${clock(at[0])}` : "";
      patch(this.element, h("h3", {}, `Used${since}`),
        chart("CPU", at, cores, "var(--bar-cpu)", (value) => `${value.toFixed(value < 0.1 ? 3 : 2)} cores`),
        chart("Memory", at, memory, "var(--bar-memory)", bytes));
    } catch (error) {
      patch(this.element, h("h3", {}, "Used"), h("p", { class: "soft" }, error.message));
    }
  }
}

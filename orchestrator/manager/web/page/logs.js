// SPDX-License-Identifier: Apache-2.0
// Live log of a service or task.
import { h } from "/elements.js";
import { shade } from "/colours.js";
import { clock } from "/words.js";

const MOST_LINES = 2000;

export class Logs {
  #source = null; #lines; #button; #filter; #bar; #waiting = []; #due = 0;

  constructor(word) {
    this.#lines = h("div", { class: "log", role: "log", tabindex: "0", "aria-label": "Log", hidden: true });
    this.#button = h("button", { id: "logs", type: "button", "aria-expanded": "false", onclick: () => this.#toggle(word) }, "Show logs");
    this.#filter = h("input", { type: "search", placeholder: "Lines with …", "aria-label": "Only lines with", oninput: () => this.#narrow() });
    this.#bar = h("span", { hidden: true }, this.#filter);
    this.element = h("section", {}, h("h3", {}, "Logs"), h("div", { class: "acts" }, this.#button, this.#bar), this.#lines);
  }

  end() { this.#source?.close(); this.#source = null; cancelAnimationFrame(this.#due); this.#due = 0; }

  #toggle(word) {
    const show = !this.#source;
    this.#button.textContent = show ? "Hide logs" : "Show logs";
    this.#button.setAttribute("aria-expanded", String(show));
    this.#lines.hidden = this.#bar.hidden = !show;
    if (!show) return this.end();
    this.#empty("No log lines yet.");
    this.#source = new EventSource(`/api/logs?of=${encodeURIComponent(word)}`);
    this.#source.addEventListener("open", () => this.#empty("No log lines yet."));
    this.#source.addEventListener("lines", (event) => this.#add(JSON.parse(event.data)));
    this.#source.addEventListener("refused", (event) => this.#add([{ notice: true, line: JSON.parse(event.data) }]));
  }

  #empty(text) { this.#waiting = []; this.#lines.replaceChildren(h("p", { class: "none" }, text)); }

  /** Batch lines: one DOM update per frame. */
  #add(lines) {
    this.#waiting.push(...lines.slice(-MOST_LINES));
    if (!this.#due) this.#due = requestAnimationFrame(() => { this.#due = 0; this.#put(); });
  }

  #put() {
    const place = this.#lines, atEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 20;
    place.querySelector(".none")?.remove();
    const word = this.#filter.value.toLowerCase();
    place.append(...this.#waiting.splice(0).slice(-MOST_LINES).map((each) => {
      const line = h("p", { class: each.notice ? "notice" : each.error ? "error" : null },
        !each.notice && [h("time", {}, clock(each.at)), " ", h("b", { style: { color: shade(each.task.replace(/\.[^.]*$/, "")).full } }, each.task), " "],
        each.line);
      line.hidden = !line.textContent.toLowerCase().includes(word);
      return line;
    }));
    while (place.childElementCount > MOST_LINES) place.firstChild.remove();
    if (atEnd) place.scrollTop = place.scrollHeight;
  }

  #narrow() {
    const word = this.#filter.value.toLowerCase();
    for (const line of this.#lines.children) line.hidden = !line.textContent.toLowerCase().includes(word);
    this.#lines.scrollTop = this.#lines.scrollHeight;
  }
}

// SPDX-License-Identifier: Apache-2.0
// The search field: filters the page, and suggests the best matches.
import { h } from "/elements.js";
import { suggested, worded } from "/search.js";

export class SearchBox {
  #input; #list; #cluster; #chosen = -1; #offers = [];

  /** `changed` is called when the query changes. */
  constructor(input, list, cluster, changed) {
    this.#input = input;
    this.#list = list;
    this.#cluster = cluster;
    input.addEventListener("input", () => { this.#offer(); changed(); });
    input.addEventListener("focus", () => this.#offer());
    input.addEventListener("blur", () => this.#close());
    input.addEventListener("keydown", (event) => this.#key(event, changed));
    // Before the field loses the focus and the list closes.
    list.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const option = event.target.closest("[role=option]");
      if (option) this.#go(this.#offers[[...list.querySelectorAll("[role=option]")].indexOf(option)]);
    });
  }

  get words() { return worded(this.#input.value); }

  focus() { this.#input.focus(); this.#input.select(); }

  #offer() {
    this.#offers = suggested(this.#cluster, this.words);
    this.#chosen = -1;
    this.#draw();
  }

  #draw() {
    this.#list.hidden = !this.#offers.length;
    this.#input.setAttribute("aria-expanded", String(this.#offers.length > 0));
    this.#list.replaceChildren(...this.#offers.map((each, index) => h("li", {
      id: `offer-${index}`, role: "option", "aria-selected": String(index === this.#chosen),
    }, h("span", { class: "kind" }, each.kind), h("b", {}, each.name), h("span", { class: "soft" }, each.about))));
    if (this.#chosen >= 0) {
      this.#input.setAttribute("aria-activedescendant", `offer-${this.#chosen}`);
      this.#list.children[this.#chosen].scrollIntoView({ block: "nearest" });
    } else this.#input.removeAttribute("aria-activedescendant");
  }

  #close() { this.#offers = []; this.#chosen = -1; this.#draw(); }

  #go(offer) {
    this.#input.blur();
    location.hash = offer.hash;
  }

  #key(event, changed) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && this.#offers.length) {
      this.#chosen = (this.#chosen + step + this.#offers.length + (this.#chosen < 0 && step < 0 ? 1 : 0)) % this.#offers.length;
      this.#draw();
    } else if (event.key === "Enter" && this.#offers.length) this.#go(this.#offers[Math.max(this.#chosen, 0)]);
    else if (event.key === "Escape") {
      if (this.#input.value) { this.#input.value = ""; this.#offer(); changed(); } else this.#input.blur();
      event.stopPropagation();
    } else return;
    event.preventDefault();
  }
}

// SPDX-License-Identifier: Apache-2.0
// A virtual table: only rows in view are rendered. A click on a column head sorts it.
import { h, patch } from "/elements.js";

const PHONE = matchMedia("(max-width: 760px)");
const BEYOND = 8; // rows rendered above and below the view

/**
 * Columns are `{ name, cell, sort, number, long, width }`: `cell` returns the content of an item's cell, `sort`
 * its sort key; a `long` one has a line of its own on a phone. Items have an `id`. The table scrolls with the
 * nearest ancestor that scrolls.
 */
export class List {
  #columns; #rows = []; #by = -1; #down = false;
  #table; #body; #none;

  constructor(caption, columns) {
    this.#columns = columns;
    this.#body = h("tbody");
    this.#table = h("table", { class: "wide" }, h("caption", { class: "unseen" }, caption), h("thead"), this.#body);
    this.#none = h("p", { class: "empty", hidden: true });
    this.element = h("div", { class: "list" }, this.#table, this.#none);
    this.element.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Show these items, or the text `none` if there are none. The given order applies until a head is
   *  clicked. */
  show(items, none) {
    this.#rows = items;
    if (this.#by >= 0) {
      const { sort } = this.#columns[this.#by], sign = this.#down ? -1 : 1;
      const keyed = items.map((item) => [sort(item), item]);
      keyed.sort(([a], [b]) => (a < b ? -sign : a > b ? sign : 0));
      this.#rows = keyed.map(([, item]) => item);
    }
    this.#none.hidden = items.length > 0;
    this.#table.hidden = !items.length;
    if (this.#none.textContent !== none) this.#none.textContent = none;
    patch(this.#table.tHead, this.#heads());
    this.draw();
  }

  /** Render the rows in view. */
  draw() {
    const scroller = this.element.closest("main");
    if (!scroller) return;
    const high = PHONE.matches ? 92 : 40;
    const above = this.element.offsetTop + (PHONE.matches ? 0 : 40);
    const first = Math.max(Math.floor((scroller.scrollTop - above) / high) - BEYOND, 0);
    const last = Math.min(Math.ceil((scroller.scrollTop - above + scroller.clientHeight) / high) + BEYOND, this.#rows.length);
    const from = Math.min(first, last);
    this.#table.setAttribute("aria-rowcount", String(this.#rows.length + 1));
    patch(this.#body,
      this.#space("above", from * high),
      this.#rows.slice(from, last).map((item, index) => this.#row(item, from + index)),
      this.#space("below", (this.#rows.length - last) * high));
  }

  #heads() {
    return h("tr", {}, this.#columns.map((column, index) => {
      const sorted = this.#by === index;
      return h("th", {
        scope: "col", class: column.number && "number", style: column.width ? { width: column.width } : {},
        "aria-sort": sorted ? (this.#down ? "descending" : "ascending") : null,
      }, column.sort
        ? h("button", { type: "button", onclick: () => this.#sort(index) }, column.name, h("span", { "aria-hidden": "true" }, sorted ? (this.#down ? " ▾" : " ▴") : ""))
        : column.name);
    }));
  }

  #sort(index) {
    [this.#by, this.#down] = this.#by === index ? (this.#down ? [-1, false] : [index, true]) : [index, false];
    this.element.dispatchEvent(new Event("sorted", { bubbles: true }));
  }

  #row(item, index) {
    return h("tr", { "data-key": item.id, "aria-rowindex": String(index + 2) },
      this.#columns.map((column) => h("td", { class: column.number ? "number" : column.long ? "long" : null, "data-name": column.number && column.name }, column.cell(item))));
  }

  #space(which, height) {
    return h("tr", { class: "space", "data-key": which, "aria-hidden": "true", style: { height: `${height}px` } },
      h("td", { colspan: String(this.#columns.length) }));
  }

  /** Arrow keys move between rows. */
  #key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (!step) return;
    const row = event.target.closest("tbody tr");
    if (!row && step < 0) return;
    const rows = [...this.#body.rows].filter((each) => !each.classList.contains("space"));
    const next = row ? rows[rows.indexOf(row) + step] : rows[0];
    const link = next?.querySelector("a");
    if (!link) return;
    event.preventDefault();
    link.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }
}

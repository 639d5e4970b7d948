// SPDX-License-Identifier: Apache-2.0
// The side panel: one service, node or task, and a few safe actions.
import { ask } from "/state.js";
import { Charts } from "/chart.js";
import { h, patch } from "/elements.js";
import { Logs } from "/logs.js";
import { bar, swatch, updateWord } from "/views.js";
import { ENDED, ago, bytes, clock, cores, count, extent, mood, stateWord } from "/words.js";

const MOST_TASKS = 60, MOST_ENDED = 10, MOST_EVENTS = 12;
/** Milliseconds within which a second click confirms the first. */
const SURE = 4000;

export class Panel {
  #place; #cluster; #may; #say; #close;
  #shown = null; #body; #past; #logs = null; #charts = null;
  #sure = "";

  constructor(place, cluster, may, say, close) {
    this.#place = place;
    this.#cluster = cluster;
    this.#may = may;
    this.#say = say;
    this.#close = close;
  }

  /** Show `[kind, id]`, or nothing. */
  show(what) {
    if (String(what) === String(this.#shown)) return;
    this.#logs?.end();
    this.#charts?.end();
    this.#logs = this.#charts = null;
    this.#shown = what;
    this.#sure = "";
    this.#place.hidden = !what;
    this.#place.replaceChildren();
    this.#place.scrollTop = 0;
    if (!what) return;
    this.#body = h("div");
    this.#past = h("section");
    this.#place.append(this.#body);
    if (what[0] !== "service") this.#place.append((this.#charts = new Charts(...what)).element);
    if (what[0] !== "node") this.#place.append((this.#logs = new Logs(what[1])).element);
    this.#place.append(this.#past);
    this.refresh();
    this.#place.querySelector("h2")?.focus({ preventScroll: true });
  }

  refresh() {
    if (!this.#shown) return;
    const [kind, id] = this.#shown;
    const item = this.#cluster[`${kind}s`].get(id);
    patch(this.#body, ...(item ? this[`_${kind}`](item) : this.#gone(kind)));
    patch(this.#past, item ? this.#events(kind, item) : []);
  }

  #head(kind, ...title) {
    return h("header", {}, h("div", {}, h("p", { class: "kind" }, kind), h("h2", { tabindex: "-1" }, ...title)),
      h("button", { id: "close", type: "button", "aria-label": "Close", "aria-keyshortcuts": "Escape", onclick: this.#close }, "✕"));
  }

  #gone(kind) { return [this.#head(kind, `This ${kind} no longer exists`)]; }

  /** Button for an action of the manager; with `sure`, a second click must confirm it. */
  #act(id, text, order, { main = false, sure = "", done = "" } = {}) {
    const asks = this.#sure === id;
    return h("button", {
      id, type: "button", class: main ? "main" : asks ? "sure" : null, disabled: !this.#may(),
      title: this.#may() ? null : "This session is read-only",
      onclick: async (event) => {
        if (sure && this.#sure !== id) {
          this.#sure = id;
          setTimeout(() => { if (this.#sure === id) { this.#sure = ""; this.refresh(); } }, SURE);
          this.refresh();
          return;
        }
        this.#sure = "";
        const button = event.currentTarget;
        button.disabled = true;
        try {
          await ask("POST", "/api/act", order());
          if (done) this.#say(done);
        } catch (error) { this.#say(error.message, "bad"); }
        button.disabled = false;
        this.refresh();
      },
    }, asks ? sure : text);
  }

  _service(item) {
    const { working } = this.#cluster.ofService(item.id), { text, mood: how } = extent(item, working);
    const scale = item.mode === "replicated" && [
      h("label", { for: "replicas" }, "Replicas"),
      h("input", {
        id: "replicas", type: "number", min: "0", max: "10000", value: String(item.wanted), disabled: !this.#may(),
        onkeydown: (event) => { if (event.key === "Enter") document.getElementById("scale").click(); },
      }),
      this.#act("scale", "Scale", () => ({ do: "scale", to: item.id, replicas: Number(document.getElementById("replicas").value) }), { main: true }),
    ];
    return [
      this.#head("service", swatch(item.name), item.name),
      this.#progress(item),
      facts([
        [item.job ? "Job" : "Running", h("span", { class: how }, text.replace(" / ", " of "))],
        ["Mode", item.mode], ["Image", item.image], ["Stack", item.stack],
        ["Ports", item.ports.join(", ")], ["Networks", item.networks.join(", ") || "default"],
      ]),
      h("div", { class: "acts" }, scale,
        this.#act("restart", "Restart", () => ({ do: "restart", to: item.id }),
          { sure: `Replace ${count(item.wanted, "task")}?`, done: `${item.name} is being restarted` }),
        item.past > 0 && this.#act("rollback", "Roll back", () => ({ do: "rollback", to: item.id }),
          { sure: "Roll back to the previous spec?", done: `${item.name} is being rolled back` })),
      this.#tasks(this.#cluster.tasksOfService(item.id), `service:${item.name}`, false),
    ];
  }

  /** Progress of an update. */
  #progress(item) {
    if (!item.update) return [];
    const { versions } = this.#cluster.ofService(item.id), there = Math.min(versions.get(item.version) ?? 0, item.wanted);
    const state = /paused/.test(item.update) ? "bad" : /updating|rolling/.test(item.update) ? "" : "good";
    const under_way = /updating|rolling_back|rollback_started|paused/.test(item.update);
    return h("div", { class: `progress ${state}` },
      h("p", {}, h("b", {}, updateWord(item)), item.message && `: ${item.message}`),
      under_way && h("p", { class: "soft" }, `${there} of ${count(item.wanted, "task")} up to date`),
      under_way && h("div", {
        class: "track", role: "progressbar", "aria-label": "Update", "aria-valuemin": "0", "aria-valuenow": String(there), "aria-valuemax": String(item.wanted),
      }, h("i", { style: { width: `${100 * there / Math.max(item.wanted, 1)}%` } })));
  }

  _node(item) {
    const used = this.#cluster.ofNode(item.id), active = item.availability === "active";
    return [
      this.#head("node", item.name),
      facts([
        ["State", h("span", { class: item.state === "ready" ? "good" : "bad" }, item.message ? `${item.state}: ${item.message}` : item.state)],
        ["Availability", h("span", { class: active ? "" : "warn" }, item.availability)], ["Address", item.address],
        ["CPU", [`${cores(used.shares)} of ${cores(item.shares)} cores reserved`, bar(used.shares / Math.max(item.shares, 1), "cpu", "CPU reserved")]],
        ["Memory", [`${bytes(used.memory)} of ${bytes(item.memory)} reserved`, bar(used.memory / Math.max(item.memory, 1), "memory", "Memory reserved")]],
        ["Host", item.about], ["Labels", Object.entries(item.labels).map((pair) => pair.join("=")).join(", ")],
      ]),
      h("div", { class: "acts" }, active
        ? this.#act("drain", "Drain", () => ({ do: "drain", to: item.id }),
          { sure: used.live ? `Move ${count(used.live, "task")} elsewhere?` : "Schedule no tasks on it?", done: `${item.name} is being drained` })
        : this.#act("activate", "Activate", () => ({ do: "activate", to: item.id }), { main: true, done: `${item.name} accepts tasks again` })),
      this.#tasks(this.#cluster.tasksOfNode(item.id), `node:${item.name}`, true),
    ];
  }

  _task(item) {
    const service = this.#cluster.services.get(item.service), node = this.#cluster.nodes.get(item.node);
    return [
      this.#head("task", swatch(service?.name ?? item.name), item.name),
      facts([
        ["State", h("span", { class: mood(item) }, stateWord(item))], ["Reason", item.message],
        ["Service", service && h("a", { href: `#/service/${service.id}` }, service.name)],
        ["Node", node && h("a", { href: `#/node/${node.id}` }, node.name)], ["Image", item.image],
        ["Addresses", Object.entries(item.addresses).map(([name, address]) => `${address} (${name})`).join(", ")],
        ["Reserves", `${cores(item.shares)} cores, ${bytes(item.memory)}`],
        ["Started", item.started ? `${clock(item.started)}, ${ago(item.started)}` : ""], ["Id", h("code", {}, item.id)],
      ]),
    ];
  }

  /** Tasks that should run, then ended tasks, newest first. */
  #tasks(tasks, search, ofNode) {
    const live = tasks.filter((task) => !ENDED.has(task.state));
    const ended = tasks.filter((task) => ENDED.has(task.state)).sort((a, b) => b.at - a.at).slice(0, MOST_ENDED);
    const rows = [...live.slice(0, MOST_TASKS), ...ended].map((task) => {
      const node = this.#cluster.nodes.get(task.node);
      return h("li", { "data-key": task.id },
        swatch(this.#cluster.services.get(task.service)?.name ?? task.name),
        h("a", { href: `#/task/${task.id}` }, task.name),
        h("span", { class: `state ${mood(task)}` }, stateWord(task)),
        !ofNode && node && h("a", { class: "where", href: `#/node/${node.id}` }, node.name),
        h("span", { class: "soft ago" }, ago(task.at)),
        task.message && h("span", { class: "soft reason" }, task.message));
    });
    return h("section", {}, h("h3", {}, "Tasks"),
      rows.length ? h("ul", { class: "tasks" }, rows) : h("p", { class: "soft" }, "No tasks."),
      live.length > MOST_TASKS && h("p", {}, h("a", { href: `#/tasks?${encodeURIComponent(search)}` }, `All ${count(live.length, "task")}`)));
  }

  #events(kind, item) {
    const concerns = {
      service: (event) => event.of === item.id || (event.type === "container" && event.name.startsWith(`${item.name}.`)),
      node: (event) => event.of === item.id || event.node === item.name,
      task: (event) => event.of === item.id,
    }[kind];
    const found = this.#cluster.events.filter(concerns).slice(0, MOST_EVENTS);
    return [h("h3", {}, "Events"), found.length
      ? h("ul", { class: "events" }, found.map((event) => h("li", { "data-key": event.id },
        h("time", { class: "soft" }, clock(event.at)), h("span", { class: event.bad ? "bad" : "" }, `${event.type} ${event.action}`), h("span", {}, event.name))))
      : h("p", { class: "soft" }, "No recent events.")];
  }
}

function facts(pairs) {
  return h("dl", {}, pairs.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

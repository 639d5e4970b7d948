// The panel at the side: one service, node or task, its logs, and the few safe actions.
import { ENDED, ago, bytes, clock, cores, h, mood, patch, stateWord } from "/words.js";
import { Charts } from "/chart.js";
import { ask } from "/state.js";
import { swatch, taskTable } from "/views.js";

const MOST_LINES = 2000;

export class Panel {
  #place; #cluster; #may; #say; #close;
  #shown = null;
  #body = h("div");
  #logs = null;
  #charts = null;

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
    this.#place.hidden = !what;
    this.#place.replaceChildren();
    if (!what) return;
    this.#body = h("div");
    this.#place.append(this.#body);
    if (what[0] !== "service") {
      this.#charts = new Charts(...what);
      this.#place.append(this.#charts.element);
    }
    if (what[0] !== "node") {
      this.#logs = new Logs(what[1]);
      this.#place.append(this.#logs.element);
    }
    this.refresh();
    this.#place.querySelector("h2")?.focus();
  }

  refresh() {
    if (!this.#shown) return;
    const [kind, id] = this.#shown;
    const item = this.#cluster[`${kind}s`].get(id);
    patch(this.#body, ...(item ? this[`_${kind}`](item) : this.#gone(kind)));
  }

  #head(...title) {
    return h("header", {}, h("h2", { tabindex: "-1" }, ...title),
      h("button", { id: "close", type: "button", "aria-label": "Close", "aria-keyshortcuts": "Escape", onclick: this.#close }, "✕"));
  }

  #gone(kind) { return [this.#head(`This ${kind} is no more`)]; }

  #act(id, text, order, main = false) {
    return h("button", {
      id, type: "button", class: main && "main", disabled: !this.#may(), title: this.#may() ? null : "This log-in may look, and change nothing",
      onclick: async (event) => {
        event.target.disabled = true;
        try {
          await ask("POST", "/api/act", order());
        } catch (error) { this.#say(error.message); }
        event.target.disabled = false;
        this.refresh();
      },
    }, text);
  }

  _service(item) {
    const running = this.#cluster.running(item.id);
    const scale = item.mode === "replicated" && [
      h("label", { for: "replicas" }, "Replicas"),
      h("input", {
        id: "replicas", type: "number", min: "0", max: "10000", value: String(item.wanted), disabled: !this.#may(),
        onkeydown: (event) => { if (event.key === "Enter") document.getElementById("scale").click(); },
      }),
      this.#act("scale", "Scale", () => ({ do: "scale", to: item.id, replicas: Number(document.getElementById("replicas").value) }), true),
    ];
    return [
      this.#head(swatch(item.name), item.name),
      facts([
        ["Running", `${running} of ${item.wanted}`], ["Mode", item.mode], ["Image", item.image], ["Stack", item.stack],
        ["Ports", item.ports.join(", ")], ["Networks", item.networks.join(", ") || "default"],
        ["Update", [item.update.replaceAll("_", " "), item.message].filter(Boolean).join(": ")],
      ]),
      h("div", { class: "acts" }, scale,
        this.#act("restart", "Restart", () => ({ do: "restart", to: item.id })),
        item.past > 0 && this.#act("rollback", "Roll back", () => ({ do: "rollback", to: item.id }))),
      h("h3", {}, "Tasks"),
      taskTable(this.#cluster, recent(this.#cluster.tasksOfService(item.id)), "It has none."),
    ];
  }

  _node(item) {
    const used = this.#cluster.reserved(item.id);
    const active = item.availability === "active";
    return [
      this.#head(item.name),
      facts([
        ["State", item.message ? `${item.state}: ${item.message}` : item.state], ["Availability", item.availability],
        ["Address", item.address], ["CPU", `${cores(used.shares)} of ${cores(item.shares)} cores reserved`],
        ["Memory", `${bytes(used.memory)} of ${bytes(item.memory)} reserved`], ["Host", item.about],
        ["Labels", Object.entries(item.labels).map((pair) => pair.join("=")).join(", ")],
      ]),
      h("div", { class: "acts" }, active
        ? this.#act("drain", "Drain", () => ({ do: "drain", to: item.id }))
        : this.#act("activate", "Activate", () => ({ do: "activate", to: item.id }), true)),
      h("h3", {}, "Tasks"),
      taskTable(this.#cluster, recent(this.#cluster.tasksOfNode(item.id)), "It has none."),
    ];
  }

  _task(item) {
    const service = this.#cluster.services.get(item.service), node = this.#cluster.nodes.get(item.node);
    return [
      this.#head(item.name),
      facts([
        ["State", h("span", { class: mood(item) }, stateWord(item))], ["Reason", item.message],
        ["Service", service && h("a", { href: `#/service/${service.id}` }, service.name)],
        ["Node", node && h("a", { href: `#/node/${node.id}` }, node.name)], ["Image", item.image],
        ["Addresses", Object.entries(item.addresses).map(([name, address]) => `${address} (${name})`).join(", ")],
        ["Reserves", `${cores(item.shares)} cores, ${bytes(item.memory)}`],
        ["Started", item.started ? `${clock(item.started)}, ${ago(item.started)}` : ""], ["Id", item.id],
      ]),
    ];
  }
}

/** Those that are to run, then what has ended, the newest first. */
function recent(tasks) {
  const ended = tasks.filter((task) => ENDED.has(task.state)).sort((a, b) => b.at - a.at).slice(0, 20);
  return [...tasks.filter((task) => !ENDED.has(task.state)), ...ended];
}

function facts(pairs) {
  return h("dl", {}, pairs.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

class Logs {
  #source = null;
  #lines = h("pre", { class: "log", tabindex: "0", "aria-label": "Log", hidden: true });
  #button;

  constructor(word) {
    this.#button = h("button", { id: "logs", type: "button", "aria-expanded": "false", onclick: () => this.#toggle(word) }, "Show logs");
    this.element = h("div", {}, h("h3", {}, "Logs"), this.#button, this.#lines);
  }

  end() { this.#source?.close(); this.#source = null; }

  #toggle(word) {
    const show = !this.#source;
    this.#button.textContent = show ? "Hide logs" : "Show logs";
    this.#button.setAttribute("aria-expanded", String(show));
    this.#lines.hidden = !show;
    if (!show) return this.end();
    this.#lines.replaceChildren();
    this.#source = new EventSource(`/api/logs?of=${encodeURIComponent(word)}`);
    this.#source.addEventListener("open", () => this.#lines.replaceChildren());
    this.#source.addEventListener("lines", (event) => this.#add(JSON.parse(event.data)));
    this.#source.addEventListener("refused", (event) => this.#add([{ notice: true, line: JSON.parse(event.data) }]));
  }

  #add(lines) {
    const atEnd = this.#lines.scrollTop + this.#lines.clientHeight >= this.#lines.scrollHeight - 20;
    for (const each of lines) {
      this.#lines.append(
        h("span", { class: "task" }, each.notice ? "" : `${clock(each.at)} ${each.task} `),
        h("span", { class: each.notice ? "notice" : each.error ? "error" : "" }, `${each.line}\n`));
    }
    while (this.#lines.childElementCount > 2 * MOST_LINES) this.#lines.firstChild.remove();
    if (atEnd) this.#lines.scrollTop = this.#lines.scrollHeight;
  }
}

// SPDX-License-Identifier: Apache-2.0
// The lists: services, nodes, tasks, networks, events.
import { h, patch } from "/elements.js";
import { shade } from "/colours.js";
import { List } from "/list.js";
import { found } from "/search.js";
import { ENDED, ago, bytes, clock, cores, count, extent, kindOf, mood, stateWord } from "/words.js";

const byKey = (a, b) => (a.key < b.key ? -1 : 1);

export const swatch = (name) => h("span", { class: "dot", style: { background: shade(name).full }, "aria-hidden": "true" });

export function bar(part, kind, label) {
  const percent = Math.round(Math.min(part, 1) * 100);
  return h("span", { class: "bar", role: "img", "aria-label": `${label}: ${percent}%` }, h("i", { class: kind, style: { width: `${percent}%` } }));
}

const link = (kind, item) => h("a", { href: `#/${kind}/${item.id}` }, item.name);

/** Text for the state of an update. */
export const updateWord = (service) => service.update.replaceAll("_", " ");

function columnsOf(cluster) {
  const name = (kind, coloured) => ({
    name: "Name", sort: (each) => each.key, width: "24%",
    cell: (each) => [coloured && swatch(coloured(each)), link(kind, each)],
  });
  const serviceOf = (task) => cluster.services.get(task.service)?.name ?? task.name;
  const part = (used, all) => used / Math.max(all, 1);
  return {
    services: [
      name("service", (each) => each.name),
      { name: "Mode", sort: (each) => each.mode, cell: (each) => each.mode, width: "14%" },
      { name: "Running", number: true, width: "11%", sort: (each) => cluster.ofService(each.id).working - each.wanted,
        cell: (each) => {
          const { text, mood: how } = extent(each, cluster.ofService(each.id).working);
          return h("span", { class: how }, text);
        } },
      { name: "Image", sort: (each) => each.image, cell: (each) => each.image },
      { name: "Ports", cell: (each) => each.ports.join(", "), width: "15%" },
      { name: "Update", sort: (each) => each.update, width: "14%",
        cell: (each) => h("span", { class: /paused|rolled/.test(each.update) ? "bad" : "soft" }, updateWord(each)) },
    ],
    nodes: [
      name("node"),
      { name: "State", sort: (each) => each.state, width: "11%", cell: (each) => h("span", { class: each.state === "ready" ? "good" : "bad" }, each.state) },
      { name: "Availability", sort: (each) => each.availability, width: "13%",
        cell: (each) => h("span", { class: each.availability === "active" ? "" : "warn" }, each.availability) },
      { name: "Tasks", number: true, width: "9%", sort: (each) => cluster.ofNode(each.id).live, cell: (each) => String(cluster.ofNode(each.id).live) },
      { name: "CPU", sort: (each) => part(cluster.ofNode(each.id).shares, each.shares),
        cell: (each) => {
          const { shares } = cluster.ofNode(each.id);
          return [`${cores(shares)} / ${cores(each.shares)} cores`, bar(part(shares, each.shares), "cpu", "CPU reserved")];
        } },
      { name: "Memory", sort: (each) => part(cluster.ofNode(each.id).memory, each.memory),
        cell: (each) => {
          const { memory } = cluster.ofNode(each.id);
          return [`${bytes(memory)} / ${bytes(each.memory)}`, bar(part(memory, each.memory), "memory", "Memory reserved")];
        } },
    ],
    tasks: [
      name("task", serviceOf),
      { name: "State", sort: stateWord, width: "19%", cell: (each) => h("span", { class: `state ${mood(each)}` }, stateWord(each)) },
      { name: "Node", sort: (each) => cluster.nodes.get(each.node)?.key ?? "", width: "15%",
        cell: (each) => { const node = cluster.nodes.get(each.node); return node ? link("node", node) : ""; } },
      { name: "Reason", long: true, sort: (each) => each.message, cell: (each) => h("span", { title: each.message }, each.message) },
      { name: "Changed", number: true, width: "12%", sort: (each) => -each.at, cell: (each) => h("span", { class: "soft" }, ago(each.at)) },
    ],
    networks: [
      { name: "Name", sort: (each) => each.key, cell: (each) => each.name, width: "18%" },
      { name: "Kind", cell: (each) => [each.driver, each.internal && "internal", each.encrypted && "encrypted"].filter(Boolean).join(", "), width: "20%" },
      { name: "Subnet", sort: (each) => each.subnet, cell: (each) => each.subnet, width: "18%" },
      { name: "Addresses", number: true, sort: (each) => each.ends, cell: (each) => String(each.ends), width: "13%" },
      { name: "Members", long: true, cell: (each) => each.users.flatMap(([kind, item]) => [link(kind, item), " "]) },
    ],
    managers: [
      { name: "Name", sort: (each) => each.key, width: "16%", cell: (each) => [each.name, " ", each.leader && h("span", { class: "pill" }, "leader")] },
      { name: "State", sort: (each) => each.state, width: "11%",
        cell: (each) => h("span", { class: { ready: "good", joining: "warn" }[each.state] ?? "bad" }, each.state) },
      { name: "etcd", width: "11%", sort: (each) => each.role, cell: (each) => each.role || "–" },
      { name: "Term", number: true, width: "8%", sort: (each) => each.term, cell: (each) => String(each.term || "–") },
      { name: "Lag", number: true, width: "8%", sort: (each) => each.lag, cell: (each) => each.role && each.healthy ? String(each.lag) : "–" },
      { name: "Database", width: "22%", sort: (each) => each.size,
        cell: (each) => each.size ? [`${bytes(each.used)} in ${bytes(each.size)}`,
          each.quota > 0 && bar(each.size / each.quota, each.size > 0.8 * each.quota ? "memory" : "cpu", "Database of its quota")] : "–" },
      { name: "Notes", long: true, cell: (each) => h("span", { class: each.alarms.length ? "bad" : "soft" },
        [each.reason, ...each.alarms, each.defragmenting && "defragmenting", each.version].filter(Boolean).join(", ")) },
    ],
    events: [
      { name: "Time", cell: (each) => h("span", { class: "soft" }, clock(each.at)), width: "13%" },
      { name: "What", cell: (each) => each.type, width: "14%" },
      { name: "Event", cell: (each) => h("span", { class: each.bad ? "bad" : "" }, each.action), width: "20%" },
      { name: "Name", cell: (each) => each.name },
      { name: "Node", cell: (each) => each.node, width: "18%" },
    ],
  };
}

const NONE = {
  services: ["No services yet. Create one: orc service create --name web IMAGE", "No matching services."],
  nodes: ["No nodes yet. Get the join command: orc cluster token worker", "No matching nodes."],
  tasks: ["No tasks yet. Create a service: orc service create --name web IMAGE", "No matching tasks."],
  networks: ["No networks.", "No matching networks."],
  managers: ["Asking the managers…", "No matching managers."],
  events: ["No events yet.", "No matching events."],
};

const KINDS = [["", "All"], ["running", "Running"], ["starting", "Starting"], ["waiting", "Waiting"], ["trouble", "In trouble"], ["ended", "Ended"]];

/** The lists, each with its sort order and selection. */
export class Views {
  #cluster; #lists = {}; #kind = ""; #chips = h("div", { class: "chips", role: "group", "aria-label": "Which tasks" });
  #quorum = h("p", { class: "quorum soft", role: "status" });

  constructor(cluster) {
    this.#cluster = cluster;
    for (const [view, columns] of Object.entries(columnsOf(cluster))) this.#lists[view] = new List(view, columns);
  }

  /** Kind of tasks to show (see `kindOf`); "": all. */
  choose(kind) { this.#kind = kind; }

  /** The element of a view. */
  element(view) {
    const list = this.#lists[view].element;
    if (view === "managers") return h("div", {}, this.#quorum, list);
    return view === "tasks" ? h("div", {}, this.#chips, list) : list;
  }

  draw(view) { this.#lists[view].draw(); }

  refresh(view, words) {
    const cluster = this.#cluster;
    let items = this[`_${view}`]();
    items = found(cluster, view, items, words);
    let narrowed = words.length > 0;
    if (view === "tasks") {
      const now = Date.now() / 1000, counts = { "": items.length };
      for (const task of items) { const kind = kindOf(task, now); counts[kind] = (counts[kind] ?? 0) + 1; }
      patch(this.#chips, KINDS.map(([kind, text]) => h("button", {
        type: "button", "data-key": kind || "all", "aria-pressed": String(kind === this.#kind),
        onclick: () => { this.#kind = kind; this.#chips.dispatchEvent(new Event("sorted", { bubbles: true })); },
      }, text, " ", h("b", {}, String(counts[kind] ?? 0)))));
      if (this.#kind) { items = items.filter((task) => kindOf(task, now) === this.#kind); narrowed = true; }
    }
    if (view === "managers") this.#sayQuorum();
    this.#lists[view].show(items, NONE[view][Number(narrowed)]);
  }

  _services() { return [...this.#cluster.services.values()].sort(byKey); }

  _nodes() { return [...this.#cluster.nodes.values()].sort(byKey); }

  _managers() { return [...(this.#cluster.members?.managers ?? [])].sort(byKey); }

  #sayQuorum() {
    const told = this.#cluster.members, { voters = 0, healthy = 0, quorum = 0 } = told ?? {};
    const spare = healthy - quorum;
    this.#quorum.className = `quorum ${!voters || spare > 0 || voters < 3 && healthy === voters ? "soft" : spare < 0 ? "bad" : "warn"}`;
    const text = voters ? `${healthy} of ${count(voters, "etcd member")} healthy; a quorum needs ${quorum}${spare < 0 ? ": nothing can be changed" : ""}.` : told ? "The cluster has an external etcd." : "";
    if (this.#quorum.textContent !== text) this.#quorum.textContent = text;
  }

  /** Tasks that should run first. */
  _tasks() {
    const live = [], ended = [];
    for (const task of this.#cluster.allTasks) (ENDED.has(task.state) ? ended : live).push(task);
    return [...live, ...ended];
  }

  _networks() {
    const networks = [...this.#cluster.networks.values()].sort(byKey);
    const by = new Map(networks.map((each) => [each.name, Object.assign(each, { ends: 0, users: [] })]));
    for (const service of this._services()) for (const name of service.networks) by.get(name)?.users.push(["service", service]);
    for (const task of this.#cluster.allTasks) {
      if (ENDED.has(task.state)) continue;
      for (const name of Object.keys(task.addresses)) {
        const network = by.get(name);
        if (!network) continue;
        network.ends += 1;
        // A standalone container, or a task whose service was removed.
        const member = this.#cluster.services.get(task.service);
        if (!member?.networks.includes(name)) network.users.push(["task", task]);
      }
    }
    return networks;
  }

  _events() { return this.#cluster.events; }
}

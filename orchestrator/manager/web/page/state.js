// SPDX-License-Identifier: Apache-2.0
// Cluster state as sent by the manager: a snapshot, then changes.
import { ENDED, sortable, works } from "/words.js";
import { hue } from "/colours.js";

const KINDS = ["nodes", "services", "tasks", "networks", "managers"];
/** Defaults of fields that the manager omits. */
const EMPTY = {
  nodes: { name: "", state: "", availability: "", message: "", address: "", shares: 0, memory: 0, labels: {}, about: "" },
  services: { name: "", mode: "", wanted: 0, done: 0, of: 0, job: "", image: "", stack: "", ports: [], networks: [], update: "", message: "", version: 0, past: 0 },
  tasks: { name: "", service: "", slot: 0, node: "", state: "", stops: false, health: "", message: "", image: "",
    shares: 0, memory: 0, addresses: {}, started: 0, at: 0, version: 0, retry_at: 0 },
  networks: { name: "", driver: "", subnet: "", internal: false, encrypted: false },
  managers: { name: "", state: "" },
};
const MOST_EVENTS = 1000;
/** Milliseconds without the manager until the page goes to another one, and for that one's answer. */
const MOVE_AFTER = 3000, PROBE = 2000;
/** Milliseconds between two checks that the manager, which sends an event each second, still does. */
const CHECK = 500;
/** Milliseconds between two tickets for other managers; each is good for five minutes. */
const TICKET_RENEWAL = 60_000;
/** Milliseconds until a request without an answer fails. */
const ANSWER = 30_000;

const inOrder = (a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : a.id < b.id ? -1 : 1);

/** Tasks grouped by one field, in order, with sums per group; updated incrementally. */
class Groups {
  #groups = new Map();

  add(key, task) {
    let group = this.#groups.get(key);
    if (!group) this.#groups.set(key, group = { tasks: new Set() });
    group.tasks.add(task);
    group.sorted = group.sums = null;
  }

  remove(key, task) {
    const group = this.#groups.get(key);
    group.tasks.delete(task);
    group.sorted = group.sums = null;
    if (!group.tasks.size) this.#groups.delete(key);
  }

  changed(key) { this.#groups.get(key).sums = null; }

  tasks(key) {
    const group = this.#groups.get(key);
    return group ? group.sorted ??= [...group.tasks].sort(inOrder) : [];
  }

  sums(key) {
    const group = this.#groups.get(key);
    return group ? group.sums ??= summed(group.tasks) : NOTHING;
  }
}

const NOTHING = { live: 0, working: 0, shares: 0, memory: 0, versions: new Map() };

function summed(tasks) {
  const found = { live: 0, working: 0, shares: 0, memory: 0, versions: new Map() };
  for (const task of tasks) {
    if (ENDED.has(task.state)) continue;
    found.live += 1;
    found.shares += task.shares;
    found.memory += task.memory;
    if (works(task)) {
      found.working += 1;
      found.versions.set(task.version, (found.versions.get(task.version) ?? 0) + 1);
    }
  }
  return found;
}

export class Cluster extends EventTarget {
  nodes = new Map();
  services = new Map();
  tasks = new Map();
  networks = new Map();
  managers = new Map();
  events = [];
  /** The etcd members of the managers, and the quorum; null: not known yet. */
  members = null;
  connected = false;
  /** Nodes that changed since the renderer last cleared this; "" stands for tasks without a node. */
  touched = new Set();
  /** Other managers' addresses, and a ticket for them; null: not known. */
  #elsewhere = null;
  #source = null;
  /** Milliseconds of silence, as far as the page was awake, and when they were last counted. */
  #silence = 0;
  #counted = 0;
  #asked = null;
  #byNode = new Groups();
  #byService = new Groups();
  #sorted = null;
  #told = 0;
  #turn = 0;

  /** Subscribe to the manager until the page is left. */
  follow() {
    this.#open();
    setInterval(() => this.connected && this.#lookElsewhere(), TICKET_RENEWAL);
    setInterval(() => this.#check(), CHECK);
  }

  /** Open the stream, which the browser opens again when it breaks. */
  #open() {
    this.#source = new EventSource("/api/events");
    const on = (kind, apply) => this.#source.addEventListener(kind, (event) => {
      this.#silence = 0;
      apply?.(JSON.parse(event.data));
    });
    on("alive");
    on("picture", (told) => {
      this.whole(told);
      this.#lookElsewhere();
    });
    on("changed", (told) => this.changed(told));
    on("happened", (told) => this.#happened(told));
    this.#source.addEventListener("error", () => {
      this.#lost(MOVE_AFTER);
      // An expired session cannot reconnect.
      if (this.#source.readyState === EventSource.CLOSED) this.#tell("lost");
    });
  }

  /** Leave a manager that is silent although the connection stands: it hangs, or is cut off. */
  #check() {
    const now = performance.now();
    // At most that much: if the check itself is late, the browser was suspended, and what the manager has sent waits.
    this.#silence += Math.min(now - this.#counted, 2 * CHECK);
    this.#counted = now;
    if (!this.connected || this.#silence < MOVE_AFTER) return;
    this.#silence = 0;
    this.#source.close();
    this.#open();
    this.#lost(0);
  }

  /** Show that the connection is lost, and go to another manager after a delay. */
  #lost(delay) {
    if (this.connected) setTimeout(() => this.#move(), delay);
    this.connected = false;
    this.#tell("connection");
  }

  async #lookElsewhere() {
    this.#elsewhere = await ask("GET", "/api/elsewhere").catch(() => this.#elsewhere);
  }

  /** Whether another manager is known to which the page could go. */
  get canMove() { return Boolean(this.#elsewhere?.managers.length); }

  /** Continue at another manager that answers, with the same view; else wait for this one. */
  async #move() {
    if (this.#source.readyState === EventSource.CLOSED) return;
    const { managers = [], ticket } = this.#elsewhere ?? {};
    for (const address of managers) {
      if (this.connected) return;
      const answers = await fetch(`https://${address}/icon.svg`, { mode: "no-cors", signal: AbortSignal.timeout(PROBE) }).then(() => true, () => false);
      if (answers && !this.connected) {
        const words = new URLSearchParams({ ticket, at: location.hash });
        return location.replace(`https://${address}/#${words}`);
      }
    }
    if (!this.connected) setTimeout(() => this.#move(), MOVE_AFTER);
  }

  /** Subscribe to the state of the etcd members, for which the managers have to be asked. */
  followMembers() {
    this.#asked ??= new EventSource("/api/managers");
    this.#asked.addEventListener("managers", (event) => {
      const told = JSON.parse(event.data);
      for (const each of told.managers) each.key = sortable(each.name);
      this.members = told;
      this.#tell("changed");
    });
  }

  leaveMembers() {
    this.#asked?.close();
    this.#asked = this.members = null;
  }

  tasksOfNode(id) { return this.#byNode.tasks(id); }

  tasksOfService(id) { return this.#byService.tasks(id); }

  /** All tasks, by name. */
  get allTasks() { return this.#sorted ??= [...this.tasks.values()].sort(inOrder); }

  /** Sums of a node's tasks: number of `live` ones, and the `shares` and bytes of `memory` that they
   *  reserve. */
  ofNode(id) { return this.#byNode.sums(id); }

  /** Sums of a service's tasks: number of `working` ones, and of these per version in `versions`. */
  ofService(id) { return this.#byService.sums(id); }

  /** Replace the whole state. */
  whole(picture) {
    for (const kind of KINDS) this[kind].clear();
    this.#byNode = new Groups();
    this.#byService = new Groups();
    this.events = [];
    this.connected = true;
    // In order of names, so that a reopened page shows the same colours.
    Object.values(picture.services).map((service) => service.name).sort().forEach(hue);
    this.changed(picture);
    this.#tell("connection");
  }

  /** Apply changes: fields by kind and id; null: removed. */
  changed(picture) {
    for (const kind of KINDS) {
      for (const [id, told] of Object.entries(picture[kind] ?? {})) {
        if (kind === "tasks") this.#task(id, told);
        else if (told === null) this[kind].delete(id);
        else this.#merged(kind, id, told);
        if (kind === "nodes") this.touched.add(id);
      }
    }
    this.#tell("changed");
  }

  #merged(kind, id, told) {
    const known = this[kind].get(id);
    const item = Object.assign(known ?? { id, ...EMPTY[kind] }, told);
    item.text = null; // cached search text, computed on demand
    item.turn = this.#turn += 1;
    if (!known) {
      item.key = sortable(item.name);
      this[kind].set(id, item);
    }
    return item;
  }

  #task(id, told) {
    const known = this.tasks.get(id);
    const [node, service] = known ? [known.node, known.service] : [null, null];
    if (known) this.touched.add(node);
    if (told === null) {
      if (!known) return;
      this.tasks.delete(id);
      this.#byNode.remove(node, known);
      this.#byService.remove(service, known);
      this.#sorted = null;
      return;
    }
    const task = this.#merged("tasks", id, told);
    this.touched.add(task.node);
    if (known && node === task.node) this.#byNode.changed(node);
    else {
      if (known) this.#byNode.remove(node, task);
      this.#byNode.add(task.node, task);
    }
    if (known) this.#byService.changed(service);
    else {
      this.#byService.add(task.service, task);
      this.#sorted = null;
    }
  }

  #happened(events) {
    for (const event of events) { event.of = event.id; event.id = `e${this.#told += 1}`; }
    this.events = [...events.reverse(), ...this.events].slice(0, MOST_EVENTS);
    this.#tell("happened");
  }

  #tell(kind) { this.dispatchEvent(new Event(kind)); }
}

/** Call the manager; throws an Error with its message if it refuses. */
export async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body ? { "content-type": "application/json" } : {},
      body: body ? JSON.stringify(body) : undefined,
      signal: AbortSignal.timeout(ANSWER),
    });
  } catch {
    throw new Error("manager unreachable; try again");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.error ?? answer.statusText), { status: answer.status });
  return said;
}

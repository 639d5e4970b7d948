// The cluster as the manager tells it: whole once, then what changes.
import { ENDED, hue } from "/words.js";

export class Cluster extends EventTarget {
  nodes = new Map();
  services = new Map();
  tasks = new Map();
  networks = new Map();
  events = [];
  connected = false;
  #source = null;
  #byNode = null;
  #byService = null;

  /** Follow the manager until the page is left; a broken stream begins anew by itself. */
  follow() {
    this.#source = new EventSource("/api/events");
    this.#source.addEventListener("picture", (event) => this.#whole(JSON.parse(event.data)));
    this.#source.addEventListener("changed", (event) => this.#changed(JSON.parse(event.data)));
    this.#source.addEventListener("happened", (event) => this.#happened(JSON.parse(event.data)));
    this.#source.addEventListener("error", () => {
      this.connected = false;
      this.#tell("connection");
      // A log-in that has run out is not mended by asking again.
      if (this.#source.readyState === EventSource.CLOSED) this.#tell("lost");
    });
  }

  tasksOfNode(id) {
    this.#byNode ??= this.#grouped("node");
    return this.#byNode.get(id) ?? [];
  }

  tasksOfService(id) {
    this.#byService ??= this.#grouped("service");
    return this.#byService.get(id) ?? [];
  }

  /** What of a node its tasks reserve: shares and bytes. */
  reserved(id) {
    let shares = 0, memory = 0;
    for (const task of this.tasksOfNode(id)) {
      if (!ENDED.has(task.state)) { shares += task.shares; memory += task.memory; }
    }
    return { shares, memory };
  }

  running(id) {
    return this.tasksOfService(id).filter((task) => task.state === "running" && !task.stops
      && task.health !== "starting" && task.health !== "unhealthy").length;
  }

  #grouped(key) {
    const found = new Map();
    for (const task of this.tasks.values()) {
      if (!found.has(task[key])) found.set(task[key], []);
      found.get(task[key]).push(task);
    }
    for (const tasks of found.values()) {
      tasks.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }) || a.at - b.at);
    }
    return found;
  }

  #whole(picture) {
    for (const kind of ["nodes", "services", "tasks", "networks"]) this[kind].clear();
    this.events = [];
    this.connected = true;
    this.#changed(picture);
    // So that one who opens the page again sees the same colours.
    [...this.services.values()].map((service) => service.name).sort().forEach(hue);
    this.#tell("connection");
  }

  #changed(picture) {
    for (const kind of ["nodes", "services", "tasks", "networks"]) {
      for (const [id, item] of Object.entries(picture[kind] ?? {})) {
        if (item === null) this[kind].delete(id);
        else this[kind].set(id, { id, ...item });
      }
    }
    this.#byNode = this.#byService = null;
    this.#tell("changed");
  }

  #happened(events) {
    this.events = [...events.reverse(), ...this.events].slice(0, 500);
    this.#tell("happened");
  }

  #tell(kind) { this.dispatchEvent(new Event(kind)); }
}

/** Ask the manager; throws an Error with its words when it refuses. */
export async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body ? { "content-type": "application/json" } : {},
      body: body ? JSON.stringify(body) : undefined,
    });
  } catch {
    throw new Error("the manager does not answer; try again");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.error ?? answer.statusText), { status: answer.status });
  return said;
}

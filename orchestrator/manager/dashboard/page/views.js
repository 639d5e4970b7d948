// The lists: services, nodes, tasks, networks, events.
import { ENDED, bytes, clock, cores, h, hue, mood, stateWord, ago } from "/words.js";

const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });

/** Whether anything of an item has every word that is searched for. */
function matches(words, ...texts) {
  const all = texts.join(" ").toLowerCase();
  return words.every((word) => all.includes(word));
}

function table(caption, heads, rows, none) {
  if (!rows.length) return h("p", { class: "empty" }, none);
  return h("table", { class: "wide" },
    h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: head.number && "number" }, head.name ?? head)))),
    h("tbody", {}, rows));
}

export const swatch = (name) => h("span", { class: "dot", style: { background: `hsl(${hue(name)} 52% 50%)` }, "aria-hidden": "true" });

function bar(part, kind, label) {
  const percent = Math.round(Math.min(part, 1) * 100);
  return h("span", { class: "bar", role: "img", "aria-label": `${label}: ${percent}%` }, h("i", { class: kind, style: { width: `${percent}%` } }));
}

export function services(cluster, words) {
  const rows = [...cluster.services.values()].sort(byName)
    .filter((each) => matches(words, each.name, each.image, each.stack, each.mode))
    .map((each) => {
      const running = cluster.running(each.id);
      return h("tr", { "data-key": each.id },
        h("td", {}, swatch(each.name), h("a", { href: `#/service/${each.id}` }, each.name)),
        h("td", {}, each.mode),
        h("td", { class: `number ${running < each.wanted ? "warn" : "good"}` }, `${running} / ${each.wanted}`),
        h("td", {}, each.image),
        h("td", {}, each.ports.join(", ")),
        h("td", { class: /paused|rolled/.test(each.update) ? "bad" : "soft" }, each.update.replaceAll("_", " ")));
    });
  return table("Services", ["Name", "Mode", { name: "Running", number: true }, "Image", "Ports", "Update"], rows,
    words.length ? "No service is like that." : "There is no service yet: orc service create --name web IMAGE");
}

export function nodes(cluster, words) {
  const rows = [...cluster.nodes.values()].sort(byName)
    .filter((each) => matches(words, each.name, each.state, each.availability, each.address, ...Object.entries(each.labels).flat()))
    .map((each) => {
      const used = cluster.reserved(each.id);
      const live = cluster.tasksOfNode(each.id).filter((task) => !ENDED.has(task.state)).length;
      return h("tr", { "data-key": each.id },
        h("td", {}, h("a", { href: `#/node/${each.id}` }, each.name)),
        h("td", { class: each.state === "ready" ? "good" : "bad" }, each.state),
        h("td", { class: each.availability === "active" ? "" : "warn" }, each.availability),
        h("td", { class: "number" }, String(live)),
        h("td", {}, `${cores(used.shares)} / ${cores(each.shares)} cores`, bar(used.shares / Math.max(each.shares, 1), "cpu", "CPU reserved")),
        h("td", {}, `${bytes(used.memory)} / ${bytes(each.memory)}`, bar(used.memory / Math.max(each.memory, 1), "memory", "Memory reserved")));
    });
  return table("Nodes", ["Name", "State", "Availability", { name: "Tasks", number: true }, "CPU", "Memory"], rows, "No node is like that.");
}

const MOST_ROWS = 500;

export function taskRow(cluster, task) {
  const node = cluster.nodes.get(task.node);
  return h("tr", { "data-key": task.id },
    h("td", {}, swatch(cluster.services.get(task.service)?.name ?? task.name), h("a", { href: `#/task/${task.id}` }, task.name)),
    h("td", { class: mood(task) }, stateWord(task)),
    h("td", {}, node ? h("a", { href: `#/node/${node.id}` }, node.name) : ""),
    h("td", {}, task.message),
    h("td", { class: "soft" }, ago(task.at)));
}

export function taskTable(cluster, tasks, none) {
  return table("Tasks", ["Name", "State", "Node", "Reason", "Since"], tasks.slice(0, MOST_ROWS).map((task) => taskRow(cluster, task)), none);
}

export function tasks(cluster, words) {
  const found = [...cluster.tasks.values()]
    .filter((each) => matches(words, each.name, stateWord(each), each.image, each.message, cluster.nodes.get(each.node)?.name ?? "", ...Object.values(each.addresses)))
    .sort((a, b) => Number(ENDED.has(a.state)) - Number(ENDED.has(b.state)) || byName(a, b) || b.at - a.at);
  const more = found.length > MOST_ROWS && h("p", { class: "soft" }, `The first ${MOST_ROWS} of ${found.length}; search for the others.`);
  return h("div", {}, taskTable(cluster, found, "No task is like that."), more);
}

export function networks(cluster, words) {
  const rows = [...cluster.networks.values()].sort(byName)
    .filter((each) => matches(words, each.name, each.driver, each.subnet))
    .map((each) => {
      const users = [...cluster.services.values()].filter((service) => service.networks.includes(each.name));
      const ends = [...cluster.tasks.values()].filter((task) => !ENDED.has(task.state) && task.addresses[each.name]);
      return h("tr", {},
        h("td", {}, each.name),
        h("td", {}, [each.driver, each.internal && "internal", each.encrypted && "encrypted"].filter(Boolean).join(", ")),
        h("td", {}, each.subnet),
        h("td", { class: "number" }, String(ends.length)),
        h("td", {}, users.sort(byName).flatMap((service) => [h("a", { href: `#/service/${service.id}` }, service.name), " "])));
    });
  return table("Networks", ["Name", "Kind", "Subnet", { name: "Addresses", number: true }, "Services"], rows, "No network is like that.");
}

export function events(cluster, words) {
  const rows = cluster.events
    .filter((each) => matches(words, each.type, each.action, each.name, each.node))
    .map((each) => h("tr", {},
      h("td", { class: "soft" }, clock(each.at)),
      h("td", {}, each.type),
      h("td", { class: /die|fail|oom|unhealthy|down/.test(each.action) ? "bad" : "" }, each.action),
      h("td", {}, each.name),
      h("td", {}, each.node)));
  return table("Events", ["Time", "What", "Event", "Name", "Node"], rows, "Nothing has happened yet.");
}

// SPDX-License-Identifier: Apache-2.0
// Search: every word must match, anywhere or, as in `node:db1`, in one field.
import { ENDED, kindOf, stateWord } from "/words.js";

const MOST_OF_A_KIND = 5;

/** Searchable fields of an item, by name. */
const LOOKS = {
  services: (cluster, each) => ({ name: each.name, image: each.image, stack: each.stack, mode: each.mode, update: each.update }),
  nodes: (cluster, each) => ({ name: each.name, state: each.state, availability: each.availability, address: each.address,
    label: Object.entries(each.labels).map((pair) => pair.join("=")).join(" ") }),
  tasks: (cluster, each) => ({ name: each.name, state: `${stateWord(each)} ${kindOf(each)}`, image: each.image, reason: each.message,
    node: cluster.nodes.get(each.node)?.name ?? "", service: cluster.services.get(each.service)?.name ?? "",
    address: Object.values(each.addresses).join(" "), id: each.id }),
  networks: (cluster, each) => ({ name: each.name, driver: each.driver, subnet: each.subnet }),
  managers: (cluster, each) => ({ name: each.name, state: each.state, address: each.address, etcd: each.role, id: each.id }),
  events: (cluster, each) => ({ type: each.type, event: each.action, name: each.name, node: each.node }),
};

/** Split a query into words. */
export const worded = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);

/** Items of a kind (`services`, `nodes`, …) that match every word. */
export function found(cluster, kind, items, words) {
  if (!words.length) return items;
  const asked = words.map((word) => {
    const [, field, value] = /^([a-z]+):(.+)$/.exec(word) ?? [];
    return field ? [field, value] : [null, word];
  });
  return items.filter((item) => {
    // Cached. A change of the item clears it; events never change.
    item.text ??= lowered(LOOKS[kind](cluster, item));
    return asked.every(([field, value]) => (field && field in item.text.fields
      ? item.text.fields[field].includes(value)
      : item.text.all.includes(field ? `${field}:${value}` : value)));
  });
}

function lowered(looks) {
  const fields = Object.fromEntries(Object.entries(looks).map(([name, text]) => [name, text.toLowerCase()]));
  return { fields, all: Object.values(fields).join(" ") };
}

const PLACES = [["services", "service"], ["nodes", "node"], ["tasks", "task"]];

/** Best matches, as `{ kind, name, about, hash }`: ended ones last, names that start with the first
 *  word first. */
export function suggested(cluster, words) {
  if (!words.length) return [];
  return PLACES.flatMap(([kind, one]) => {
    const items = kind === "tasks" ? cluster.allTasks : [...cluster[kind].values()].sort((a, b) => (a.key < b.key ? -1 : 1));
    const all = found(cluster, kind, items, words);
    const begins = (item) => Number(item.name.toLowerCase().startsWith(words[0])), lives = (item) => Number(!ENDED.has(item.state));
    all.sort((a, b) => lives(b) - lives(a) || begins(b) - begins(a));
    return all.slice(0, MOST_OF_A_KIND).map((item) => ({
      kind: one, name: item.name, hash: `#/${one}/${item.id}`,
      about: kind === "tasks" ? stateWord(item) : kind === "nodes" ? item.state : item.image,
    }));
  });
}

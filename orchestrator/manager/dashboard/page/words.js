// Small helpers: elements, numbers, times, colours.

/** An element with attributes, listeners (`onclick`) and children; texts are texts. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

const keyOf = (node) => node.id || node.dataset?.key || "";

/** Make what is in `place` look as `wanted` does, and touch only what differs: whoever has chosen,
 *  focused or scrolled something keeps it. Rows are known by `data-key`. */
export function patch(place, ...wanted) {
  const now = [...place.childNodes];
  wanted.forEach((next, index) => {
    let old = now[index];
    if (old && keyOf(next) && keyOf(old) !== keyOf(next)) {
      const found = now.findIndex((node, at) => at > index && keyOf(node) === keyOf(next));
      if (found > 0) {
        old = now.splice(found, 1)[0];
        now.splice(index, 0, old);
        place.insertBefore(old, now[index + 1]);
      }
    }
    if (!old) place.append(next);
    else if (old.nodeName !== next.nodeName || keyOf(old) !== keyOf(next)) {
      place.insertBefore(next, old);
      now.splice(index, 0, next);
    } else alike(old, next);
  });
  for (const node of now.slice(wanted.length)) node.remove();
}

function alike(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.tagName === "INPUT") {
    if (old !== document.activeElement) old.value = next.value;
  } else patch(old, ...next.childNodes);
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${count >= 10 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

export function cores(shares) {
  return (shares / 1024).toFixed(shares % 1024 ? 2 : 0);
}

export function ago(seconds, now = Date.now() / 1000) {
  const past = Math.max(0, now - seconds);
  if (!seconds) return "";
  if (past < 60) return `${Math.round(past)} s ago`;
  if (past < 3600) return `${Math.round(past / 60)} min ago`;
  if (past < 86400) return `${Math.round(past / 3600)} h ago`;
  return `${Math.round(past / 86400)} d ago`;
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
}

const hues = new Map();

/** A hue of its own for each name, for as long as the page is open: the golden angle keeps those that
 *  come one after the other far apart. */
export function hue(name) {
  if (!hues.has(name)) hues.set(name, (150 + hues.size * 137.508) % 360);
  return hues.get(name);
}

export const STARTING = new Set(["assigned", "accepted", "preparing", "ready", "starting"]);
export const ENDED = new Set(["complete", "shutdown", "failed", "rejected", "orphaned"]);
export const TROUBLE = new Set(["failed", "rejected", "orphaned"]);

/** What a task's state means: `good`, `warn` (on its way, or unwell), `bad` or `soft`. */
export function mood(task) {
  if (TROUBLE.has(task.state) || task.health === "unhealthy") return "bad";
  if (ENDED.has(task.state)) return "soft";
  if (task.state === "running" && task.health !== "starting" && !task.stops) return "good";
  return "warn";
}

export function stateWord(task) {
  if (task.stops) return "stopping";
  return task.health ? `${task.state}, ${task.health}` : task.state;
}

// SPDX-License-Identifier: Apache-2.0
// Text for numbers, times and states.

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${count >= 10 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

export function cores(shares) {
  return (shares / 1024).toFixed(shares % 1024 ? 2 : 0);
}

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

export function ago(seconds, now = Date.now() / 1000) {
  const past = Math.max(0, now - seconds);
  if (!seconds) return "";
  if (past < 60) return `${Math.round(past)} s ago`;
  if (past < 3600) return `${Math.round(past / 60)} min ago`;
  if (past < 86400) return `${Math.round(past / 3600)} h ago`;
  return `${Math.round(past / 86400)} d ago`;
}

const CLOCK = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

export const clock = (seconds) => CLOCK.format(seconds * 1000);

/** Sort key in natural order: numbers compare by value. */
export const sortable = (text) => text.toLowerCase().replace(/\d+/g, (digits) => digits.padStart(12, "0"));

export const STARTING = new Set(["assigned", "accepted", "preparing", "ready", "starting"]);
export const ENDED = new Set(["complete", "shutdown", "failed", "rejected", "orphaned"]);
export const TROUBLE = new Set(["failed", "rejected", "orphaned"]);

/** Whether a task is running, healthy and not stopping. */
export const works = (task) => task.state === "running" && !task.stops && task.health !== "starting" && task.health !== "unhealthy";

/** Seconds for which a failure counts as recent. */
const RECENT = 60;

/** Whether a task failed and waits for its restart (backoff). */
export const backsOff = (task, now = Date.now() / 1000) => task.state === "pending" && task.retry_at > now;

/** Category of a task, for counts and filters. */
export function kindOf(task, now = Date.now() / 1000) {
  if (task.health === "unhealthy" || backsOff(task, now) || (TROUBLE.has(task.state) && now - task.at < RECENT)) return "trouble";
  if (ENDED.has(task.state)) return "ended";
  if (task.state === "running") return "running";
  return STARTING.has(task.state) ? "starting" : "waiting";
}

/** Severity of a task's state: `good`, `warn` (starting, waiting or unhealthy), `bad` or `soft`. */
export function mood(task) {
  if (TROUBLE.has(task.state) || task.health === "unhealthy" || backsOff(task)) return "bad";
  if (ENDED.has(task.state)) return "soft";
  return works(task) ? "good" : "warn";
}

export function stateWord(task) {
  if (task.stops) return "stopping";
  if (backsOff(task)) return "backing off";
  return task.health && !ENDED.has(task.state) ? `${task.state}, ${task.health}` : task.state;
}

/** Progress of a service: its `text`, and its `mood`: `good`, `warn`, `bad` or `soft`. */
export function extent(service, working) {
  const { job, done, of, wanted } = service;
  if (!job) return { text: `${working} / ${wanted}`, mood: working < wanted ? "warn" : "good" };
  if (job === "waiting") return { text: "not run yet", mood: "soft" };
  const mood = { failed: "bad", complete: "good" }[job] ?? "soft";
  return { text: `${done} / ${of} done`, mood };
}

/** Summary of a node as a sentence; `used` comes from `Cluster.ofNode`. */
export function nodeSentence(node, used) {
  return `${node.name}: ${node.state}, ${node.availability}. ${count(used.live, "task")}, ${cores(used.shares)} of `
    + `${cores(node.shares)} cores and ${bytes(used.memory)} of ${bytes(node.memory)} reserved`;
}

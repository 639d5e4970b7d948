// The page: log-in, what is shown where, search, keyboard.
import { Cluster, ask } from "/state.js";
import { Panel } from "/panel.js";
import { Picture } from "/picture.js";
import * as views from "/views.js";
import { ENDED, STARTING, TROUBLE, h, patch } from "/words.js";

const VIEWS = ["picture", "services", "nodes", "tasks", "networks", "events"];
const main = document.getElementById("main"), search = document.getElementById("search");
const cluster = new Cluster();
const picture = new Picture(cluster, (hash) => { location.hash = hash; }, document.getElementById("tip"));
const panel = new Panel(document.getElementById("panel"), cluster, () => role === "admin", say, back);
let role = "", view = "picture", due = 0;

function say(text) {
  const line = h("p", {}, text);
  document.getElementById("toasts").append(line);
  setTimeout(() => line.remove(), 8000);
}

function back() {
  location.hash = `#/${view}`;
  (view === "picture" ? picture.element : main).focus();
}

function route() {
  const [, first = "", id = ""] = location.hash.split("/");
  const known = VIEWS.includes(first);
  if (known && first !== view) { view = first; main.replaceChildren(); }
  panel.show(!known && ["service", "node", "task"].includes(first) && id ? [first, id] : null);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `Orc: ${view}`;
  render();
}

function render() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  // Who searches in the picture wants a list of what is found.
  const drawn = view === "picture" && !words.length;
  main.classList.toggle("bare", drawn);
  if (drawn) {
    if (!picture.element.isConnected) {
      main.replaceChildren(picture.element, legend());
      picture.attach();
    } else picture.refresh();
  } else {
    if (picture.element.isConnected) { picture.detach(); main.replaceChildren(); }
    const list = view === "picture" ? "tasks" : view;
    patch(main, views[list](cluster, words));
  }
  panel.refresh();
  summarise();
}

function legend() {
  return h("p", { class: "legend", "aria-hidden": "true" },
    h("span", {}, "■ a task, in its service's colour"), h("span", {}, "□ on its way"), h("span", { class: "bad" }, "⊠ failed or unwell"),
    h("span", {}, "bars: CPU and memory reserved"));
}

function summarise() {
  const nodes = [...cluster.nodes.values()], ready = nodes.filter((node) => node.state === "ready").length;
  const count = { running: 0, starting: 0, waiting: 0 };
  let unwell = 0;
  for (const task of cluster.tasks.values()) {
    if (task.state === "running") count.running += 1;
    else if (STARTING.has(task.state)) count.starting += 1;
    else if (!ENDED.has(task.state)) count.waiting += 1;
    if (task.health === "unhealthy" || (TROUBLE.has(task.state) && Date.now() / 1000 - task.at < 60)) unwell += 1;
  }
  const parts = [`${ready} of ${nodes.length} nodes ready`, `${count.running} tasks running`];
  if (count.starting) parts.push(`${count.starting} starting`);
  if (count.waiting) parts.push(`${count.waiting} waiting`);
  const place = document.getElementById("summary");
  const text = parts.join(" · ");
  const alarm = !cluster.connected ? "not connected to the manager" : unwell ? `${unwell} in trouble` : "";
  if (place.dataset.said === text + alarm) return;
  place.dataset.said = text + alarm;
  place.replaceChildren(text, alarm ? " · " : "", alarm ? h("span", { class: "bad" }, alarm) : "");
}

/** Draw soon, and once for many changes. */
function soon() {
  if (!due) due = requestAnimationFrame(() => { due = 0; render(); });
}

const help = document.getElementById("help");
function showHelp() {
  const keys = [["1 … 6", "the views"], ["/", "search"], ["arrows, Enter", "choose and open a node in the picture"],
    ["Esc", "close what is open"], ["d", "dark or light"], ["?", "this"]];
  help.replaceChildren(h("h2", { id: "help-title" }, "Keyboard"),
    h("dl", {}, keys.flatMap(([key, does]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)])),
    h("form", { method: "dialog" }, h("button", {}, "Close")));
  help.showModal();
}

function theme(next) {
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = next ?? localStorage.getItem("theme") ?? preferred;
  if (next) localStorage.setItem("theme", next);
  picture.wake();
}

const otherTheme = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (event.key === "Escape") {
    if (document.activeElement === search && search.value) { search.value = ""; render(); } else back();
    return;
  }
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const index = Number(event.key) - 1;
  if (event.key === "/") search.focus();
  else if (event.key === "?") showHelp();
  else if (event.key === "d") otherTheme();
  else if (index >= 0 && index < VIEWS.length) location.hash = `#/${VIEWS[index]}`;
  else return;
  event.preventDefault();
}

function lockedOut(text) {
  main.classList.remove("bare");
  main.replaceChildren(h("div", { class: "empty" }, h("p", {}, text), h("p", {}, "On a machine with an orc context: ", h("kbd", {}, "orc dashboard"))));
}

async function begin() {
  theme();
  const ticket = new URLSearchParams(location.hash.slice(1)).get("ticket");
  try {
    if (ticket) {
      // The ticket leaves the address before anything else: neither history nor a screenshot keeps it.
      history.replaceState(null, "", "/#/picture");
      role = (await ask("POST", "/api/session", { ticket })).role;
    } else role = (await ask("GET", "/api/session")).role;
  } catch (error) {
    return lockedOut(error.message);
  }
  document.getElementById("theme").addEventListener("click", otherTheme);
  document.getElementById("keys").addEventListener("click", showHelp);
  search.addEventListener("input", soon);
  addEventListener("keydown", onKey);
  addEventListener("hashchange", route);
  for (const kind of ["changed", "happened", "connection"]) cluster.addEventListener(kind, soon);
  cluster.addEventListener("lost", () => lockedOut("Log in again: this log-in is over, or the manager is away."));
  cluster.follow();
  // For whoever measures or tests.
  window.orc = { cluster, picture };
  route();
}

begin();

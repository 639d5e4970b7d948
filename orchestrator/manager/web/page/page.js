// SPDX-License-Identifier: Apache-2.0
// The page: log-in, routing, keyboard.
import { Cluster, ask } from "/state.js";
import { isDark } from "/colours.js";
import { h, patch } from "/elements.js";
import { Panel } from "/panel.js";
import { Picture } from "/picture.js";
import { SearchBox } from "/searchbox.js";
import { found } from "/search.js";
import { Traffic } from "/traffic.js";
import { Views, swatch } from "/views.js";
import { count, kindOf } from "/words.js";

const VIEWS = ["picture", "traffic", "services", "nodes", "tasks", "networks", "events", "managers"];
const PANELS = ["service", "node", "task"];
const MOST_IN_LEGEND = 24;
const place = (id) => document.getElementById(id);
const main = place("main"), help = place("help"), legend = h("ul", { class: "legend", "aria-label": "Services" });
const hint = h("p", { class: "hint", hidden: true });
const cluster = new Cluster();
const open = (hash) => { location.hash = hash; };
const picture = new Picture(cluster, open, place("tip"));
const traffic = new Traffic(cluster, open);
const views = new Views(cluster);
const panel = new Panel(place("panel"), cluster, () => role === "admin", say, back);
const search = new SearchBox(place("search"), place("offers"), cluster, soon);
let role = "", view = "picture", due = 0, from = null;

function say(text, mood = "") {
  const line = h("p", { class: mood }, text);
  place("toasts").append(line);
  setTimeout(() => line.remove(), 8000);
}

/** Close what is open, and restore the view and the focus. */
function back() {
  const focus = from;
  location.hash = `#/${view}`;
  if (focus?.isConnected) focus.focus({ preventScroll: true });
  else (view === "picture" ? picture.element : main).focus({ preventScroll: true });
}

function route() {
  const [path, query] = location.hash.split("?"), [, first = "", id = ""] = path.split("/");
  const known = VIEWS.includes(first), panelled = PANELS.includes(first) && id;
  if (query) {
    place("search").value = decodeURIComponent(query);
    history.replaceState(null, "", path);
  }
  if (panelled && place("panel").hidden) from = document.activeElement;
  if (known && first !== view) { leave(); view = first; }
  panel.show(panelled ? [first, id] : null);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `Orc: ${view}`;
  render();
}

function leave() {
  if (view === "picture") picture.detach();
  if (view === "traffic") traffic.detach();
  if (view === "managers") cluster.leaveMembers();
  main.replaceChildren();
  main.scrollTop = 0;
}

function render() {
  main.classList.toggle("bare", view === "picture" || view === "traffic");
  if (view === "picture") drawPicture();
  else if (view === "traffic") {
    if (!traffic.element.isConnected) { main.replaceChildren(traffic.element); traffic.attach(); }
  } else {
    if (!main.firstChild) {
      main.replaceChildren(views.element(view));
      if (view === "managers") cluster.followMembers();
    }
    views.refresh(view, search.words);
  }
  panel.refresh();
  summarise();
}

let searched = "";
function drawPicture() {
  const words = search.words, text = words.join(" ");
  if (!picture.element.isConnected) {
    main.replaceChildren(h("div", { class: "canvas" }, picture.element, hint), legend);
    picture.attach();
  } else picture.refresh();
  if (text || searched) {
    const ids = text ? new Set(found(cluster, "tasks", cluster.allTasks, words).map((task) => task.id)) : null;
    picture.find(ids);
    place("found").textContent = ids ? (ids.size ? `${count(ids.size, "task")} found` : "No matching tasks.") : "";
  }
  searched = text;
  suggest();
  const services = [...cluster.services.values()].sort((a, b) => cluster.ofService(b.id).live - cluster.ofService(a.id).live || (a.key < b.key ? -1 : 1));
  const key = services.slice(0, MOST_IN_LEGEND).map((service) => `${service.id} ${cluster.ofService(service.id).live}`).join();
  if (legend.dataset.shown === `${key} ${services.length} ${isDark()}`) return;
  legend.dataset.shown = `${key} ${services.length} ${isDark()}`;
  patch(legend, services.slice(0, MOST_IN_LEGEND).map((service) => h("li", { "data-key": service.id },
    h("a", {
      href: `#/service/${service.id}`, onpointerenter: () => picture.light(service.id), onpointerleave: () => picture.light(null),
      onfocus: () => picture.light(service.id), onblur: () => picture.light(null),
    }, swatch(service.name), service.name, h("span", { class: "soft" }, String(cluster.ofService(service.id).live))))),
  services.length > MOST_IN_LEGEND && h("li", { "data-key": "more" }, h("a", { href: "#/services" }, `and ${services.length - MOST_IN_LEGEND} more`)));
}

/** Show instructions while the cluster is empty. */
function suggest() {
  const [text, command] = !cluster.connected ? [] : !cluster.nodes.size ? ["No nodes have joined yet. To get the join command, run:", "orc cluster token worker"]
    : !cluster.tasks.size ? ["No tasks yet. To create a service, run:", "orc service create --name web --replicas 3 IMAGE"] : [];
  hint.hidden = !text;
  hint.classList.toggle("low", cluster.nodes.size > 0);
  if (text) patch(hint, h("span", {}, text), h("span", {}, h("kbd", {}, command)));
}

function summarise() {
  const nodes = [...cluster.nodes.values()], ready = nodes.filter((node) => node.state === "ready").length;
  const found = { running: 0, starting: 0, waiting: 0, trouble: 0, ended: 0 }, now = Date.now() / 1000;
  for (const task of cluster.tasks.values()) found[kindOf(task, now)] += 1;
  const parts = [["nodes", ready < nodes.length ? "warn" : "good", `${ready} of ${nodes.length} nodes ready`, "#/nodes"],
    ["running", "good", `${count(found.running, "task")} running`, "#/tasks"]];
  const managers = [...cluster.managers.values()].filter((each) => each.state !== "joining");
  const serving = managers.filter((each) => each.state === "ready").length;
  if (serving < managers.length) parts.push(["managers", serving * 2 > managers.length ? "warn" : "bad", `${serving} of ${count(managers.length, "manager")} ready`, "#/managers"]);
  if (found.starting) parts.push(["starting", "", `${found.starting} starting`, "#/tasks"]);
  if (found.waiting) parts.push(["waiting", "warn", `${found.waiting} waiting`, "#/tasks"]);
  if (found.trouble) parts.push(["trouble", "bad", `${found.trouble} in trouble`, "#/tasks"]);
  if (!cluster.connected) parts.push(["disconnected", "bad", "manager unreachable; reconnecting…", "#/events"]);
  patch(place("summary"), parts.map(([key, mood, text, hash]) => h("a", {
    class: `pill ${mood}`, "data-key": key, href: hash, onclick: () => views.choose(hash === "#/tasks" ? key : ""),
  }, text)));
}

/** Schedule a redraw; changes are coalesced. */
function soon() {
  if (!due) due = requestAnimationFrame(() => { due = 0; render(); });
}

function showHelp() {
  const keys = [[`1 … ${VIEWS.length}`, "the views"], ["/", "search; then arrows and Enter"], ["arrows, Enter", "choose and open: a node in the picture, a row of a list"],
    ["r", "set replicas of the open service"], ["l", "logs of the open item"], ["Esc", "close the panel"], ["d", "dark or light theme"], ["?", "this help"]];
  help.replaceChildren(h("h2", { id: "help-title" }, "Keyboard"),
    h("dl", {}, keys.flatMap(([key, does]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)])),
    h("form", { method: "dialog" }, h("button", { class: "main" }, "Close")));
  help.showModal();
}

function theme(next) {
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = next ?? localStorage.getItem("theme") ?? preferred;
  if (next) localStorage.setItem("theme", next);
}

const otherTheme = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

function recolour() {
  if (picture.element.isConnected) picture.repaint();
  if (traffic.element.isConnected) traffic.refresh();
  soon();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (event.key === "Escape") return back();
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const index = Number(event.key) - 1;
  const acts = { "/": () => search.focus(), "?": showHelp, d: otherTheme, r: () => place("replicas")?.select(), l: () => place("logs")?.click() };
  if (event.key in acts) acts[event.key]();
  else if (index >= 0 && index < VIEWS.length) location.hash = `#/${VIEWS[index]}`;
  else if (event.key === "ArrowDown" && event.target === main) main.querySelector("tbody a")?.focus();
  else return;
  event.preventDefault();
}

function lockedOut(text) {
  main.classList.remove("bare");
  main.replaceChildren(h("div", { class: "empty" }, h("img", { src: "/icon.svg", alt: "", width: "56", height: "56" }),
    h("p", {}, text[0].toUpperCase() + text.slice(1)), h("p", {}, "On a machine with an orc context: ", h("kbd", {}, "orc dashboard"))));
}

async function begin() {
  theme();
  const words = new URLSearchParams(location.hash.slice(1)), ticket = words.get("ticket"), at = words.get("at") ?? "";
  try {
    if (ticket) {
      // Remove the ticket from the address first: neither history nor a screenshot keeps it.
      history.replaceState(null, "", at.startsWith("#/") ? `/${at}` : "/#/picture");
      role = (await ask("POST", "/api/session", { ticket })).role;
    } else role = (await ask("GET", "/api/session")).role;
  } catch (error) {
    return lockedOut(error.message);
  }
  place("role").hidden = role === "admin";
  place("theme").addEventListener("click", otherTheme);
  place("keys").addEventListener("click", showHelp);
  new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  addEventListener("keydown", onKey);
  addEventListener("hashchange", route);
  main.addEventListener("scroll", () => { if (!main.classList.contains("bare")) views.draw(view); });
  main.addEventListener("sorted", soon);
  addEventListener("resize", soon);
  for (const kind of ["changed", "happened", "connection"]) cluster.addEventListener(kind, soon);
  cluster.addEventListener("lost", () => lockedOut("Log in again: the session has ended, or the manager is unreachable."));
  cluster.follow();
  // Refresh relative times.
  setInterval(soon, 5000);
  // For tests and measurements.
  window.orc = { cluster, picture, traffic, get rests() { return !due && picture.rests; } };
  route();
}

begin();

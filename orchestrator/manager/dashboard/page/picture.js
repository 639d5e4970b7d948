// The picture: nodes as boxes that fill up, tasks in them that move as they move.
import { ENDED, STARTING, TROUBLE, bytes, cores, hue, stateWord } from "/words.js";

const GAP = 12, HEAD = 22, BARS = 22, PAD = 8, WAITING = "";
const SPEED = 9; // of motion: what is left of a way shrinks by e in 1/SPEED seconds
const MOST_CELL = 30, LEAST_CELL = 3;

export class Picture {
  #canvas; #pen; #cluster; #open; #tip;
  #sprites = new Map();
  #boxes = [];
  #frame = 0; #last = 0; #size = [0, 0];
  #chosen = 0;
  #observer;

  constructor(cluster, open, tip) {
    this.#cluster = cluster;
    this.#open = open;
    this.#tip = tip;
    this.#canvas = document.createElement("canvas");
    this.#canvas.tabIndex = 0;
    this.#canvas.setAttribute("role", "application");
    this.#canvas.setAttribute("aria-roledescription", "picture of the cluster");
    this.#pen = this.#canvas.getContext("2d", { alpha: false });
    this.#canvas.addEventListener("pointermove", (event) => this.#hover(event));
    this.#canvas.addEventListener("pointerleave", () => { this.#tip.hidden = true; });
    this.#canvas.addEventListener("click", (event) => this.#click(event));
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("focus", () => this.wake());
    this.#canvas.addEventListener("blur", () => this.wake());
    this.#observer = new ResizeObserver(() => this.refresh());
  }

  get element() { return this.#canvas; }

  /** Frames drawn and the milliseconds they took, for whoever measures. */
  drawn = { frames: 0, milliseconds: 0 };

  attach() { this.#observer.observe(this.#canvas.parentElement); this.refresh(); }

  detach() { this.#observer.disconnect(); cancelAnimationFrame(this.#frame); this.#frame = 0; this.#tip.hidden = true; }

  /** Lay out anew what the cluster is now, and move there. */
  refresh() {
    const place = this.#canvas.parentElement;
    if (!place) return;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [place.clientWidth, place.clientHeight];
    if (this.#size[0] !== width || this.#size[1] !== height || this.#canvas.width !== Math.round(width * ratio)) {
      this.#canvas.width = Math.round(width * ratio);
      this.#canvas.height = Math.round(height * ratio);
      this.#size = [width, height];
    }
    this.#layOut(width, height);
    this.#describe();
    this.wake();
  }

  wake() {
    if (!this.#frame && this.#canvas.isConnected) {
      this.#last = performance.now();
      this.#frame = requestAnimationFrame((now) => this.#draw(now));
    }
  }

  #layOut(width, height) {
    const nodes = [...this.#cluster.nodes.values()]
      .sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    const waiting = this.#cluster.tasksOfNode(WAITING).filter((task) => !ENDED.has(task.state));
    const top = waiting.length ? HEAD + MOST_CELL + 3 * PAD : 0;
    const bottom = 40;
    const room = [width - GAP, height - GAP - top - bottom];
    const count = Math.max(nodes.length, 1);
    let best = null;
    for (let columns = 1; columns <= count; columns += 1) {
      const rows = Math.ceil(count / columns);
      const box = [room[0] / columns - GAP, room[1] / rows - GAP];
      const score = Math.min(box[0] / 1.5, box[1]);
      if (box[0] > 20 && (!best || score > best.score)) best = { columns, box, score };
    }
    const { columns, box } = best ?? { columns: 1, box: room };
    box[0] = Math.min(box[0], 460); box[1] = Math.min(Math.max(box[1], 40), 360);
    this.#boxes = nodes.map((node, index) => ({
      node,
      x: GAP + (index % columns) * (box[0] + GAP),
      y: GAP + top + Math.floor(index / columns) * (box[1] + GAP),
      width: box[0],
      height: box[1],
    }));
    this.columns = columns;
    const seen = new Set();
    for (const frame of this.#boxes) this.#fill(frame, seen);
    this.waitingBox = waiting.length ? { x: GAP, y: GAP, width: width - 2 * GAP, height: top - GAP } : null;
    const cell = Math.min(MOST_CELL, (width - 2 * GAP - 2 * PAD) / Math.max(waiting.length, 1));
    waiting.forEach((task, index) => {
      seen.add(task.id);
      this.#aim(task, GAP + PAD + index * cell, GAP + HEAD, Math.max(cell - 2, LEAST_CELL));
    });
    for (const [id, sprite] of this.#sprites) {
      if (!seen.has(id)) { sprite.gone = true; sprite.toAlpha = 0; }
    }
    this.#chosen = Math.min(this.#chosen, Math.max(this.#boxes.length - 1, 0));
  }

  #fill(frame, seen) {
    const tasks = this.#cluster.tasksOfNode(frame.node.id)
      .filter((task) => !ENDED.has(task.state) || this.#recent(task));
    const small = frame.height < 90;
    const top = small ? HEAD : HEAD + BARS;
    const [width, height] = [frame.width - 2 * PAD, frame.height - top - PAD];
    let cell = MOST_CELL;
    while (cell > LEAST_CELL && Math.floor(width / cell) * Math.floor(height / cell) < tasks.length) cell -= 1;
    const across = Math.max(Math.floor(width / cell), 1);
    frame.top = top; frame.cell = cell; frame.across = across; frame.tasks = tasks;
    tasks.forEach((task, index) => {
      seen.add(task.id);
      this.#aim(
        task,
        frame.x + PAD + (index % across) * cell,
        frame.y + top + Math.floor(index / across) * cell,
        Math.max(cell - 2, 2),
      );
    });
  }

  /** What failed is still shown for a while, so that it is seen. */
  #recent(task) { return TROUBLE.has(task.state) && Date.now() / 1000 - task.at < 20; }

  #aim(task, x, y, size) {
    let sprite = this.#sprites.get(task.id);
    if (!sprite) {
      sprite = { x, y, size: 0, alpha: 0 };
      this.#sprites.set(task.id, sprite);
    }
    Object.assign(sprite, { toX: x, toY: y, toSize: size, toAlpha: task.stops ? 0.45 : 1, task, gone: false });
    const name = this.#cluster.services.get(task.service)?.name ?? task.name;
    sprite.hue = sprite.named === name ? sprite.hue : hue(name);
    sprite.named = name;
  }

  #draw(now) {
    const began = performance.now();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const step = still ? 1 : 1 - Math.exp(-Math.min(now - this.#last, 100) / 1000 * SPEED);
    this.#last = now;
    const style = getComputedStyle(document.documentElement);
    const ink = (name) => style.getPropertyValue(name).trim();
    const colours = {
      ground: ink("--ground"), card: ink("--card"), line: ink("--line"), ink: ink("--ink"),
      soft: ink("--soft"), bad: ink("--bad"), warn: ink("--warn"), bar: ink("--bar"),
      cpu: ink("--bar-cpu"), memory: ink("--bar-memory"), focus: ink("--focus"),
      dark: document.documentElement.dataset.theme === "dark",
    };
    const pen = this.#pen, ratio = window.devicePixelRatio || 1;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = colours.ground;
    pen.fillRect(0, 0, ...this.#size);
    this.#boxes.forEach((frame, index) => this.#box(pen, colours, frame, index));
    if (this.waitingBox) this.#waiting(pen, colours);
    const moving = this.#tasks(pen, colours, step, now, still);
    this.drawn.frames += 1;
    this.drawn.milliseconds += performance.now() - began;
    this.#frame = moving ? requestAnimationFrame((next) => this.#draw(next)) : 0;
  }

  #box(pen, colours, frame, index) {
    const { node, x, y, width, height } = frame;
    const down = node.state !== "ready", drained = node.availability !== "active";
    pen.fillStyle = colours.card;
    pen.strokeStyle = down ? colours.bad : drained ? colours.warn : colours.line;
    pen.lineWidth = down || drained ? 2 : 1;
    pen.beginPath(); pen.roundRect(x, y, width, height, 8); pen.fill(); pen.stroke();
    if (index === this.#chosen && document.activeElement === this.#canvas) {
      pen.strokeStyle = colours.focus; pen.lineWidth = 3;
      pen.beginPath(); pen.roundRect(x - 2, y - 2, width + 4, height + 4, 10); pen.stroke();
    }
    pen.font = "600 13px system-ui, sans-serif"; pen.textBaseline = "middle";
    pen.fillStyle = down ? colours.bad : colours.ink;
    const word = down ? ` ${node.state}` : drained ? ` ${node.availability}` : "";
    pen.fillText(clipped(pen, node.name + word, width - 2 * PAD), x + PAD, y + 12);
    if (frame.top === HEAD) return;
    const reserved = this.#cluster.reserved(node.id);
    const bars = [
      [reserved.shares / Math.max(node.shares, 1), colours.cpu],
      [reserved.memory / Math.max(node.memory, 1), colours.memory],
    ];
    bars.forEach(([part, colour], row) => {
      const at = y + HEAD + row * 8;
      pen.fillStyle = colours.bar;
      pen.fillRect(x + PAD, at, width - 2 * PAD, 5);
      pen.fillStyle = colour;
      pen.fillRect(x + PAD, at, (width - 2 * PAD) * Math.min(part, 1), 5);
    });
  }

  #waiting(pen, colours) {
    const { x, y, width, height } = this.waitingBox;
    pen.strokeStyle = colours.warn; pen.lineWidth = 2; pen.setLineDash([5, 4]);
    pen.beginPath(); pen.roundRect(x, y, width, height, 8); pen.stroke();
    pen.setLineDash([]);
    pen.font = "600 13px system-ui, sans-serif"; pen.textBaseline = "middle";
    pen.fillStyle = colours.warn;
    pen.fillText("Waiting for a node", x + PAD, y + 12);
  }

  #tasks(pen, colours, step, now, still) {
    let moving = false;
    const pulse = still ? 0.75 : 0.65 + 0.35 * Math.sin(now / 180);
    for (const [id, sprite] of this.#sprites) {
      for (const [at, to] of [["x", "toX"], ["y", "toY"], ["size", "toSize"], ["alpha", "toAlpha"]]) {
        const way = sprite[to] - sprite[at];
        if (Math.abs(way) > (at === "alpha" ? 0.01 : 0.3)) { sprite[at] += way * step; moving = true; } else sprite[at] = sprite[to];
      }
      if (sprite.gone && sprite.alpha <= 0.01) { this.#sprites.delete(id); continue; }
      const { task } = sprite, { x, y, size } = sprite;
      const begins = STARTING.has(task.state) || task.state === "pending" || task.state === "new" || task.health === "starting";
      const bad = TROUBLE.has(task.state) || task.health === "unhealthy";
      pen.globalAlpha = sprite.alpha * (begins ? pulse : 1);
      pen.fillStyle = bad ? colours.bad : `hsl(${sprite.hue} ${colours.dark ? "55% 62%" : "52% 45%"})`;
      if (begins) {
        moving = moving || !still;
        pen.strokeStyle = pen.fillStyle; pen.lineWidth = 1.5;
        pen.strokeRect(x + 0.75, y + 0.75, Math.max(size - 1.5, 1), Math.max(size - 1.5, 1));
      } else pen.fillRect(x, y, size, size);
      if (bad && size > 7) {
        pen.strokeStyle = colours.card; pen.lineWidth = 1.5;
        pen.beginPath(); pen.moveTo(x + 3, y + 3); pen.lineTo(x + size - 3, y + size - 3);
        pen.moveTo(x + size - 3, y + 3); pen.lineTo(x + 3, y + size - 3); pen.stroke();
      }
    }
    pen.globalAlpha = 1;
    return moving;
  }

  #at(event) {
    const bounds = this.#canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
    for (const sprite of this.#sprites.values()) {
      if (!sprite.gone && x >= sprite.x && y >= sprite.y && x <= sprite.x + sprite.size + 2 && y <= sprite.y + sprite.size + 2) {
        return { task: sprite.task };
      }
    }
    const frame = this.#boxes.find((each) => x >= each.x && y >= each.y && x <= each.x + each.width && y <= each.y + each.height);
    return frame ? { node: frame.node } : null;
  }

  #hover(event) {
    const found = this.#at(event);
    this.#canvas.style.cursor = found ? "pointer" : "default";
    this.#tip.hidden = !found;
    if (!found) return;
    this.#tip.textContent = found.task
      ? `${found.task.name}: ${stateWord(found.task)}${found.task.message ? `. ${found.task.message}` : ""}`
      : this.#sentence(found.node);
    this.#tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 260)}px`;
    this.#tip.style.top = `${Math.min(event.clientY + 14, innerHeight - 70)}px`;
  }

  #click(event) {
    const found = this.#at(event);
    if (found?.task) this.#open(`#/task/${found.task.id}`);
    else if (found?.node) this.#open(`#/node/${found.node.id}`);
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    if (event.key in steps) {
      const next = this.#chosen + steps[event.key];
      if (next >= 0 && next < this.#boxes.length) this.#chosen = next;
      this.#describe();
      this.wake();
    } else if (event.key === "Enter" && this.#boxes[this.#chosen]) {
      this.#open(`#/node/${this.#boxes[this.#chosen].node.id}`);
    } else return;
    event.preventDefault();
  }

  #sentence(node) {
    const used = this.#cluster.reserved(node.id);
    const tasks = this.#cluster.tasksOfNode(node.id).filter((task) => !ENDED.has(task.state)).length;
    return `${node.name}: ${node.state}, ${node.availability}. ${tasks} tasks, ${cores(used.shares)} of `
      + `${cores(node.shares)} cores and ${bytes(used.memory)} of ${bytes(node.memory)} reserved`;
  }

  #describe() {
    const frame = this.#boxes[this.#chosen];
    this.#canvas.setAttribute("aria-label", frame ? this.#sentence(frame.node) : "No nodes");
  }
}

function clipped(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && pen.measureText(`${text.slice(0, end)}…`).width > width) end -= 1;
  return `${text.slice(0, end)}…`;
}

// The picture: nodes as boxes that fill up, tasks in them that move as they move.
//
// What rests is painted once on a stage, box by box, and only boxes in which something changed are
// painted anew; a frame is the stage and, above it, the few tasks that move.
import { inks, isDark, shade } from "/colours.js";
import { GAP, arranged, cellOf } from "/layout.js";
import { paintBox, paintTask, paintWaiting } from "/paint.js";
import { ENDED, STARTING, TROUBLE, bytes, cores, count, stateWord } from "/words.js";

const WAITING = "";
const SPEED = 9; // of motion: what is left of a way shrinks by e in 1/SPEED seconds
const NEWS = 20; // seconds for which what failed is still shown, so that it is seen
const WAITING_HIGH = 74;

export class Picture {
  #canvas = document.createElement("canvas");
  #stage = document.createElement("canvas");
  #pen; #under; #cluster; #open; #tip;
  #sprites = new Map();
  #moving = new Set();
  #boxes = [];
  #byNode = new Map();
  #dirty = new Set();
  #layout = null; #order = "";
  #inks = null;
  #frame = 0; #last = 0; #size = [0, 0];
  #chosen = 0; #lit = null; #found = null;
  #expiry = 0;
  #observer;

  constructor(cluster, open, tip) {
    this.#cluster = cluster;
    this.#open = open;
    this.#tip = tip;
    const canvas = this.#canvas;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "picture of the cluster");
    this.#pen = canvas.getContext("2d", { alpha: false });
    this.#under = this.#stage.getContext("2d", { alpha: false });
    canvas.addEventListener("pointermove", (event) => this.#hover(event));
    canvas.addEventListener("pointerleave", () => { this.#tip.hidden = true; });
    canvas.addEventListener("click", (event) => this.#click(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, () => this.wake());
    this.#observer = new ResizeObserver(() => this.refresh());
  }

  get element() { return this.#canvas; }

  /** Frames drawn and the milliseconds they took, for whoever measures. */
  drawn = { frames: 0, milliseconds: 0 };

  attach() { this.#observer.observe(this.#canvas.parentElement); this.repaint(); }

  detach() {
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#expiry);
    this.#frame = 0;
    this.#tip.hidden = true;
  }

  /** Show only the tasks of this service as bright as they are, or, with null, all. */
  light(service) { this.#lit = service; this.repaint(); }

  /** Show only these tasks (a set of ids) as bright as they are, or, with null, all. */
  find(tasks) { this.#found = tasks; this.repaint(); }

  /** Paint all anew, as when the colours have changed. */
  repaint() {
    this.#inks = null;
    this.#size = [0, 0];
    this.refresh();
  }

  /** Lay out what has changed in the cluster, and move there. */
  refresh() {
    const place = this.#canvas.parentElement;
    if (!place) return;
    const ratio = window.devicePixelRatio || 1, [width, height] = [place.clientWidth, place.clientHeight];
    if (!width || !height) return;
    let all = this.#size[0] !== width || this.#size[1] !== height;
    if (all) {
      this.#size = [width, height];
      for (const canvas of [this.#canvas, this.#stage]) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
    }
    this.#inks ??= { ...inks(), dark: isDark() };
    all = this.#arrange(width, height) || all;
    const touched = this.#cluster.touched;
    for (const box of this.#boxes) if (all || touched.has(box.node.id)) this.#fill(box);
    if (all || touched.has(WAITING)) this.#wait(width);
    touched.clear();
    for (const sprite of this.#sprites.values()) {
      if (this.#cluster.tasks.get(sprite.task.id) === sprite.task && !sprite.over) continue;
      if (!sprite.gone) { sprite.gone = true; sprite.toAlpha = 0; this.#move(sprite); }
    }
    if (all) this.#dirty = new Set([...this.#boxes, null]);
    this.#describe();
    this.wake();
  }

  wake() {
    if (!this.#frame && this.#canvas.isConnected) {
      this.#last = performance.now();
      this.#frame = requestAnimationFrame((now) => this.#draw(now));
    }
  }

  /** Whether boxes are elsewhere than they were. */
  #arrange(width, height) {
    const nodes = [...this.#cluster.nodes.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
    this.#shown = new Map(nodes.map((node) => [node.id, this.#cluster.tasksOfNode(node.id).filter((task) => this.#isShown(task))]));
    this.#waits = this.#cluster.tasksOfNode(WAITING).filter((task) => !ENDED.has(task.state));
    const top = this.#waits.length ? WAITING_HIGH : 0;
    const layout = arranged(nodes.map((node) => this.#shown.get(node.id).length), width, height - top, this.#layout);
    const key = `${top} ${nodes.map((node) => node.id).join()}`;
    if (layout === this.#layout && key === this.#order) return false;
    [this.#layout, this.#order] = [layout, key];
    this.#boxes = nodes.map((node, index) => ({ node, ...layout.boxes[index], y: layout.boxes[index].y + top, sprites: [] }));
    this.#byNode = new Map(this.#boxes.map((box) => [box.node.id, box]));
    this.#chosen = Math.min(this.#chosen, Math.max(this.#boxes.length - 1, 0));
    return true;
  }

  #shown = new Map();
  #waits = [];

  #isShown(task) {
    if (!ENDED.has(task.state)) return true;
    const left = TROUBLE.has(task.state) ? NEWS - (Date.now() / 1000 - task.at) : 0;
    if (left <= 0) return false;
    clearTimeout(this.#expiry);
    this.#expiry = setTimeout(() => { this.#cluster.touched.add(task.node); this.refresh(); }, left * 1000 + 50);
    return true;
  }

  #fill(box) {
    const tasks = this.#shown.get(box.node.id) ?? [];
    for (const sprite of box.sprites) sprite.over = true;
    box.sprites = tasks.map((task, index) => {
      const [x, y] = cellOf(this.#layout, index), { form } = this.#layout;
      return this.#aim(task, box, box.x + x, box.y + y, form.width, form.height);
    });
    box.used = this.#cluster.ofNode(box.node.id);
    this.#dirty.add(box);
  }

  #wait(width) {
    const room = width - 2 * GAP - 20, side = Math.max(Math.min(26, room / Math.max(this.#waits.length, 1) - 4), 2);
    this.#waits.forEach((task, index) => this.#aim(task, null, GAP + 10 + index * (side + 4), GAP + 28, side, side));
    this.#dirty.add(null);
  }

  /** Have a task's sprite go there. A new one begins small, in its place. */
  #aim(task, box, x, y, width, height) {
    let sprite = this.#sprites.get(task.id);
    if (!sprite) {
      sprite = { task, x: x + width / 2, y: y + height / 2, width: 0, height: 0, alpha: 0, box };
      this.#sprites.set(task.id, sprite);
    }
    if (sprite.box !== box) this.#dirty.add(sprite.box);
    const name = this.#cluster.services.get(task.service)?.name ?? task.name;
    const begins = STARTING.has(task.state) || task.health === "starting";
    Object.assign(sprite, {
      task, box, toX: x, toY: y, toWidth: width, toHeight: height, gone: false, over: false,
      toAlpha: this.#dimmed(task) ? 0.12 : task.stops ? 0.45 : 1,
      shade: shade(name), lines: box ? this.#layout.form.lines : 0, begins,
      hollow: begins || task.state === "pending" || task.state === "new",
      bad: TROUBLE.has(task.state) || task.health === "unhealthy",
    });
    if (begins || !rests(sprite)) this.#move(sprite);
    return sprite;
  }

  #dimmed(task) {
    return (this.#lit !== null && task.service !== this.#lit) || (this.#found !== null && !this.#found.has(task.id));
  }

  /** Take a sprite from the stage, since it moves. */
  #move(sprite) {
    if (this.#moving.has(sprite)) return;
    this.#moving.add(sprite);
    this.#dirty.add(sprite.box);
  }

  #draw(now) {
    const began = performance.now(), still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const step = still ? 1 : 1 - Math.exp(-Math.min(now - this.#last, 100) / 1000 * SPEED);
    this.#last = now;
    const moves = this.#advance(step);
    this.#paintStage();
    const pen = this.#pen, ratio = window.devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.drawImage(this.#stage, 0, 0);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const pulse = still ? 0.8 : 0.65 + 0.35 * Math.sin(now / 180);
    const simple = this.#moving.size > 400;
    for (const sprite of this.#moving) paintTask(pen, this.#inks, sprite, sprite.begins ? pulse : 1, simple);
    pen.globalAlpha = 1;
    this.#ring(pen);
    this.drawn.frames += 1;
    this.drawn.milliseconds += performance.now() - began;
    this.#frame = moves && !(still && this.#moving.size === 0) ? requestAnimationFrame((next) => this.#draw(next)) : 0;
  }

  /** Move what moves by a part of its way; what has arrived goes to the stage. */
  #advance(step) {
    for (const sprite of this.#moving) {
      for (const [at, to, least] of WAYS) {
        const way = sprite[to] - sprite[at];
        if (step < 1 && Math.abs(way) > least) sprite[at] += way * step;
        else sprite[at] = sprite[to];
      }
      if (!rests(sprite)) continue;
      if (sprite.gone) this.#sprites.delete(sprite.task.id);
      else if (sprite.begins && step < 1) continue;
      this.#moving.delete(sprite);
      this.#dirty.add(sprite.box);
    }
    return this.#moving.size > 0;
  }

  #paintStage() {
    if (!this.#dirty.size) return;
    const pen = this.#under, ratio = window.devicePixelRatio || 1, ink = this.#inks;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.#dirty.size > this.#boxes.length) {
      pen.fillStyle = ink.ground;
      pen.fillRect(0, 0, ...this.#size);
    }
    for (const box of this.#dirty) {
      if (box === null) {
        pen.fillStyle = ink.ground;
        pen.fillRect(0, 0, this.#size[0], this.#waits.length ? WAITING_HIGH : GAP - 4);
        if (!this.#waits.length) continue;
        paintWaiting(pen, ink, this.#waits.length, GAP, GAP, this.#size[0] - 2 * GAP, WAITING_HIGH - GAP);
        for (const task of this.#waits) this.#rest(pen, this.#sprites.get(task.id));
      } else if (this.#byNode.get(box.node.id) === box) {
        paintBox(pen, ink, box, this.#layout);
        for (const sprite of box.sprites) this.#rest(pen, sprite);
      }
    }
    pen.globalAlpha = 1;
    this.#dirty.clear();
  }

  #rest(pen, sprite) {
    if (sprite && !this.#moving.has(sprite)) paintTask(pen, this.#inks, sprite, 1, false);
  }

  #ring(pen) {
    const box = this.#boxes[this.#chosen];
    if (!box || document.activeElement !== this.#canvas || !this.#canvas.matches(":focus-visible")) return;
    pen.strokeStyle = this.#inks.focus;
    pen.lineWidth = 3;
    pen.beginPath();
    pen.roundRect(box.x - 3, box.y - 3, box.width + 6, box.height + 6, 12);
    pen.stroke();
  }

  #at(event) {
    const bounds = this.#canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
    const box = this.#boxes.find((each) => x >= each.x && y >= each.y && x <= each.x + each.width && y <= each.y + each.height);
    const sprites = box ? box.sprites : this.#waits.map((task) => this.#sprites.get(task.id));
    const slack = this.#layout ? this.#layout.form.gap / 2 : 0;
    const sprite = sprites.find((each) => each && x >= each.x - slack && y >= each.y - slack
      && x <= each.x + each.width + slack && y <= each.y + each.height + slack);
    return sprite ? { task: sprite.task } : box ? { node: box.node } : null;
  }

  #hover(event) {
    const found = this.#at(event);
    this.#canvas.style.cursor = found ? "pointer" : "default";
    this.#tip.hidden = !found;
    if (!found) return;
    this.#tip.textContent = found.task
      ? `${found.task.name}: ${stateWord(found.task)}${found.task.message ? `. ${found.task.message}` : ""}`
      : this.#sentence(found.node);
    this.#tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - this.#tip.offsetWidth - 8))}px`;
    this.#tip.style.top = `${Math.max(8, Math.min(event.clientY + 14, innerHeight - this.#tip.offsetHeight - 8))}px`;
  }

  #click(event) {
    const found = this.#at(event);
    if (found?.task) this.#open(`#/task/${found.task.id}`);
    else if (found?.node) this.#open(`#/node/${found.node.id}`);
  }

  #key(event) {
    const columns = this.#layout?.columns ?? 1;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
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
    const used = this.#cluster.ofNode(node.id);
    return `${node.name}: ${node.state}, ${node.availability}. ${count(used.live, "task")}, ${cores(used.shares)} of `
      + `${cores(node.shares)} cores and ${bytes(used.memory)} of ${bytes(node.memory)} reserved`;
  }

  #describe() {
    const box = this.#boxes[this.#chosen];
    const text = box ? this.#sentence(box.node) : "No nodes";
    if (this.#canvas.getAttribute("aria-label") !== text) this.#canvas.setAttribute("aria-label", text);
  }
}

/** What moves: where it is, where it is to be, and how near is there. */
const WAYS = [["x", "toX", 0.3], ["y", "toY", 0.3], ["width", "toWidth", 0.3], ["height", "toHeight", 0.3], ["alpha", "toAlpha", 0.01]];

const rests = (sprite) => sprite.x === sprite.toX && sprite.y === sprite.toY && sprite.width === sprite.toWidth
  && sprite.height === sprite.toHeight && sprite.alpha === sprite.toAlpha;

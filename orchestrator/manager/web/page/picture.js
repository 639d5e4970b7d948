// SPDX-License-Identifier: Apache-2.0
// The picture: nodes as boxes, with tasks in them that move when they change nodes.
//
// Items at rest are painted once, on an offscreen stage: a task when it stops moving, a box when it
// changes. A frame is the stage with the moving tasks above it. A task keeps its cell for life; its
// replacement on another node starts from there.
import { inks, isDark } from "/colours.js";
import { GAP, arranged, cellOf, strip } from "/layout.js";
import { paintBox, paintHead, paintTask, paintWaiting } from "/paint.js";
import { Sprite } from "/sprite.js";
import { ENDED, TROUBLE, count, nodeSentence, stateWord } from "/words.js";

const WAITING = "";
const SPEED = 9; // of animation: the remaining distance shrinks by e in 1/SPEED seconds
const RECENT = 20; // seconds for which failed tasks stay visible
const WAITING_HIGH = 74;
const MOST_STALE = 600; // areas that are copied one by one; with more, the whole stage is

export class Picture {
  #canvas = document.createElement("canvas");
  #stage = document.createElement("canvas");
  #pen; #under; #cluster; #open; #tip;
  #sprites = new Map();
  #moving = new Set();
  #boxes = [];
  #shown = new Map();   // node id → its visible tasks
  #waits = []; #waiting = []; // tasks without a node, and their sprites
  #byNode = new Map();
  #dirty = new Set();   // boxes to repaint completely; null is the waiting area
  #heads = new Set();   // boxes of which only the head is repainted
  #erased = [];         // areas of the stage to erase
  #settled = new Set(); // tasks that have stopped moving
  #stale = [];          // areas where the canvas differs from the stage
  #slots = new Map();   // task name → its latest sprite
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

  /** Number of frames drawn, for measurements. */
  drawn = { frames: 0 };

  attach() { this.#observer.observe(this.#canvas.parentElement); this.repaint(); }

  detach() {
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#expiry);
    this.#frame = 0;
    this.#tip.hidden = true;
  }

  /** Whether no animation is in progress. */
  get rests() { return !this.#frame; }

  /** Page coordinates of a node's box or a task, by id. */
  where(id) {
    const sprite = this.#sprites.get(id), { x, y, width, height } = sprite
      ? { x: sprite.toX, y: sprite.toY, width: sprite.toWidth, height: sprite.toHeight } : this.#byNode.get(id);
    const bounds = this.#canvas.getBoundingClientRect();
    return { x: bounds.left + x, y: bounds.top + y, width, height };
  }

  /** Dim all tasks except this service's; null: none. */
  light(service) { this.#lit = service; this.#dim(); }

  /** Dim all tasks except these (a set of ids); null: none. */
  find(tasks) { this.#found = tasks; this.#dim(); }

  #dim() {
    for (const sprite of this.#sprites.values()) sprite.turn = -1;
    for (const id of this.#byNode.keys()) this.#cluster.touched.add(id);
    this.#cluster.touched.add(WAITING);
    this.refresh();
  }

  /** Repaint everything, for example after a change of colours. */
  repaint() {
    this.#inks = null;
    this.#size = [0, 0];
    this.refresh();
  }

  /** Lay out the changes of the cluster, and start the animation. */
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
    const over = new Set(all ? this.#sprites.values() : []);
    for (const box of this.#boxes) if (all || touched.has(box.node.id)) this.#fill(box, all, over);
    if (all || touched.has(WAITING)) this.#wait(width, over);
    touched.clear();
    for (const sprite of over) if (!sprite.gone) { sprite.gone = true; sprite.toAlpha = 0; this.#move(sprite); }
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

  /** Arrange the boxes; return whether they changed. */
  #arrange(width, height) {
    const { touched } = this.#cluster, shown = this.#shown;
    const nodes = [...this.#cluster.nodes.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
    this.#shown = new Map(nodes.map(({ id }) => [id, (!touched.has(id) && shown.get(id))
      || this.#cluster.tasksOfNode(id).filter((task) => this.#isShown(task))]));
    this.#waits = this.#cluster.tasksOfNode(WAITING).filter((task) => !ENDED.has(task.state));
    const top = this.#waits.length ? WAITING_HIGH : 0;
    const layout = arranged(nodes.map((node) => this.#shown.get(node.id).length), width, height - top, this.#layout);
    const key = `${top} ${nodes.map((node) => node.id).join()}`;
    if (layout === this.#layout && key === this.#order) return false;
    [this.#layout, this.#order] = [layout, key];
    this.#boxes = nodes.map((node, index) => ({ node, ...layout.boxes[index], y: layout.boxes[index].y + top, sprites: [], cells: [] }));
    this.#byNode = new Map(this.#boxes.map((box) => [box.node.id, box]));
    this.#chosen = Math.min(this.#chosen, Math.max(this.#boxes.length - 1, 0));
    return true;
  }

  #isShown(task) {
    if (!ENDED.has(task.state)) return true;
    const left = TROUBLE.has(task.state) ? RECENT - (Date.now() / 1000 - task.at) : 0;
    if (left <= 0) return false;
    clearTimeout(this.#expiry);
    this.#expiry = setTimeout(() => { this.#cluster.touched.add(task.node); this.refresh(); }, left * 1000 + 50);
    return true;
  }

  /** Assign a cell to each task of a box, in order if it is laid out `anew`. Sprites that lost their
   *  cell stay in `over`. */
  #fill(box, anew, over) {
    const tasks = this.#shown.get(box.node.id) ?? [], { form } = this.#layout, { node } = box;
    if (anew) box.cells = [];
    const here = new Map(tasks.map((task) => [task.id, task]));
    for (const sprite of box.sprites) over.add(sprite);
    box.sprites = [];
    const put = (task, cell) => {
      const [x, y] = cellOf(this.#layout, cell);
      const sprite = this.#aim(task, box, box.x + x, box.y + y, form.width, form.height);
      over.delete(sprite);
      box.sprites.push(sprite);
    };
    box.cells.forEach((id, cell) => {
      const task = here.get(id);
      if (!task) return delete box.cells[cell];
      here.delete(id);
      put(task, cell);
    });
    let free = 0;
    for (const task of here.values()) {
      while (box.cells[free] !== undefined) free += 1;
      box.cells[free] = task.id;
      put(task, free);
    }
    box.used = this.#cluster.ofNode(node.id);
    const face = `${node.state} ${node.availability}`;
    if (anew || box.face !== face) this.#dirty.add(box);
    else this.#heads.add(box);
    box.face = face;
  }

  #wait(width, over) {
    const { width: wide, height: high, lines, most, at } = strip(this.#waits.length, width - 2 * GAP - 20, WAITING_HIGH - GAP - 34);
    for (const sprite of this.#waiting) over.add(sprite);
    this.#waiting = this.#waits.slice(0, most).map((task, index) => {
      const [x, y] = at(index);
      return this.#aim(task, null, GAP + 10 + x, GAP + 28 + y, wide, high, lines);
    });
    for (const sprite of this.#waiting) over.delete(sprite);
    this.#dirty.add(null);
  }

  /** Set the target of a task's sprite. */
  #aim(task, box, x, y, width, height, lines = this.#layout.form.lines) {
    let sprite = this.#sprites.get(task.id);
    if (sprite?.isAsWas(task, this.#inks, x, y, width)) return sprite;
    if (!sprite) {
      const before = this.#slots.get(task.name), follows = before && before.box !== box && this.#sprites.has(before.task.id);
      sprite = new Sprite(task, x, y, width, height, follows ? before : null);
      this.#sprites.set(task.id, sprite);
      this.#slots.set(task.name, sprite);
    }
    if (sprite.rests) { this.#erase(sprite); this.#settled.add(sprite); }
    sprite.dress(task, this.#cluster.services.get(task.service)?.name ?? task.name, this.#inks, lines);
    sprite.aim(box, x, y, width, height, this.#dimmed(task) ? 0.12 : task.stops ? 0.45 : 1);
    if (sprite.begins || !sprite.arrived) this.#move(sprite);
    return sprite;
  }

  #dimmed(task) {
    return (this.#lit !== null && task.service !== this.#lit) || (this.#found !== null && !this.#found.has(task.id));
  }

  /** Take a sprite off the stage and animate it. */
  #move(sprite) {
    if (this.#moving.has(sprite)) return;
    this.#moving.add(sprite);
    this.#settled.delete(sprite);
    if (sprite.rests) this.#erase(sprite);
    sprite.rests = false;
  }

  #erase({ x, y, width, height, box }) {
    if (box) this.#erased.push([x - 1, y - 1, width + 2, height + 2]);
    else this.#dirty.add(null);
  }

  #draw(now) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const step = still ? 1 : 1 - Math.exp(-Math.min(now - this.#last, 100) / 1000 * SPEED);
    this.#last = now;
    const moves = this.#advance(step);
    this.#paintStage();
    const pen = this.#pen, ratio = window.devicePixelRatio || 1;
    this.#copy(pen, ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const pulse = still ? 0.8 : 0.65 + 0.35 * Math.sin(now / 180);
    const simple = this.#moving.size > 400;
    for (const sprite of this.#moving) {
      paintTask(pen, this.#inks, sprite, sprite.begins ? pulse : 1, simple);
      this.#stale.push([sprite.x, sprite.y, sprite.width, sprite.height]);
    }
    pen.globalAlpha = 1;
    this.#ring(pen);
    this.drawn.frames += 1;
    this.#frame = moves ? requestAnimationFrame((next) => this.#draw(next)) : 0;
  }

  /** Copy the areas that differ from the stage: behind moving sprites, and repainted ones. */
  #copy(pen, ratio) {
    pen.setTransform(1, 0, 0, 1, 0, 0);
    if (this.#stale.length > MOST_STALE) pen.drawImage(this.#stage, 0, 0);
    else {
      for (const [x, y, width, height] of this.#stale) {
        const left = Math.max(Math.floor((x - 4) * ratio), 0), top = Math.max(Math.floor((y - 4) * ratio), 0);
        const part = [left, top, Math.ceil((width + 8) * ratio), Math.ceil((height + 8) * ratio)];
        pen.drawImage(this.#stage, ...part, ...part);
      }
    }
    this.#stale = [];
  }

  /** Advance moving sprites by one step; those that arrive return to the stage. */
  #advance(step) {
    for (const sprite of this.#moving) {
      sprite.step(step);
      if (!sprite.arrived || (sprite.begins && !sprite.gone && step < 1)) continue;
      this.#moving.delete(sprite);
      if (sprite.gone) {
        this.#sprites.delete(sprite.task.id);
        if (this.#slots.get(sprite.task.name) === sprite) this.#slots.delete(sprite.task.name);
      } else {
        sprite.rests = true;
        this.#settled.add(sprite);
      }
    }
    return this.#moving.size > 0;
  }

  #paintStage() {
    const pen = this.#under, ratio = window.devicePixelRatio || 1, ink = this.#inks, layout = this.#layout;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.#dirty.size > this.#boxes.length) {
      pen.fillStyle = ink.ground;
      pen.fillRect(0, 0, ...this.#size);
      this.#stale.push([0, 0, ...this.#size]);
    }
    pen.fillStyle = ink.card;
    for (const place of this.#erased) { pen.fillRect(...place); this.#stale.push(place); }
    for (const box of this.#heads) {
      if (this.#dirty.has(box)) continue;
      paintHead(pen, ink, box, layout);
      this.#stale.push([box.x, box.y, box.width, layout.top]);
    }
    for (const box of this.#dirty) {
      this.#stale.push(box ? [box.x, box.y, box.width, box.height] : [0, 0, this.#size[0], WAITING_HIGH]);
      if (box === null) this.#paintWaits(pen);
      else if (this.#byNode.get(box.node.id) === box) {
        paintBox(pen, ink, box);
        paintHead(pen, ink, box, layout);
        for (const sprite of box.sprites) this.#settled.add(sprite);
      }
    }
    for (const sprite of this.#settled) {
      if (!sprite.rests) continue;
      paintTask(pen, ink, sprite, 1, false);
      this.#stale.push([sprite.x, sprite.y, sprite.width, sprite.height]);
    }
    pen.globalAlpha = 1;
    for (const done of [this.#dirty, this.#heads, this.#settled]) done.clear();
    this.#erased = [];
  }

  #paintWaits(pen) {
    const high = this.#waits.length ? WAITING_HIGH : GAP - 6, [width] = this.#size;
    pen.fillStyle = this.#inks.ground;
    pen.fillRect(0, 0, width, high);
    if (!this.#waits.length) return;
    const reasons = new Set(this.#waits.map((task) => task.message)), [reason] = reasons;
    const text = `${count(this.#waits.length, "task")} waiting${reasons.size === 1 && reason ? `: ${reason}` : ""}`;
    paintWaiting(pen, this.#inks, text, GAP, GAP, width - 2 * GAP, WAITING_HIGH - GAP);
    for (const sprite of this.#waiting) this.#settled.add(sprite);
  }

  #ring(pen) {
    const box = this.#boxes[this.#chosen];
    if (!box || document.activeElement !== this.#canvas || !this.#canvas.matches(":focus-visible")) return;
    pen.strokeStyle = this.#inks.focus;
    pen.lineWidth = 3;
    pen.beginPath();
    pen.roundRect(box.x - 3, box.y - 3, box.width + 6, box.height + 6, 12);
    pen.stroke();
    this.#stale.push([box.x - 4, box.y - 4, box.width + 8, box.height + 8]);
  }

  #at(event) {
    const bounds = this.#canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
    const box = this.#boxes.find((each) => x >= each.x && y >= each.y && x <= each.x + each.width && y <= each.y + each.height);
    const sprites = box ? box.sprites : this.#waiting;
    const slack = this.#layout ? this.#layout.form.gap / 2 : 0;
    const sprite = sprites.find((each) => x >= each.x - slack && y >= each.y - slack
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
      : nodeSentence(found.node, this.#cluster.ofNode(found.node.id));
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

  #describe() {
    const box = this.#boxes[this.#chosen];
    const text = box ? nodeSentence(box.node, this.#cluster.ofNode(box.node.id)) : "No nodes";
    if (this.#canvas.getAttribute("aria-label") !== text) this.#canvas.setAttribute("aria-label", text);
  }
}

// SPDX-License-Identifier: Apache-2.0
// Animation state of a task: position, target and appearance.
import { shade } from "/colours.js";
import { STARTING, TROUBLE, backsOff } from "/words.js";

/** Animated properties: current value, target, and the distance that counts as arrived. */
const WAYS = [["x", "toX", 0.3], ["y", "toY", 0.3], ["width", "toWidth", 0.3], ["height", "toHeight", 0.3], ["alpha", "toAlpha", 0.01]];

export class Sprite {
  /** The task's `turn` at the last update; see `Cluster`. */
  turn = -1;
  box = null; name = null; inks = null; shade = null; lines = 0;
  begins = false; hollow = false; bad = false; gone = false;
  /** Whether it is painted on the stage. */
  rests = false;
  toX = 0; toY = 0; toWidth = 0; toHeight = 0; toAlpha = 1;

  /** Start at the sprite that it replaces (`before`), or grow from the centre of its place. */
  constructor(task, x, y, width, height, before) {
    this.task = task;
    this.x = before?.x ?? x + width / 2;
    this.y = before?.y ?? y + height / 2;
    this.width = before?.width ?? 0;
    this.height = before?.height ?? 0;
    this.alpha = before ? 0.5 : 0;
  }

  /** Whether the target and the task are unchanged since the last update. */
  isAsWas(task, inks, x, y, width) {
    return this.turn === task.turn && this.inks === inks && this.toX === x && this.toY === y && this.toWidth === width && !this.gone;
  }

  /** Update the appearance to the task. */
  dress(task, name, inks, lines) {
    this.turn = task.turn;
    this.task = task;
    if (this.name !== name || this.inks !== inks) this.shade = shade(name);
    this.name = name;
    this.inks = inks;
    this.lines = lines;
    this.begins = STARTING.has(task.state) || task.health === "starting";
    this.hollow = this.begins || task.state === "pending" || task.state === "new";
    this.bad = TROUBLE.has(task.state) || task.health === "unhealthy" || backsOff(task);
  }

  /** Set the target. */
  aim(box, x, y, width, height, alpha) {
    this.box = box;
    this.toX = x;
    this.toY = y;
    this.toWidth = width;
    this.toHeight = height;
    this.toAlpha = alpha;
    this.gone = false;
  }

  /** Advance by a part of the remaining distance; snap to the target when close. */
  step(part) {
    for (const [at, to, least] of WAYS) {
      const way = this[to] - this[at];
      if (part < 1 && Math.abs(way) > least) this[at] += way * part;
      else this[at] = this[to];
    }
  }

  get arrived() {
    return this.x === this.toX && this.y === this.toY && this.width === this.toWidth && this.height === this.toHeight && this.alpha === this.toAlpha;
  }
}

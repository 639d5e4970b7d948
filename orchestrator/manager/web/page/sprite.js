// SPDX-License-Identifier: Apache-2.0
// A task as the picture has it: where it is, where it is to be, and how it looks.
import { shade } from "/colours.js";
import { STARTING, TROUBLE, backsOff } from "/words.js";

/** What moves: where it is, where it is to be, and how near is there. */
const WAYS = [["x", "toX", 0.3], ["y", "toY", 0.3], ["width", "toWidth", 0.3], ["height", "toHeight", 0.3], ["alpha", "toAlpha", 0.01]];

export class Sprite {
  /** State of the task as it was when it was looked at last; see `Cluster`. */
  turn = -1;
  box = null; name = null; inks = null; shade = null; lines = 0;
  begins = false; hollow = false; bad = false; gone = false;
  /** Whether it is on the stage. */
  rests = false;
  toX = 0; toY = 0; toWidth = 0; toHeight = 0; toAlpha = 1;

  /** It begins small, in its place, or where the one is that it replaces. */
  constructor(task, x, y, width, height, before) {
    this.task = task;
    this.x = before?.x ?? x + width / 2;
    this.y = before?.y ?? y + height / 2;
    this.width = before?.width ?? 0;
    this.height = before?.height ?? 0;
    this.alpha = before ? 0.5 : 0;
  }

  /** Whether it is to be there, and its task has not changed since it was dressed so. */
  isAsWas(task, inks, x, y, width) {
    return this.turn === task.turn && this.inks === inks && this.toX === x && this.toY === y && this.toWidth === width && !this.gone;
  }

  /** Have it look as its task is. */
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

  /** Where it is to be. */
  aim(box, x, y, width, height, alpha) {
    this.box = box;
    this.toX = x;
    this.toY = y;
    this.toWidth = width;
    this.toHeight = height;
    this.toAlpha = alpha;
    this.gone = false;
  }

  /** Go a part of the way; the last bit of it at once. */
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

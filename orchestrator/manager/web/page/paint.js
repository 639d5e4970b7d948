// SPDX-License-Identifier: Apache-2.0
// Drawing of the picture. Each function paints one item, with a context whose unit is a CSS pixel.
import { BARS, GAP } from "/layout.js";
import { bytes, cores, count, stateWord } from "/words.js";

const FACE = "system-ui, \"DejaVu Sans\", sans-serif";

/** An empty box of a node. */
export function paintBox(pen, ink, box) {
  const { node, x, y, width, height } = box, inset = GAP / 2 - 1;
  const down = node.state !== "ready", drained = node.availability !== "active";
  pen.fillStyle = ink.ground;
  pen.fillRect(x - inset, y - inset, width + 2 * inset, height + 2 * inset);
  pen.fillStyle = ink.card;
  pen.strokeStyle = down ? ink.bad : drained ? ink.warn : ink.line;
  pen.lineWidth = down || drained ? 2 : 1;
  pen.beginPath();
  pen.roundRect(x + 0.5, y + 0.5, width - 1, height - 1, Math.min(10, height / 6));
  pen.fill();
  pen.stroke();
}

/** Head of a node's box: its name, reservations and problems. */
export function paintHead(pen, ink, box, layout) {
  const { node, x, y, width, used } = box, { top, pad, bars } = layout;
  const down = node.state !== "ready", drained = node.availability !== "active";
  pen.fillStyle = ink.card;
  pen.fillRect(x + pad - 1, y + 3, width - 2 * pad + 2, top - 4);
  pen.textBaseline = "middle";
  const middle = y + (top < 30 ? 10 : 16);
  let room = width - 2 * pad;
  const word = down ? node.state : drained ? node.availability : room > 170 ? count(used.live, "task") : "";
  if (word && room > 60) {
    pen.font = `12px ${FACE}`;
    pen.fillStyle = down ? ink.bad : drained ? ink.warn : ink.soft;
    const wide = pen.measureText(word).width;
    pen.fillText(word, x + width - pad - wide, middle);
    room -= wide + 8;
  }
  pen.font = `600 ${top < 30 ? 10 : 13}px ${FACE}`;
  pen.fillStyle = down ? ink.bad : ink.ink;
  pen.fillText(clipped(pen, node.name, room), x + pad, middle);
  if (!bars) return;
  const half = (width - 2 * pad - 12) / 2, worded = half > 120;
  const parts = [
    [used.shares / Math.max(node.shares, 1), ink["bar-cpu"], worded ? `${cores(used.shares)} of ${cores(node.shares)} cores` : "CPU"],
    [used.memory / Math.max(node.memory, 1), ink["bar-memory"], worded ? `${bytes(used.memory)} of ${bytes(node.memory)}` : "memory"],
  ];
  pen.font = `11px ${FACE}`;
  parts.forEach(([part, colour, text], index) => {
    const left = x + pad + index * (half + 12), at = y + top - BARS - 1;
    pen.fillStyle = ink.bar;
    round(pen, left, at, half, 6);
    if (part > 0) {
      pen.fillStyle = part > 0.95 ? ink.warn : colour;
      round(pen, left, at, Math.max(half * Math.min(part, 1), 6), 6);
    }
    pen.fillStyle = ink.soft;
    if (half > 50) pen.fillText(clipped(pen, text, half), left, at + 14);
  });
}

function round(pen, x, y, width, height) {
  pen.beginPath();
  pen.roundRect(x, y, width, height, height / 2);
  pen.fill();
}

/** Area of tasks without a node, with its caption. */
export function paintWaiting(pen, ink, text, x, y, width, height) {
  pen.strokeStyle = ink.warn;
  pen.lineWidth = 1.5;
  pen.setLineDash([5, 4]);
  pen.beginPath();
  pen.roundRect(x + 0.5, y + 0.5, width - 1, height - 3, 10);
  pen.stroke();
  pen.setLineDash([]);
  pen.font = `600 12px ${FACE}`;
  pen.textBaseline = "middle";
  pen.fillStyle = ink.warn;
  pen.fillText(clipped(pen, text, width - 20), x + 10, y + 14);
}

/** A task at its sprite's position. `simple`: without costly details, while many are in motion. */
export function paintTask(pen, ink, sprite, pulse, simple) {
  const { x, y, width, height, shade, bad, hollow, lines } = sprite;
  if (width < 0.5 || height < 0.5) return;
  pen.globalAlpha = sprite.alpha * pulse;
  const colour = bad ? ink.bad : shade.full;
  if (lines && width > 40 && !simple) tile(pen, ink, sprite, colour);
  else if (width < 10 || simple) {
    pen.fillStyle = colour;
    if (hollow && width > 4) frame(pen, x, y, width, height);
    else pen.fillRect(x, y, width, height);
  } else {
    pen.beginPath();
    if (hollow) {
      pen.strokeStyle = colour;
      pen.lineWidth = 2;
      pen.roundRect(x + 1, y + 1, width - 2, height - 2, width / 5);
      pen.stroke();
    } else {
      pen.fillStyle = colour;
      pen.roundRect(x, y, width, height, width / 5);
      pen.fill();
    }
    if (bad) cross(pen, ink, x, y, width);
  }
}

/** A hollow square; faster than a path. */
function frame(pen, x, y, width, height) {
  pen.fillRect(x, y, width, 1);
  pen.fillRect(x, y + height - 1, width, 1);
  pen.fillRect(x, y, 1, height);
  pen.fillRect(x + width - 1, y, 1, height);
}

function tile(pen, ink, sprite, colour) {
  const { x, y, width, height, shade, task, hollow, lines, bad } = sprite;
  pen.beginPath();
  pen.roundRect(x + 0.5, y + 0.5, width - 1, height - 1, 7);
  if (hollow) {
    pen.strokeStyle = colour;
    pen.lineWidth = 1.5;
    pen.setLineDash([4, 3]);
    pen.stroke();
    pen.setLineDash([]);
  } else {
    pen.fillStyle = bad ? ink["bad-tint"] : shade.tint;
    pen.fill();
  }
  pen.fillStyle = colour;
  pen.beginPath();
  pen.roundRect(x + 6, y + 7, 4, height - 14, 2);
  pen.fill();
  pen.textBaseline = "middle";
  pen.font = `500 12px ${FACE}`;
  pen.fillStyle = ink.ink;
  pen.fillText(clipped(pen, task.name, width - 24), x + 17, y + (lines > 1 ? height / 2 - 8 : height / 2 + 0.5));
  if (lines < 2) return;
  pen.font = `11px ${FACE}`;
  pen.fillStyle = bad ? ink.bad : ink.soft;
  pen.fillText(clipped(pen, stateWord(task), width - 24), x + 17, y + height / 2 + 9);
}

function cross(pen, ink, x, y, size) {
  const inset = size * 0.3;
  pen.strokeStyle = ink.card;
  pen.lineWidth = Math.max(1.5, size / 12);
  pen.beginPath();
  pen.moveTo(x + inset, y + inset);
  pen.lineTo(x + size - inset, y + size - inset);
  pen.moveTo(x + size - inset, y + inset);
  pen.lineTo(x + inset, y + size - inset);
  pen.stroke();
}

/** Truncate a text to this width. */
export function clipped(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && pen.measureText(`${text.slice(0, end)}…`).width > width) end -= 1;
  return `${text.slice(0, end)}…`;
}

// SPDX-License-Identifier: Apache-2.0
// Layout of the picture: boxes for nodes, cells in them for tasks. Pure.

export const GAP = 14, PAD = 10, HEAD = 30, BARS = 26;
/** Forms of a task, largest first: a tile shows its name, and its state if there is room. */
const TILES = [
  { width: 148, height: 44, gap: 8, lines: 2 },
  { width: 112, height: 30, gap: 6, lines: 1 },
];
const MOST_CELL = 30, LEAST_CELL = 3;
const FORMS = [
  ...TILES,
  ...Array.from({ length: MOST_CELL - LEAST_CELL + 1 }, (_, index) => {
    const cell = MOST_CELL - index, gap = cell > 14 ? 4 : cell > 8 ? 2 : 1;
    return { width: cell - gap, height: cell - gap, gap, lines: 0 };
  }),
];

/** Arrange boxes for nodes with these numbers of tasks in an area of this size. The fullest node limits
 *  the size of tasks. The layout `before` is kept while it fits about as well, so that a single task
 *  more or less does not move all others. */
export function arranged(counts, width, height, before = null) {
  const nodes = counts.length, fullest = Math.max(...counts, 1), space = `${nodes} ${width} ${height}`;
  let best = null;
  for (let columns = 1; columns <= Math.max(nodes, 1); columns += 1) {
    const found = tried(columns, Math.max(nodes, 1), fullest, width, height);
    if (found && (!best || found.score > best.score)) best = found;
  }
  best ??= { columns: 1, rank: FORMS.length, form: FORMS.at(-1), across: 1, top: 18, pad: 4, bars: false, box: [width - 2 * GAP, Math.max(height - 2 * GAP, 40)] };
  if (before?.space === space && best.rank >= before.rank - 2) {
    const need = needed(before, fullest), spare = before.box[1] - need;
    if (spare >= 0 && spare < Math.max(4 * (before.form.height + before.form.gap), before.box[1] / 2)) return before;
  }
  const [boxWidth, boxHeight] = best.box;
  return {
    ...best,
    space,
    boxes: counts.map((_, index) => ({
      x: GAP + (index % best.columns) * (boxWidth + GAP),
      y: GAP + Math.floor(index / best.columns) * (boxHeight + GAP),
      width: boxWidth,
      height: boxHeight,
    })),
  };
}

/** Minimum height of a box with this number of tasks. */
function needed({ form, across, top, pad }, tasks) {
  return top + Math.ceil(tasks / across) * (form.height + form.gap) - form.gap + pad;
}

function tried(columns, nodes, fullest, width, height) {
  const rows = Math.ceil(nodes / columns);
  const box = [Math.floor((width - GAP) / columns - GAP), Math.floor((height - GAP) / rows - GAP)];
  if (box[0] < 16 || box[1] < 16) return null;
  const bars = box[1] >= 90 && box[0] >= 70;
  const top = bars ? HEAD + BARS : box[1] >= 44 ? HEAD : 18;
  const pad = box[0] < 60 ? 4 : PAD;
  for (const [rank, form] of FORMS.entries()) {
    const across = Math.floor((box[0] - 2 * pad + form.gap) / (form.width + form.gap));
    if (across < 1) continue;
    const need = needed({ form, across, top, pad }, fullest);
    if (need > box[1]) continue;
    // A spare row and no narrow strips, so that a node's free capacity is visible.
    const high = Math.min(box[1], Math.max(need + form.height + form.gap, Math.min(box[0], 400)));
    const shape = Math.abs(Math.log(box[0] / high / 1.6)), unused = (columns * rows) / nodes - 1;
    return {
      columns, rank, across, top, pad, bars, box: [box[0], high], score: -10 * rank - shape - 2 * unused,
      // Tiles widen to fill the box.
      form: form.lines ? { ...form, width: (box[0] - 2 * pad + form.gap) / across - form.gap } : form,
    };
  }
  return null;
}

/** Position of a box's nth task, relative to the box. */
export function cellOf(layout, index) {
  const { form, across, top, pad } = layout;
  return [
    pad + (index % across) * (form.width + form.gap),
    top + Math.floor(index / across) * (form.height + form.gap),
  ];
}

/** Positions in a row for this number of tasks on a strip of this size, at most `most`: tiles with
 *  names if all fit, otherwise squares as large as possible. */
export function strip(number, width, height) {
  const { width: wide, gap: between } = TILES[1];
  if (number * (wide + between) - between <= width) {
    return { width: wide, height, lines: 1, most: number, at: (index) => [index * (wide + between), 0] };
  }
  for (let side = 26; side >= 3; side -= 1) {
    const gap = side > 8 ? 4 : 1, across = Math.floor(width / (side + gap)), deep = Math.floor((height + gap) / (side + gap));
    if (across * deep >= number || side === 3) return { width: side, height: side, lines: 0, most: across * deep, at: (index) => [(index % across) * (side + gap), Math.floor(index / across) * (side + gap)] };
  }
}

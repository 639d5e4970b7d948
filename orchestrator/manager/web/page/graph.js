// SPDX-License-Identifier: Apache-2.0
// Layered layout of the service graph: clients before servers. Pure.

/** Assign ids to ranks so that most edges (`edges`: `[from, to]`) point forward, and order each rank to
 *  reduce crossings (the barycentre method of Sugiyama, Tagawa and Toda, 1981). */
export function ranked(ids, edges) {
  const forward = acyclic(ids, edges);
  const rank = new Map(ids.map((id) => [id, 0]));
  for (let pass = 0, moved = true; moved && pass < ids.length; pass += 1) {
    moved = false;
    for (const [from, to] of forward) {
      if (rank.get(to) <= rank.get(from)) { rank.set(to, rank.get(from) + 1); moved = true; }
    }
  }
  const ranks = [];
  for (const id of ids) (ranks[rank.get(id)] ??= []).push(id);
  const rows = ranks.filter(Boolean), near = new Map(ids.map((id) => [id, []]));
  for (const [from, to] of forward) { near.get(from).push(to); near.get(to).push(from); }
  for (let pass = 0; pass < 6; pass += 1) {
    const place = new Map(rows.flatMap((row) => row.map((id, index) => [id, (index + 1) / (row.length + 1)])));
    for (const row of rows) {
      const mean = new Map(row.map((id) => {
        const others = near.get(id);
        return [id, others.length ? others.reduce((sum, other) => sum + place.get(other), 0) / others.length : place.get(id)];
      }));
      row.sort((a, b) => mean.get(a) - mean.get(b));
    }
  }
  return rows;
}

/** The edges without those that close a cycle, searched from the ids with the fewest incoming edges. */
function acyclic(ids, edges) {
  const next = new Map(ids.map((id) => [id, []])), asked = new Map(ids.map((id) => [id, 0]));
  for (const [from, to] of edges) if (from !== to) { next.get(from).push(to); asked.set(to, asked.get(to) + 1); }
  const state = new Map(), kept = [];
  const visit = (id) => {
    state.set(id, "under way");
    for (const other of next.get(id)) {
      if (state.get(other) === "under way") continue;
      kept.push([id, other]);
      if (!state.has(other)) visit(other);
    }
    state.set(id, "done");
  };
  for (const id of [...ids].sort((a, b) => asked.get(a) - asked.get(b))) if (!state.has(id)) visit(id);
  return kept;
}

/** Centres of all ids in an area of this size: ranks from left to right or, if it is narrow, from top
 *  to bottom. */
export function placed(rows, width, height, size) {
  const places = new Map(), across = width >= 620;
  rows.forEach((row, rank) => row.forEach((id, index) => {
    const along = rows.length > 1 ? rank / (rows.length - 1) : 0.5, beside = (index + 0.5) / row.length;
    places.set(id, across
      ? { x: size.width / 2 + 24 + along * (width - size.width - 48), y: beside * height }
      : { x: beside * width, y: size.height / 2 + 14 + along * (height - size.height - 28) });
  }));
  return { places, across };
}

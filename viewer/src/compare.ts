// What two traces share, tokens aligned from the last one (as densitometer.overlap does).

import type { View } from "./payload";
import { componentCounts } from "./reading";

export interface Overlap {
  first: number; // edges of each trace that could be compared
  second: number;
  shared: number;
  jaccard: number | null;
  components: number | null;
  exact: boolean; // every edge of both traces was there
}

const keysOf = new WeakMap<View, Map<string, number>>();

/** A name of each kept edge that is the same in both views. */
function keys(view: View): Map<string, number> {
  let found = keysOf.get(view);
  if (!found) {
    found = new Map();
    const e = view.edges!;
    const last = view.nTokens - 1;
    for (let i = 0; i < e.kept; i++) found.set(`${e.level[i]},${view.kinds[e.kind[i]]},${e.head[i]},${last - e.source[i]},${last - e.target[i]}`, i);
    keysOf.set(view, found);
  }
  return found;
}

const partners = new WeakMap<View, WeakMap<View, Int32Array>>();

/** For each kept edge of a view, its counterpart among the other's; -1 where there is none. */
export function counterparts(view: View, other: View): Int32Array {
  let own = partners.get(view);
  if (!own) partners.set(view, (own = new WeakMap()));
  let found = own.get(other);
  if (!found) {
    found = new Int32Array(view.edges!.kept).fill(-1);
    const theirs = keys(other);
    for (const [key, i] of keys(view)) found[i] = theirs.get(key) ?? -1;
    own.set(other, found);
  }
  return found;
}

export function sameShape(a: View, b: View): boolean {
  return JSON.stringify(a.levels) === JSON.stringify(b.levels);
}

export function overlapOf(a: View, ia: string, na: number, b: View, ib: string, nb: number): Overlap {
  const orderA = a.edges!.orders[ia];
  const orderB = b.edges!.orders[ib];
  const to = counterparts(a, b);
  let first = 0;
  let shared = 0;
  for (let j = 0; j < orderA.sorted.length && orderA.ranks[j] < na; j++) {
    first++;
    const k = to[orderA.sorted[j]];
    if (k >= 0 && orderB.rank[k] < nb) shared++;
  }
  let second = 0;
  while (second < orderB.ranks.length && orderB.ranks[second] < nb) second++;
  const either = first + second - shared;
  const ca = componentCounts(a, ia, na);
  const cb = componentCounts(b, ib, nb);
  let both = 0;
  let any = 0;
  for (let i = 0; i < ca.length; i++) {
    both += Number(ca[i] > 0 && cb[i] > 0);
    any += Number(ca[i] > 0 || cb[i] > 0);
  }
  return {
    first, second, shared, jaccard: either ? shared / either : null, components: any ? both / any : null,
    exact: first === na && second === nb,
  };
}

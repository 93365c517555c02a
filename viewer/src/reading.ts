// What is known of a trace of n edges: measured, asked of the model, or between two that were measured.

import type { Point, View } from "./payload";

type Numbers = Pick<Reading, "tv" | "kl" | "entropy" | "target" | "faithfulness">;

export interface Reading {
  n: number; // edges that are on
  exact: boolean;
  tv: number;
  kl: number;
  entropy: number;
  flops: number | null;
  parameters: number | null;
  target: number | null; // value of the target, where there is one
  faithfulness: number | null;
  nearest: Point; // whose tokens are shown
}

/** The index of the largest grid size of at most n edges. */
export function gridIndex(view: View, n: number): number {
  let low = 0;
  let high = view.grid.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (view.grid[middle] <= n) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** How many of some rising numbers are below n. */
export function countBelow(rising: Int32Array, n: number): number {
  let low = 0;
  let high = rising.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rising[middle] < n) low = middle + 1;
    else high = middle;
  }
  return low;
}

export function nearestGrid(view: View, n: number): number {
  const i = gridIndex(view, n);
  const next = view.grid[Math.min(i + 1, view.grid.length - 1)];
  return Math.abs(Math.log(next / n)) < Math.abs(Math.log(view.grid[i] / n)) ? next : view.grid[i];
}

function numbersOf({ tv, kl, entropy, target, faithfulness }: Point): Numbers {
  return { tv, kl, entropy, target: target ?? null, faithfulness: faithfulness ?? null };
}

/** What was measured. */
export function readingOfPoint(point: Point): Reading {
  const { n_edges, flops_share, parameter_share } = point;
  return { n: n_edges, exact: true, ...numbersOf(point), nearest: point, flops: flops_share, parameters: parameter_share };
}

export function readingOf(view: View, importance: string, n: number, asked?: Point): Reading {
  const points = view.curves[importance];
  const own = asked ?? points.find((p) => p.n_edges === n);
  const at = view.grid[gridIndex(view, n)] === n ? gridIndex(view, n) : -1;
  const costs = view.costs?.[importance];
  const known = (values: Float32Array | undefined) => (values && at >= 0 && !Number.isNaN(values[at]) ? values[at] : null);
  if (own) return readingOfPoint(own);
  const shares = { flops: known(costs?.flops), parameters: known(costs?.parameters) };
  let below: Point | null = null;
  let above: Point | null = null;
  for (const point of points) {
    if (point.n_edges <= n) below = point;
    else if (!above) above = point;
  }
  if (!below || below.n_edges === 0) {
    const point = above ?? below!;
    return { n, exact: false, ...numbersOf(point), nearest: below ?? point, ...shares };
  }
  if (!above) return { n, exact: false, ...numbersOf(below), nearest: below, ...shares };
  const u = Math.log(n / below.n_edges) / Math.log(above.n_edges / below.n_edges);
  const [under, over] = [numbersOf(below), numbersOf(above)];
  const mixed = Object.fromEntries(Object.entries(under).map(([name, a]) => {
    const b = over[name as keyof Numbers];
    return [name, a === null || b === null ? null : a + u * (b - a)];
  })) as unknown as Numbers;
  return { n, exact: false, ...mixed, nearest: u < 0.5 ? below : above, ...shares };
}

/** Counts of each component in the trace of the grid's i-th size. */
export function componentCounts(view: View, importance: string, n: number): Int32Array | Float64Array {
  const width = view.components.n_edges.length;
  const i = gridIndex(view, n);
  return view.components.counts[importance].subarray(i * width, (i + 1) * width);
}

/** The importance whose trace is smallest where the prediction holds; the first of those of one size. */
export function tightest(view: View): string {
  const at = (name: string) => view.density[name].size_at ?? Infinity;
  return view.importances.reduce((best, name) => (at(name) < at(best) ? name : best));
}

// What is known of a trace of n edges: measured, asked of the model, or between two that were measured.

import type { Point, View } from "./payload";

export interface Reading {
  n: number; // edges that are on
  exact: boolean;
  tv: number;
  kl: number;
  entropy: number;
  flops: number | null;
  parameters: number | null;
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

export function nearestGrid(view: View, n: number): number {
  const i = gridIndex(view, n);
  const next = view.grid[Math.min(i + 1, view.grid.length - 1)];
  return Math.abs(Math.log(next / n)) < Math.abs(Math.log(view.grid[i] / n)) ? next : view.grid[i];
}

/** What was measured. */
export function readingOfPoint(point: Point): Reading {
  const { n_edges, tv, kl, entropy, flops_share, parameter_share } = point;
  return { n: n_edges, exact: true, tv, kl, entropy, nearest: point, flops: flops_share, parameters: parameter_share };
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
    return { n, exact: false, tv: point.tv, kl: point.kl, entropy: point.entropy, nearest: below ?? point, ...shares };
  }
  if (!above) return { n, exact: false, tv: below.tv, kl: below.kl, entropy: below.entropy, nearest: below, ...shares };
  const u = Math.log(n / below.n_edges) / Math.log(above.n_edges / below.n_edges);
  const mix = (a: number, b: number) => a + u * (b - a);
  return {
    n, exact: false, tv: mix(below.tv, above.tv), kl: mix(below.kl, above.kl), entropy: mix(below.entropy, above.entropy),
    nearest: u < 0.5 ? below : above, ...shares,
  };
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

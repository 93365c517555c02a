// What follows from the state: the view, both sides of a comparison, the colours, the reading, and what is selected.

import { DARK, LIGHT, type Palette } from "./palette";
import type { Point, View } from "./payload";
import { nearestGrid, readingOf, readingOfPoint, type Reading } from "./reading";
import type { Filter, Place } from "./scene";
import type { Side, State } from "./state";

export function viewOf(state: State): View {
  return state.traces.views[state.view];
}

export function paletteOf(state: State): Palette {
  return state.theme === "dark" || (state.theme === "auto" && state.dark) ? DARK : LIGHT;
}

export function filterOf({ kinds, layers, heads, hidden, pinned, hiddenComponents }: State): Filter {
  return { kinds, layers, heads, hidden, pinned, hiddenComponents };
}

export interface SideView {
  side: Side;
  view: View;
  n: number;
}

/** The trace on the left, and the one it is compared with, of the same share of its edges. */
export function sidesOf(state: State): SideView[] {
  const view = viewOf(state);
  const sides = [{ side: { view: state.view, importance: state.importance }, view, n: state.n }];
  if (state.compare) {
    const other = state.traces.views[state.compare.view];
    const n = nearestGrid(other, Math.max(1, (state.n / view.graph.n_edges) * other.graph.n_edges));
    sides.push({ side: state.compare, view: other, n });
  }
  return sides;
}

/** Which reading this is, among those that the model was asked for. */
export function sizeKey(state: State): string {
  return `${state.view}/${state.importance}/${state.n}`;
}

/** What is known of the trace by the importance, as if nothing had been chosen. */
export function plainReading(state: State): Reading {
  return readingOf(viewOf(state), state.importance, state.n, state.asked.get(sizeKey(state)));
}

/** Whether edges or components were pinned or hidden. */
export function hasChoices({ pinned, hidden, hiddenComponents }: State): boolean {
  return pinned.size + hidden.size + hiddenComponents.size > 0;
}

/** The run of exactly what is chosen now. */
export function ranNow(state: State): Point | null {
  return state.ran && hasChoices(state) && state.ran.key === chosenKey(state) ? state.ran.point : null;
}

/** What is known of what is on now: of the edges as chosen once they were run, and until then of the trace before. */
export function readingNow(state: State): Reading {
  const ran = ranNow(state);
  return ran ? readingOfPoint(ran) : plainReading(state);
}

/** Whether the reading is of the trace before something was chosen. */
export function isOfBefore(state: State): boolean {
  return hasChoices(state) && !ranNow(state);
}

/** Which edges are chosen: two states with the same key would run the same edges. */
export function chosenKey(state: State): string {
  const list = (values: Iterable<unknown>) => [...values].sort().join(" ");
  return [state.view, state.importance, state.n, list(state.pinned), list(state.hidden), list(state.hiddenComponents)].join("/");
}

/** The selected edge or node. */
export function selectedPlace(state: State): Place | null {
  const view = viewOf(state);
  const text = state.selected ?? "";
  const edge = /^e(\d+)$/.exec(text);
  if (edge) return { edge: Number(edge[1]) };
  const node = /^n(\d+),(\d+)$/.exec(text);
  if (node && Number(node[1]) <= view.levels.length && Number(node[2]) < view.nTokens) return { row: Number(node[1]), token: Number(node[2]) };
  return null;
}

/** The number of the selected component. */
export function selectedComponent(state: State): number | null {
  const component = /^c(\d+)$/.exec(state.selected ?? "");
  const { components } = viewOf(state);
  if (!component || !components || Number(component[1]) >= components.level.length) return null;
  return Number(component[1]);
}

// The state of the page: one record, and one reducer through which every change goes.

import type { Zoom } from "./camera";
import type { Colouring } from "./colours";
import type { Point, Traces, View } from "./payload";
import { gridIndex, nearestGrid, tightest } from "./reading";

export interface Side {
  view: number;
  importance: string;
}

/** What is being looked at. The page's address holds it. */
export interface Look extends Side {
  n: number; // edges that are on
  compare: Side | null;
  kinds: ReadonlySet<string>; // kinds that are not drawn
  layers: readonly [number, number] | null;
  heads: ReadonlySet<number> | null; // null: all
  pinned: ReadonlySet<number>;
  hidden: ReadonlySet<number>;
  hiddenComponents: ReadonlySet<string>; // "layer/kind/head"
  selected: string | null; // "e12" an edge, "n3,7" a node, "c5" a component
  zoom: Zoom | null;
  unfolded: ReadonlySet<number>; // layers that are drawn one by one where there is little room
  colouring: Colouring;
  theme: "auto" | "light" | "dark";
}

/** What is being looked at, and what is known of it so far. */
export interface State extends Readonly<Look> {
  readonly traces: Traces;
  readonly dark: boolean; // whether the system prefers dark pages
  readonly asked: ReadonlyMap<string, Point>; // exact readings that the model gave, by `sizeKey`
  readonly answers: ReadonlyMap<string, unknown>; // what the model said of edges and nodes; a string says why there is nothing
  readonly ran: { readonly key: string; readonly point: Point } | null; // the last run of chosen edges, by `chosenKey`
  readonly running: boolean; // the model measures or runs for this page
  readonly notice: string | null; // what went wrong
}

export type Action =
  | { type: "size"; n: number }
  | { type: "step"; by: number } // so many sizes of the grid up or down
  | { type: "importance"; importance: string }
  | { type: "show"; view: number } // the text on the left
  | { type: "compare"; compare: Side | null }
  | { type: "add"; traces: Traces } // more texts to compare
  | { type: "select"; selected: string | null }
  | { type: "pin"; edge: number } // or no longer
  | { type: "hide"; edge: number } // or no longer
  | { type: "hide component"; name: string } // or no longer
  | { type: "choose nothing" }
  | { type: "draw"; change: Partial<Pick<Look, "kinds" | "layers" | "heads">> }
  | { type: "zoom"; zoom: Zoom | null }
  | { type: "fold"; layers: readonly number[]; open: boolean }
  | { type: "colour"; colouring: Colouring }
  | { type: "next theme" }
  | { type: "prefer"; dark: boolean }
  | { type: "restore"; look: Look }
  | { type: "asked"; key: string; point: Point }
  | { type: "answer"; key: string; answer: unknown }
  | { type: "start" }
  | { type: "ran"; key: string; point: Point }
  | { type: "stop" }
  | { type: "notice"; notice: string | null };

const THEMES: Look["theme"][] = ["auto", "light", "dark"];

export function firstState(traces: Traces, look: Look, dark: boolean): State {
  return { ...look, traces, dark, asked: new Map(), answers: new Map(), ran: null, running: false, notice: null };
}

/** The state after an action. It is the same record where nothing has changed, and a new one otherwise. */
export function reduce(state: State, action: Action): State {
  const { views } = state.traces;
  const view = views[state.view];
  switch (action.type) {
    case "size":
      return action.n === state.n ? state : { ...state, n: action.n };
    case "step": {
      const i = gridIndex(view, state.n) + action.by;
      return reduce(state, { type: "size", n: view.grid[Math.max(0, Math.min(view.grid.length - 1, i))] });
    }
    case "importance": {
      const { compare } = state;
      const same = compare !== null && compare.view === state.view && compare.importance === action.importance;
      return { ...state, importance: action.importance, compare: same ? null : compare };
    }
    case "show": {
      const next = views[action.view];
      return {
        ...state, view: action.view, importance: sameOrTightest(next, state.importance), n: nearestGrid(next, (state.n / view.graph.n_edges) * next.graph.n_edges),
        compare: null, selected: null, pinned: new Set(), hidden: new Set(), hiddenComponents: new Set(), zoom: null,
        unfolded: new Set(),
      };
    }
    case "compare":
      return { ...state, compare: action.compare };
    case "add": {
      const { traces } = state;
      const both = { ...traces, views: [...views, ...action.traces.views], raw: { ...traces.raw, views: [...traces.raw.views, ...action.traces.raw.views] } };
      const first = action.traces.views[0];
      const compare = first.edges && view.edges ? { view: views.length, importance: sameOrTightest(first, state.importance) } : state.compare;
      return { ...state, traces: both, compare };
    }
    case "select":
      return action.selected === state.selected ? state : { ...state, selected: action.selected };
    case "pin": {
      const off = state.pinned.has(action.edge);
      return { ...state, pinned: toggled(state.pinned, action.edge), hidden: off ? state.hidden : without(state.hidden, action.edge) };
    }
    case "hide": {
      const off = state.hidden.has(action.edge);
      return { ...state, hidden: toggled(state.hidden, action.edge), pinned: off ? state.pinned : without(state.pinned, action.edge) };
    }
    case "hide component":
      return { ...state, hiddenComponents: toggled(state.hiddenComponents, action.name) };
    case "choose nothing":
      return { ...state, pinned: new Set(), hidden: new Set(), hiddenComponents: new Set(), ran: null };
    case "draw":
      return { ...state, ...action.change };
    case "zoom":
      return { ...state, zoom: action.zoom };
    case "fold": {
      const unfolded = new Set(state.unfolded);
      for (const layer of action.layers) action.open ? unfolded.add(layer) : unfolded.delete(layer);
      return { ...state, unfolded };
    }
    case "colour":
      return { ...state, colouring: action.colouring };
    case "next theme":
      return { ...state, theme: THEMES[(THEMES.indexOf(state.theme) + 1) % THEMES.length] };
    case "prefer":
      return { ...state, dark: action.dark };
    case "restore":
      return { ...state, ...action.look };
    case "asked":
      return { ...state, asked: new Map(state.asked).set(action.key, action.point) };
    case "answer":
      return { ...state, answers: new Map(state.answers).set(action.key, action.answer) };
    case "start":
      return { ...state, running: true, notice: null };
    case "ran":
      return { ...state, ran: { key: action.key, point: action.point } };
    case "stop":
      return { ...state, running: false };
    case "notice":
      return action.notice === state.notice ? state : { ...state, notice: action.notice };
  }
}

function sameOrTightest(view: View, importance: string): string {
  return view.importances.includes(importance) ? importance : tightest(view);
}

function toggled<T>(set: ReadonlySet<T>, value: T): ReadonlySet<T> {
  return set.has(value) ? without(set, value) : new Set(set).add(value);
}

function without<T>(set: ReadonlySet<T>, value: T): ReadonlySet<T> {
  const rest = new Set(set);
  rest.delete(value);
  return rest;
}

/** Holds the state, and reports each change of it. */
export class Store {
  constructor(private now: State, private changed: (state: State, before: State) => void) {}

  get state(): State {
    return this.now;
  }

  dispatch(action: Action): void {
    const before = this.now;
    this.now = reduce(before, action);
    if (this.now !== before) this.changed(this.now, before);
  }
}

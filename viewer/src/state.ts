// What is being looked at, and how it is written into the address.

export interface Side {
  view: number;
  importance: string;
}

export interface State extends Side {
  n: number; // edges that are on
  compare: Side | null;
  kinds: Set<string>; // kinds that are not drawn
  layers: [number, number] | null;
  heads: Set<number> | null; // null: all
  pinned: Set<number>;
  hidden: Set<number>;
  hiddenComponents: Set<string>; // "layer/kind/head"
  selected: string | null; // "e12" an edge, "n3,7" a node, "c5" a component
  zoom: [number, number, number] | null;
  theme: "auto" | "light" | "dark";
}

export function emptyState(importance: string, n: number): State {
  return {
    view: 0, importance, n, compare: null, kinds: new Set(), layers: null, heads: null, pinned: new Set(), hidden: new Set(),
    hiddenComponents: new Set(), selected: null, zoom: null, theme: "auto",
  };
}

export function toHash(state: State): string {
  const parts = new URLSearchParams();
  if (state.view) parts.set("view", String(state.view));
  parts.set("by", state.importance);
  parts.set("n", String(state.n));
  if (state.compare) parts.set("with", `${state.compare.view}:${state.compare.importance}`);
  if (state.kinds.size) parts.set("without", [...state.kinds].join(" "));
  if (state.layers) parts.set("layers", state.layers.join("-"));
  if (state.heads) parts.set("heads", [...state.heads].join(" "));
  if (state.pinned.size) parts.set("pinned", [...state.pinned].join(" "));
  if (state.hidden.size) parts.set("hidden", [...state.hidden].join(" "));
  if (state.hiddenComponents.size) parts.set("off", [...state.hiddenComponents].join(" "));
  if (state.selected) parts.set("selected", state.selected);
  if (state.zoom) parts.set("zoom", state.zoom.map((v) => Number(v.toPrecision(6))).join(" "));
  if (state.theme !== "auto") parts.set("theme", state.theme);
  return `#${parts}`;
}

/** The state of an address; whatever does not fit what is shown is left at its default. */
export function fromHash(hash: string, fallback: State, views: { importances: string[]; n: number; edges: number }[]): State {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...fallback };
  const integer = (text: string | null) => (text !== null && /^\d{1,12}$/.test(text) ? Number(text) : null);
  const list = (name: string) => (parts.get(name) ?? "").split(" ").filter(Boolean);
  const view = integer(parts.get("view"));
  if (view !== null && view < views.length) state.view = view;
  const by = parts.get("by");
  if (by !== null && views[state.view].importances.includes(by)) state.importance = by;
  else if (!views[state.view].importances.includes(state.importance)) state.importance = views[state.view].importances[0];
  const n = integer(parts.get("n"));
  if (n !== null && n >= 1) state.n = Math.min(n, views[state.view].edges);
  const other = /^(\d{1,3}):(.+)$/.exec(parts.get("with") ?? "");
  if (other && views[Number(other[1])]?.importances.includes(other[2])) state.compare = { view: Number(other[1]), importance: other[2] };
  state.kinds = new Set(list("without"));
  const layers = /^(\d{1,5})-(\d{1,5})$/.exec(parts.get("layers") ?? "");
  if (layers) state.layers = [Number(layers[1]), Number(layers[2])];
  const numbers = (name: string) => new Set(list(name).map(integer).filter((v): v is number => v !== null));
  if (parts.has("heads")) state.heads = numbers("heads");
  const edges = (name: string) => new Set([...numbers(name)].filter((e) => e < views[state.view].edges));
  state.pinned = edges("pinned");
  state.hidden = edges("hidden");
  state.hiddenComponents = new Set(list("off"));
  const selected = parts.get("selected");
  state.selected = selected !== null && /^(e\d+|n\d+,\d+|c\d+)$/.test(selected) ? selected : null;
  const zoom = list("zoom").map(Number);
  if (zoom.length === 3 && zoom.every(Number.isFinite) && zoom[0] > 0) state.zoom = zoom as [number, number, number];
  const theme = parts.get("theme");
  if (theme === "light" || theme === "dark") state.theme = theme;
  return state;
}

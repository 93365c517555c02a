// What is being looked at, as the page's address holds it.

import { COLOURINGS } from "./colours";
import type { Traces, View } from "./payload";
import { nearestGrid, tightest } from "./reading";
import type { Look } from "./state";

const SAVE_AFTER_MS = 150;

/** Keeps the address of the page up to date, and reports where somebody else changes it. */
export class Address {
  private last = "";
  private timer = 0;
  private onHash = () => {
    if (location.hash !== this.last) this.changed();
  };

  constructor(private kept: boolean, private changed: () => void) {
    if (kept) addEventListener("hashchange", this.onHash);
  }

  destroy(): void {
    removeEventListener("hashchange", this.onHash);
    clearTimeout(this.timer);
  }

  /** What the address says is to be looked at; the default where there is none. */
  read({ views }: Traces): Look {
    const fallback = defaultLook(views);
    const look = this.kept ? looked(views, fallback) : fallback;
    if (!views[look.view].edges) look.compare = null; // nothing is drawn
    return look;
  }

  save(look: Look): void {
    if (!this.kept) return;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.last = toHash(look);
      try {
        history.replaceState(null, "", this.last);
      } catch {
        // an about:srcdoc frame has no address to write to
      }
    }, SAVE_AFTER_MS);
  }

  link(look: Look): string {
    this.last = toHash(look);
    return location.href.replace(/#.*$/, "") + this.last;
  }
}

/** The tightest importance of the first text, at its density; beside the second text where there is one. */
function defaultLook(views: readonly View[]): Look {
  const [view, second] = views;
  const importance = tightest(view);
  const at = view.density[importance].size_at;
  const look = emptyLook(importance, nearestGrid(view, Math.max(1, Math.round((at ?? 0.1) * view.graph.n_edges))));
  if (second?.edges && view.edges) look.compare = { view: 1, importance: second.importances.includes(importance) ? importance : tightest(second) };
  return look;
}

function looked(views: readonly View[], fallback: Look): Look {
  const shapes = views.map((v) => ({ importances: v.importances, n: v.nTokens, edges: v.graph.n_edges }));
  const look = fromHash(location.hash, fallback, shapes);
  const own = views[look.view];
  if (!location.hash.includes("n=") && look.importance !== fallback.importance) look.n = nearestGrid(own, (own.density[look.importance].size_at ?? 0.1) * own.graph.n_edges);
  look.n = nearestGrid(own, Math.max(1, look.n));
  return look;
}

export function emptyLook(importance: string, n: number): Look {
  return {
    view: 0, importance, n, compare: null, kinds: new Set(), layers: null, heads: null, pinned: new Set(), hidden: new Set(),
    hiddenComponents: new Set(), selected: null, zoom: null, unfolded: new Set(), colouring: "kind", theme: "auto",
  };
}

export function toHash(look: Look): string {
  const parts = new URLSearchParams();
  if (look.view) parts.set("view", String(look.view));
  parts.set("by", look.importance);
  parts.set("n", String(look.n));
  if (look.compare) parts.set("with", `${look.compare.view}:${look.compare.importance}`);
  if (look.kinds.size) parts.set("without", [...look.kinds].join(" "));
  if (look.layers) parts.set("layers", look.layers.join("-"));
  if (look.heads) parts.set("heads", [...look.heads].join(" "));
  if (look.pinned.size) parts.set("pinned", [...look.pinned].join(" "));
  if (look.hidden.size) parts.set("hidden", [...look.hidden].join(" "));
  if (look.hiddenComponents.size) parts.set("off", [...look.hiddenComponents].join(" "));
  if (look.selected) parts.set("selected", look.selected);
  if (look.zoom && look.zoom[0] > 1) parts.set("zoom", look.zoom.map((v) => Number(v.toPrecision(6))).join(" "));
  if (look.unfolded.size) parts.set("open", [...look.unfolded].join(" "));
  if (look.colouring !== "kind") parts.set("colour", look.colouring);
  if (look.theme !== "auto") parts.set("theme", look.theme);
  return `#${parts}`;
}

/** What an address says is looked at; whatever does not fit what is shown is left at its default. */
export function fromHash(hash: string, fallback: Look, views: { importances: string[]; n: number; edges: number }[]): Look {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const look = { ...fallback };
  const integer = (text: string | null) => (text !== null && /^\d{1,12}$/.test(text) ? Number(text) : null);
  const list = (name: string) => (parts.get(name) ?? "").split(" ").filter(Boolean);
  const view = integer(parts.get("view"));
  if (view !== null && view < views.length) look.view = view;
  const by = parts.get("by");
  if (by !== null && views[look.view].importances.includes(by)) look.importance = by;
  else if (!views[look.view].importances.includes(look.importance)) look.importance = views[look.view].importances[0];
  const n = integer(parts.get("n"));
  if (n !== null && n >= 1) look.n = Math.min(n, views[look.view].edges);
  const other = /^(\d{1,3}):(.+)$/.exec(parts.get("with") ?? "");
  if (other && views[Number(other[1])]?.importances.includes(other[2])) look.compare = { view: Number(other[1]), importance: other[2] };
  look.kinds = new Set(list("without"));
  const layers = /^(\d{1,5})-(\d{1,5})$/.exec(parts.get("layers") ?? "");
  if (layers) look.layers = [Number(layers[1]), Number(layers[2])];
  const numbers = (name: string) => new Set(list(name).map(integer).filter((v): v is number => v !== null));
  if (parts.has("heads")) look.heads = numbers("heads");
  const edges = (name: string) => new Set([...numbers(name)].filter((e) => e < views[look.view].edges));
  look.pinned = edges("pinned");
  look.hidden = edges("hidden");
  look.hiddenComponents = new Set(list("off"));
  const selected = parts.get("selected");
  look.selected = selected !== null && /^(e\d+|n\d+,\d+|c\d+)$/.test(selected) ? selected : null;
  const zoom = list("zoom").map(Number);
  const inside = zoom.length === 3 && zoom[0] >= 1 && zoom.slice(1).every((v) => v >= 0 && v <= 1);
  if (inside) look.zoom = zoom as [number, number, number];
  look.unfolded = numbers("open");
  look.colouring = COLOURINGS.find((name) => name === parts.get("colour")) ?? look.colouring;
  const theme = parts.get("theme");
  if (theme === "light" || theme === "dark") look.theme = theme;
  return look;
}

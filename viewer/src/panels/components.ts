// Heads, MLPs and residual streams as squares, a row a layer: how much of each is on.

import { headsOf, type Colouring } from "../colours";
import { paletteOf, viewOf } from "../derived";
import { count, h, percent } from "../dom";
import { componentName } from "../names";
import { hueColour, type Palette } from "../palette";
import type { Page, PanelKind } from "../panel";
import type { View } from "../payload";
import { componentCounts } from "../reading";
import type { State } from "../state";

export default {
  place: "side",
  order: 25,
  follows: "soon",
  create(page) {
    const element = h("section", { "aria-label": "Heads and MLPs" });
    let grid: HTMLElement | null = null;
    let gridOf: View | null = null;
    const most = h("p", { class: "most small" });
    return {
      element,
      update(state) {
        const view = viewOf(state);
        if (!view.edges) {
          grid = null;
          return element.replaceChildren();
        }
        if (!grid || gridOf !== view) {
          grid = build(page, view);
          gridOf = view;
          element.replaceChildren(h("h2", {}, "Heads and MLPs"), grid,
            h("p", { class: "small" }, `A row a layer, the last on top: ${headsOf(view)} heads, the MLP, the residual stream. The fuller, the more of its edges are on. A click lights its edges.`), most);
        }
        fill(grid, state, view);
        most.replaceChildren(...largest(page, state, view));
      },
    };
  },
} satisfies PanelKind;

const MOST = 5;

/** The heads and MLPs with the largest shares of the trace's importance. */
function largest(page: Page, state: State, view: View): (HTMLElement | string)[] {
  const e = view.edges!;
  const order = e.orders[state.importance];
  const own = componentsOf(view);
  const sums = new Float64Array(view.components.level.length);
  for (let j = 0; j < order.sorted.length && order.ranks[j] < state.n; j++) sums[own[order.sorted[j]]] += order.importance[order.sorted[j]];
  const parts = [...sums.keys()].filter((c) => formOf(view, c) !== "residual" && sums[c] > 0);
  const total = parts.reduce((sum, c) => sum + sums[c], 0);
  const first = parts.sort((a, b) => sums[b] - sums[a]).slice(0, MOST);
  if (!first.length) return [];
  return ["Largest shares of the importance of all heads and MLPs: ", ...first.flatMap((c, k) => [
    k ? ", " : "",
    h("button", { type: "button", class: "link", onclick: () => choose(page, c) }, shortName(view, c)), ` ${percent(sums[c] / total)}`,
  ]), "."];
}

function shortName(view: View, c: number): string {
  const layer = view.levels[view.components.level[c]].layer;
  return view.components.head[c] >= 0 ? `layer ${layer} head ${view.components.head[c]}` : `layer ${layer} MLP`;
}

const numbers = new WeakMap<View, Int32Array>();

/** By kept edge: the number of its component. */
function componentsOf(view: View): Int32Array {
  let found = numbers.get(view);
  if (!found) {
    const { components } = view;
    const e = view.edges!;
    const key = (level: number, kind: number, head: number) => `${level},${kind},${head}`;
    const byKey = new Map(components.level.map((level, c) => [key(level, components.kind[c], components.head[c]), c]));
    found = Int32Array.from({ length: e.kept }, (_, i) => byKey.get(key(e.level[i], e.kind[i], e.head[i]))!);
    numbers.set(view, found);
  }
  return found;
}

function choose(page: Page, c: number): void {
  page.dispatch({ type: "select", selected: page.state.selected === `c${c}` ? null : `c${c}` });
}

type Form = "head" | "mlp" | "residual";

function formOf({ components, kinds }: View, c: number): Form {
  return components.head[c] >= 0 ? "head" : kinds[components.kind[c]] === "mlp" ? "mlp" : "residual";
}

function build(page: Page, view: View): HTMLElement {
  const { components } = view;
  const layers = [...new Set(view.levels.map((level) => level.layer))].reverse();
  const rank = (c: number) => ({ head: components.head[c], mlp: 1e6, residual: 2e6 })[formOf(view, c)];
  const high = Math.max(7, Math.min(18, Math.floor(260 / layers.length)));
  const every = Math.ceil(11 / high); // rows between two names, so that they do not touch
  const rows = layers.map((layer) => {
    const own = components.level.map((level, c) => ({ level, c })).filter(({ level }) => view.levels[level].layer === layer).map(({ c }) => c);
    own.sort((a, b) => rank(a) - rank(b));
    return h("div", { role: "row", class: "matrix-row" }, h("span", { class: "small", role: "rowheader", "aria-label": `Layer ${layer}` }, layer % every ? "" : String(layer)), ...own.map((c) => cellOf(page, view, c)));
  });
  const grid = h("div", { class: "matrix", role: "grid", "aria-label": "Components by layer: how much of each is on", onkeydown: (event: KeyboardEvent) => move(grid, event) }, ...rows);
  // many layers make low squares, and many heads narrow ones
  grid.style.setProperty("--wide", `${Math.max(6, Math.min(28, Math.floor(320 / (headsOf(view) + 4))))}px`);
  grid.style.setProperty("--high", `${high}px`);
  cells(grid)[0].tabIndex = 0;
  return grid;
}

function cellOf(page: Page, view: View, c: number): HTMLElement {
  const form = formOf(view, c);
  const cell = h("button", { type: "button", role: "gridcell", tabIndex: -1, class: form === "head" ? "cell" : `cell ${form}`, onclick: () => choose(page, c) });
  cell.dataset.c = String(c);
  return cell;
}

function cells(parent: Element): HTMLElement[] {
  return [...parent.querySelectorAll<HTMLElement>(".cell")];
}

function fill(grid: HTMLElement, state: State, view: View): void {
  const { components } = view;
  const palette = paletteOf(state);
  const counts = componentCounts(view, state.importance, state.n);
  for (const cell of cells(grid)) {
    const c = Number(cell.dataset.c);
    const now = `${counts[c]} ${palette.dark} ${state.colouring}`;
    if (cell.dataset.on !== now) {
      const share = components.n_edges[c] ? counts[c] / components.n_edges[c] : 0;
      const label = `${componentName(view, c)}: ${count(counts[c])} of ${count(components.n_edges[c])} edges on`;
      cell.dataset.on = now;
      cell.style.setProperty("--fill", colourOf(view, c, palette, state.colouring));
      cell.style.setProperty("--share", counts[c] ? String(0.15 + 0.85 * Math.sqrt(share)) : "0");
      cell.setAttribute("aria-label", label);
      cell.title = label;
    }
    cell.setAttribute("aria-selected", String(state.selected === `c${c}`));
  }
}

function colourOf(view: View, c: number, palette: Palette, colouring: Colouring): string {
  const form = formOf(view, c);
  if (form !== "head") return palette[form];
  return colouring === "head" ? hueColour(view.components.head[c], headsOf(view), palette) : palette.attention;
}

/** Arrow keys move between squares. */
function move(grid: HTMLElement, event: KeyboardEvent): void {
  const steps: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const step = steps[event.key];
  if (!step) return;
  event.preventDefault();
  const own = event.target as HTMLElement;
  const rows = [...grid.querySelectorAll(".matrix-row")].map(cells);
  const r = rows.findIndex((row) => row.includes(own));
  const next = rows[Math.max(0, Math.min(rows.length - 1, r + step[0]))];
  const c = rows[r].indexOf(own) + step[1];
  const cell = next[Math.max(0, Math.min(next.length - 1, c))];
  own.tabIndex = -1;
  cell.tabIndex = 0;
  cell.focus();
}

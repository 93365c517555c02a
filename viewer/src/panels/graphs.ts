// The stage: the graph of the trace, or two side by side.

import { counterparts, sameShape } from "../compare";
import { HOME } from "../camera";
import { filterOf, paletteOf, selectedComponent, selectedPlace, sidesOf, viewOf, type SideView } from "../derived";
import { h, percent, visible } from "../dom";
import { Graph, type GraphInput } from "../graph";
import { keptIndex, placeName, sideName, writesOf } from "../names";
import type { Page, PanelKind } from "../panel";
import type { View } from "../payload";
import type { Filter, Place } from "../scene";
import type { State } from "../state";

export default {
  place: "left",
  order: 20,
  follows: "live",
  create(page) {
    const element = h("div", { class: "stage" });
    const { graphs } = page;
    let zoom: State["zoom"] = null; // the left graph's, as it was last seen in the state or put there

    function clear(): void {
      for (const graph of graphs) graph.destroy();
      graphs.length = 0;
    }

    function build(state: State): void {
      clear();
      const parts: HTMLElement[] = viewOf(state).edges ? sidesOf(state).map((side, i) => sideOf(state, side, i)) : [nothing()];
      element.replaceChildren(...parts);
      element.classList.toggle("two", parts.length > 1);
    }

    function sideOf(state: State, { view, side }: SideView, i: number): HTMLElement {
      const label = `Trace of ${view.nTokens} tokens and ${view.graph.n_layers} layers by ${side.importance}. Arrow keys move between nodes, E steps through a node's edges, Enter selects.`;
      const graph = new Graph(view, label, {
        select: (place) => {
          if (i === 0) select(page, place);
        },
        hover: (place, x, y) => page.point(place && hints(view, place), x, y),
        moved: (to) => {
          graphs[1 - i]?.show(to);
          page.dispatch({ type: "zoom", zoom: (zoom = to) });
        },
        laidOut: () => page.shifted(),
        fold: (layers, open) => page.dispatch({ type: "fold", layers, open }),
        say: (text) => page.say(text),
        describe: (place) => placeName(view, place),
      }, zoom);
      graphs.push(graph);
      return h("div", { class: "side" }, state.compare ? h("div", { class: "side-name" }, sideName(state.traces.views, side)) : null, graph.element);
    }

    const first = (act: (graph: Graph) => void) => () => {
      if (graphs.length) act(graphs[0]);
    };
    const zoomBy = (factor: number) => first((graph) => graph.zoomBy(factor));
    return {
      element,
      keys: {
        "+": zoomBy(1.3), "=": zoomBy(1.3), "-": zoomBy(1 / 1.3), f: first((graph) => graph.fit()),
        "0": first((graph) => {
          page.dispatch({ type: "fold", layers: [...page.state.unfolded], open: false });
          graph.fit();
        }),
        e: first((graph) => graph.nextEdge(1)), E: first((graph) => graph.nextEdge(-1)), o: first((graph) => graph.foldAtCursor()),
        Escape: () => page.dispatch({ type: "select", selected: null }),
      },
      update(state, before) {
        const fresh = !before || showsOthers(state, before);
        const moved = state.zoom !== zoom;
        zoom = state.zoom;
        if (fresh) build(state);
        else if (moved) for (const graph of graphs) graph.show(zoom ?? HOME);
        const sides = sidesOf(state);
        graphs.forEach((graph, i) => graph.update(inputOf(state, sides, i)));
        if (fresh) for (const graph of graphs) graph.resize();
      },
      destroy: clear,
    };
  },
} satisfies PanelKind;

/** Whether the graphs are those of other traces. */
function showsOthers(state: State, before: State): boolean {
  return state.traces !== before.traces || state.view !== before.view || state.importance !== before.importance
    || state.compare?.view !== before.compare?.view || state.compare?.importance !== before.compare?.importance;
}

function inputOf(state: State, sides: SideView[], i: number): GraphInput {
  const { view, side, n } = sides[i];
  const filter = filterOf(state);
  const common = {
    importance: side.importance, n, palette: paletteOf(state), colouring: state.colouring, unfolded: state.unfolded, shared: sharedWith(sides, i),
  };
  if (i > 0) {
    const all: Filter = { ...filter, hidden: new Set(), pinned: new Set(), hiddenComponents: new Set() };
    return { ...common, filter: all, selected: null, component: null };
  }
  const c = selectedComponent(state);
  const { components } = view;
  return { ...common, filter, selected: selectedPlace(state), component: c === null ? null : [components.level[c], components.kind[c], components.head[c]] };
}

/** In a comparison of models of one shape: whether the other trace has an edge too. */
function sharedWith(sides: SideView[], i: number): GraphInput["shared"] {
  const { view } = sides[i];
  const other = sides[1 - i];
  if (!other || !sameShape(view, other.view)) return undefined;
  const to = counterparts(view, other.view);
  const { rank } = other.view.edges!.orders[other.side.importance];
  return (edge) => to[edge] >= 0 && rank[to[edge]] < other.n;
}

function select(page: Page, place: Place | null): void {
  const selected = place === null ? null : "edge" in place ? `e${place.edge}` : `n${place.row},${place.token}`;
  page.dispatch({ type: "select", selected });
  if (place) page.say(placeName(viewOf(page.state), place));
}

/** What is said of what is under the pointer. */
function hints(view: View, place: Place): string[] {
  const lines = [placeName(view, place)];
  if (!("edge" in place)) return lines;
  const i = keptIndex(view, place.edge);
  for (const [name, order] of Object.entries(view.edges!.orders)) lines.push(`${name}: importance ${order.importance[i].toPrecision(3)}, on from ${percent((order.rank[i] + 1) / view.graph.n_edges)}`);
  const writes = writesOf(view, i);
  if (writes) lines.push(`promotes ${writes[0].slice(0, 3).map((k) => visible(view.readings!.tokens[k])).join(" ")}`);
  return lines;
}

function nothing(): HTMLElement {
  return h("div", { class: "empty" },
    h("p", {}, "There is no trace to draw: this measurement was loaded from a file, and its model was not. The curve, the size and the predictions are here."),
    h("p", {}, h("code", {}, "densitometer explore measurement.json -m MODEL"), " loads both."));
}

// What is not drawn: how many edges this page keeps, and of which importances.

import { paletteOf, viewOf } from "../derived";
import { count, h, percent, s } from "../dom";
import { isLong } from "../names";
import type { Palette } from "../palette";
import type { PanelKind } from "../panel";
import type { Histogram, Order, View } from "../payload";

const WIDTH = 372;
const FLOOR = 64;
const TALLEST = 60;

export default {
  place: "side",
  order: 90,
  create() {
    const element = h("section", { "aria-label": "What is not drawn" });
    return {
      element,
      update(state) {
        const view = viewOf(state);
        element.replaceChildren(...parts(view, state.importance, state.n, paletteOf(state)));
      },
    };
  },
} satisfies PanelKind;

function parts(view: View, importance: string, n: number, palette: Palette): Element[] {
  const { edges } = view;
  const total = view.graph.n_edges;
  if (!edges) return [];
  if (edges.kept === total) return [h("p", { class: "small" }, `All ${count(total)} edges are in this page.`)];
  return [
    h("h2", {}, "What is not drawn"),
    h("p", { class: "small", id: "kept" }, `This page keeps ${count(edges.kept)} of ${count(total)} edges. Every edge of a trace is there up to ${percent(edges.exactTo / total)}; at this size ${count(drawn(edges.orders[importance], n))} of ${count(n)}. Counts and the squares above are exact at every size, costs ${isLong(view) ? "at those measured" : "too"}.`),
    chart(view.histograms[importance], palette),
    h("p", { class: "small" }, "Light: all edges; blue: those in this page."),
  ];
}

function drawn(order: Order, n: number): number {
  let found = 0;
  while (found < order.ranks.length && order.ranks[found] < n) found++;
  return found;
}

function chart(histogram: Histogram, palette: Palette): SVGElement {
  const most = Math.max(...histogram.all.map(Math.log1p), 1);
  const width = WIDTH / histogram.all.length;
  const bar = (n: number, k: number, fill: string) => {
    const height = (TALLEST * Math.log1p(n)) / most;
    return s("rect", { x: k * width, y: FLOOR - height, width: width - 1, height, fill }, s("title", {}, `${count(n)} edges`));
  };
  return s("svg", { viewBox: `0 0 ${WIDTH} 82`, class: "histogram", role: "img", "aria-label": "Edges by importance, all and kept, log scale" },
    ...histogram.all.flatMap((all, k) => [bar(all, k, palette.faint), bar(histogram.kept[k], k, palette.accent)]),
    s("text", { x: 0, y: 78, "font-size": 10, fill: palette.muted }, `importance 1e${histogram.from.toFixed(1)}`),
    s("text", { x: WIDTH, y: 78, "font-size": 10, fill: palette.muted, "text-anchor": "end" }, `1e${histogram.to.toFixed(1)}${histogram.zero ? `, ${count(histogram.zero)} at 0` : ""}`));
}

// What lines and colours of the graph mean, and how one moves in it.

import { viewOf } from "../derived";
import { h, s } from "../dom";
import type { PanelKind } from "../panel";

export default {
  place: "left",
  order: 30,
  create() {
    const drawn = h("span", { id: "drawn" });
    const element = h("p", { class: "legend small" },
      sample("residual", s("line", { x1: 13, x2: 13, y1: 1, y2: 15, class: "l-residual" })),
      sample("attention, a colour a head", s("path", { d: "M2 15C2 6 24 10 24 1", class: "l-attention" })),
      sample("MLP", s("path", { d: "M9 15C17 11 17 5 9 1", class: "l-mlp" }), s("rect", { x: 11, y: 5, width: 6, height: 6, class: "l-mlp-square" })),
      sample("output", s("circle", { cx: 13, cy: 8, r: 4.5, class: "l-output" })),
      drawn,
      h("span", { id: "keys" }, "drag: pan · wheel: zoom · 0: reset · F: whole text · ?: keys"));
    return {
      element,
      update(state) {
        const { edges } = viewOf(state);
        if (edges) drawn.textContent = state.n > edges.exactTo ? "the most important are drawn" : "";
      },
    };
  },
} satisfies PanelKind;

function sample(name: string, ...shapes: SVGElement[]): HTMLElement {
  return h("span", {}, s("svg", { viewBox: "0 0 26 16", width: 26, height: 16, "aria-hidden": "true" }, ...shapes), name);
}

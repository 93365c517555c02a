// The size of the trace: the curve, and the slider under it.

import { Curve } from "../curve";
import { paletteOf, viewOf } from "../derived";
import { h } from "../dom";
import type { PanelKind } from "../panel";

export default {
  place: "side",
  order: 10,
  follows: "live",
  create(page) {
    const curve = new Curve((n) => page.dispatch({ type: "size", n }));
    const step = (by: number) => () => page.dispatch({ type: "step", by });
    return {
      element: h("section", { "aria-label": "Size of the trace" }, h("h2", {}, "Size of the trace"), curve.element),
      keys: { "[": step(-1), "]": step(1), "{": step(-10), "}": step(10) },
      update(state) {
        curve.update(viewOf(state), state.importance, state.n, paletteOf(state));
      },
    };
  },
} satisfies PanelKind;

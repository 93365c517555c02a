// What forms and colours of the graph mean, what the colours stand for, and how one moves in it.

import { COLOURINGS, headsOf, rampColour, type Colouring } from "../colours";
import { paletteOf, viewOf } from "../derived";
import { h, s, visible } from "../dom";
import { hueColour, type Palette } from "../palette";
import type { PanelKind } from "../panel";
import type { View } from "../payload";

const NAMES: Record<Colouring, string> = { head: "head", kind: "kind", importance: "importance", source: "source token" };
const MOST_SWATCHES = 16;

export default {
  place: "left",
  order: 30,
  create(page) {
    const select = h("select", {
      id: "colour", "aria-label": "What the colours stand for", onchange: () => page.dispatch({ type: "colour", colouring: select.value as Colouring }),
    }, ...COLOURINGS.map((name) => h("option", { value: name }, NAMES[name])));
    const scale = h("span", { class: "scale" });
    const drawn = h("span", { id: "drawn" });
    const button = (key: string, text: string, label: string) => h("button", { type: "button", "aria-label": label, title: `${label} (${key})`, onclick: () => page.press(key) }, text);
    const fold = h("button", { type: "button", id: "fold", title: "Layers that are drawn together open and fold; so does a click on their name (O)", onclick: () => {
      const all = page.graphs[0].scene.bands;
      const open = all.some((band) => !band.open);
      page.dispatch({ type: "fold", layers: all.flatMap((band) => band.layers), open });
    } });
    const element = h("div", { class: "legend small" },
      h("label", {}, "colour ", select), scale,
      drawn,
      h("div", { class: "moves", role: "group", "aria-label": "Zoom" },
        fold, button("-", "−", "Zoom out"), button("+", "+", "Zoom in"), button("0", "Fit", "Whole graph"),
        h("span", { class: "sr", id: "keys" }, "Plus and minus zoom, 0 and F show the whole graph, the question mark lists all keys.")));
    const foldable = () => {
      const [graph] = page.graphs;
      fold.hidden = !graph?.folds;
      fold.textContent = graph?.scene.bands.some((band) => !band.open) ? "Open all layers" : "Fold layers";
    };
    return {
      element,
      update(state) {
        const view = viewOf(state);
        element.hidden = !view.edges;
        if (!view.edges) return;
        select.value = state.colouring;
        scale.replaceChildren(...(state.compare ? [] : scaleOf(view, state.colouring, paletteOf(state))));
        drawn.textContent = state.n > view.edges.exactTo ? "the most important are drawn" : "";
        foldable();
      },
      moved: foldable,
    };
  },
} satisfies PanelKind;

/** What each colour stands for. */
function scaleOf(view: View, colouring: Colouring, palette: Palette): Element[] {
  const others = [swatch(palette.mlp, "MLP"), swatch(palette.residual, "residual")];
  switch (colouring) {
    case "kind":
      return [swatch(palette.attention, "attention"), ...others];
    case "importance":
      return [h("span", {}, "least"), ramp((share) => rampColour(share, palette)), h("span", {}, "most")];
    case "head": {
      const heads = headsOf(view);
      const own = (head: number) => hueColour(head, heads, palette);
      if (heads > MOST_SWATCHES) return [h("span", {}, "head 0"), ramp((share) => own(share * (heads - 1))), h("span", {}, String(heads - 1)), ...others];
      return [h("span", {}, "head"), ...Array.from({ length: heads }, (_, head) => swatch(own(head), String(head))), ...others];
    }
    case "source": {
      const name = (token: number) => visible(view.input.tokens[token]);
      const own = (token: number) => hueColour(token, view.nTokens, palette);
      if (view.nTokens > MOST_SWATCHES) return [h("span", {}, name(0)), ramp((share) => own(share * (view.nTokens - 1))), h("span", {}, name(view.nTokens - 1)), ...others];
      return [...Array.from({ length: view.nTokens }, (_, token) => swatch(own(token), name(token))), ...others];
    }
  }
}

function swatch(colour: string, name: string): HTMLElement {
  const mark = h("i", { "aria-hidden": "true" });
  mark.style.background = colour;
  return h("span", { class: "swatch" }, mark, name);
}

function ramp(colour: (share: number) => string): Element {
  const steps = 24;
  return s("svg", { viewBox: `0 0 ${steps} 1`, preserveAspectRatio: "none", class: "ramp", "aria-hidden": "true" },
    ...Array.from({ length: steps }, (_, k) => s("rect", { x: k, y: 0, width: 1.05, height: 1, fill: colour(k / (steps - 1)) })));
}

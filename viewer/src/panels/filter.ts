// What is drawn: kinds of edges, layers and heads.

import { viewOf } from "../derived";
import { h } from "../dom";
import { SINKS } from "../names";
import type { Page, PanelKind } from "../panel";
import type { State } from "../state";

const KIND_NAMES: Record<string, string> = {
  residual_attention: "residual, past attention", residual_mlp: "residual, past the MLP", residual: "residual", attention: "attention", mlp: "MLP", [SINKS]: "edges that serve sinks",
};

export default {
  place: "side",
  order: 80,
  create(page) {
    const element = h("section", { "aria-label": "What is drawn" });
    return {
      element,
      update(state) {
        if (!viewOf(state).edges) return element.replaceChildren();
        const focused = (element.getRootNode() as ShadowRoot).activeElement?.id;
        if (focused?.startsWith("f-text") && element.querySelector(`#${focused}`)) return; // someone is typing
        const some = state.kinds.size || state.layers || state.heads;
        element.replaceChildren(h("h2", {}, "What is drawn"),
          h("div", { class: "checks" }, ...kinds(page, state)),
          h("div", { class: "row" }, h("span", {}, "layers "), layer(page, state, 0, "First layer drawn"), h("span", {}, " to "), layer(page, state, 1, "Last layer drawn"), h("span", {}, " heads "), heads(page, state)),
          some ? h("div", { class: "row" }, h("button", { type: "button", id: "f-all", onclick: () => page.dispatch({ type: "draw", change: { kinds: new Set(), layers: null, heads: null } }) }, "Draw everything")) : h("span", {}));
        if (focused) element.querySelector<HTMLElement>(`#${focused}`)?.focus();
      },
    };
  },
} satisfies PanelKind;

function kinds(page: Page, state: State): HTMLElement[] {
  const view = viewOf(state);
  return [...view.kinds, ...(view.sinks?.length ? [SINKS] : [])].map((kind) => {
    const box = h("input", { type: "checkbox", id: `f-${kind}`, checked: !state.kinds.has(kind), onchange: () => {
      const off = new Set(page.state.kinds);
      if (box.checked) off.delete(kind);
      else off.add(kind);
      page.dispatch({ type: "draw", change: { kinds: off } });
    } });
    return h("label", { class: "check" }, box, ` ${KIND_NAMES[kind] ?? kind}`);
  });
}

function layer(page: Page, state: State, index: 0 | 1, label: string): HTMLElement {
  const { levels } = viewOf(state);
  const [first, last] = [levels[0].layer, levels[levels.length - 1].layer];
  const input = h("input", {
    type: "number", id: `f-layer${index}`, "aria-label": label, min: String(first), max: String(last), value: String((state.layers ?? [first, last])[index]),
    onchange: () => {
      const now: [number, number] = [...(page.state.layers ?? [first, last] as const)];
      now[index] = Math.max(first, Math.min(last, Number(input.value) || first));
      page.dispatch({ type: "draw", change: { layers: now[0] === first && now[1] === last ? null : now } });
    },
  });
  return input;
}

function heads(page: Page, state: State): HTMLElement {
  const input = h("input", {
    type: "text", id: "f-text-heads", "aria-label": "Heads that are drawn, by commas; empty for all", placeholder: "all", value: state.heads ? [...state.heads].join(", ") : "",
    onchange: () => {
      const found = input.value.split(/[\s,]+/).filter((t) => /^\d+$/.test(t)).map(Number);
      page.dispatch({ type: "draw", change: { heads: input.value.trim() ? new Set(found) : null } });
    },
  });
  return input;
}

// The edges that were pinned and hidden, and what the model says with exactly what is left.

import { canRun } from "../asking";
import { hasChoices, plainReading, ranNow, viewOf } from "../derived";
import { columnHeads, count, fixed, h, percent, significant, visible } from "../dom";
import { edgeName, isLong, keptIndex, spokenComponent } from "../names";
import type { Page, PanelKind } from "../panel";
import type { Point } from "../payload";
import type { Action, State } from "../state";

export default {
  place: "side",
  order: 50,
  create(page) {
    const element = h("section", { "aria-label": "Chosen edges" });
    return {
      element,
      update(state) {
        element.replaceChildren(...(viewOf(state).edges && hasChoices(state) ? parts(page, state) : []));
      },
    };
  },
} satisfies PanelKind;

function parts(page: Page, state: State): (HTMLElement | string)[] {
  const ran = ranNow(state);
  return [
    h("h2", {}, "Chosen edges"),
    choices(page, state),
    h("div", { class: "row" }, h("button", { type: "button", onclick: () => page.dispatch({ type: "choose nothing" }) }, "Undo all")),
    ran ? result(state, ran)
      : h("p", { class: "small" }, canRun(page, state) ? "The model is being run with exactly these edges…"
        : isLong(viewOf(state)) ? "Chosen edges of a text as long as this cannot be run; its traces were."
          : "This page is a file: it has no model to run. Open the text with `densitometer explore`."),
  ];
}

/** What was chosen, each with a button that takes it back. */
function choices(page: Page, state: State): HTMLElement {
  const view = viewOf(state);
  const item = (label: string, undo: Action) => h("li", {}, label, " ",
    h("button", { type: "button", class: "link", "aria-label": `Undo: ${label}`, onclick: () => page.dispatch(undo) }, "undo"));
  const name = (edge: number) => {
    const i = keptIndex(view, edge);
    return i < 0 ? `edge ${edge}` : edgeName(view, i);
  };
  return h("ul", { class: "edges" },
    ...[...state.pinned].map((edge) => item(`on: ${name(edge)}`, { type: "pin", edge })),
    ...[...state.hidden].map((edge) => item(`off: ${name(edge)}`, { type: "hide", edge })),
    ...[...state.hiddenComponents].map((name) => item(`off: ${spokenComponent(name)}`, { type: "hide component", name })));
}

/** The trace by the importance beside the edges as chosen. */
function result(state: State, point: Point): HTMLElement {
  const before = plainReading(state);
  const first = (tokens: Point["top"]) => tokens.slice(0, 3).map((t) => visible(t.token)).join(" ");
  const row = (name: string, importance: string, chosen: string, id?: string) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, importance), h("td", { id }, chosen));
  return h("table", { class: "plain result" },
    columnHeads("", "by the importance", "as chosen"),
    h("tbody", {},
      row("edges", count(state.n), count(point.n_edges)),
      row("total variation", `${before.exact ? "" : "≈ "}${fixed(before.tv, 4)}`, fixed(point.tv, 4), "ran-tv"),
      ...(before.target === null || point.target === undefined ? []
        : [row(viewOf(state).target!.kind, `${before.exact ? "" : "≈ "}${significant(before.target)}`, significant(point.target))]),
      row("entropy", fixed(before.entropy, 2), fixed(point.entropy, 2)),
      row("operations", before.flops === null ? "–" : percent(before.flops), percent(point.flops_share)),
      row("first tokens", first(before.nearest.top), first(point.top))));
}

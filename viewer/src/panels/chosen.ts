// The edges that were pinned and hidden, and the model run with exactly what is left.

import { chosenKey, readingNow, viewOf } from "../derived";
import { columnHeads, count, fixed, h, percent, visible } from "../dom";
import { edgeName, isLong, keptIndex } from "../names";
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
      keys: { r: () => void run(page) },
      update(state) {
        const focused = (element.getRootNode() as ShadowRoot).activeElement?.id === "run";
        element.replaceChildren(...(viewOf(state).edges ? parts(page, state) : []));
        if (focused) element.querySelector<HTMLElement>("#run")?.focus();
      },
    };
  },
} satisfies PanelKind;

function parts(page: Page, state: State): (HTMLElement | string)[] {
  const title = h("h2", {}, "Chosen edges");
  const changes = state.pinned.size + state.hidden.size + state.hiddenComponents.size;
  if (!changes && !state.ran) return [title, h("p", { class: "small" }, "Pin edges to keep them on, hide edges or whole heads to take them out, then run the model with exactly what is left.")];
  const runs = canRun(page, state);
  return [
    title,
    choices(page, state),
    h("div", { class: "row" },
      h("button", { type: "button", class: "primary", id: "run", disabled: state.running || !runs, onclick: () => void run(page) }, state.running ? "Running…" : "Run exactly these edges"),
      changes ? h("button", { type: "button", onclick: () => page.dispatch({ type: "choose nothing" }) }, "Undo all") : ""),
    isLong(viewOf(state)) ? h("p", { class: "small" }, "Chosen edges of a text as long as this cannot be run; its traces were.")
      : runs ? "" : h("p", { class: "small" }, "This page is a file: it has no model to run. Open the text with `densitometer explore`."),
    ...(state.ran ? result(state, state.ran) : []),
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
    ...[...state.hiddenComponents].map((name) => item(`off: all of ${name.replace(/\/-1$/, "")} (layer/kind/head)`, { type: "hide component", name })));
}

function result(state: State, { point, key }: NonNullable<State["ran"]>): (HTMLElement | string)[] {
  const before = readingNow(state);
  const first = (tokens: Point["top"]) => tokens.slice(0, 3).map((t) => visible(t.token)).join(" ");
  const row = (name: string, importance: string, chosen: string, id?: string) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, importance), h("td", { id }, chosen));
  return [
    h("table", { class: "plain result" },
      columnHeads("", "by the importance", "as chosen"),
      h("tbody", {},
        row("edges", count(state.n), count(point.n_edges)),
        row("total variation", `${before.exact ? "" : "≈ "}${fixed(before.tv, 4)}`, fixed(point.tv, 4), "ran-tv"),
        row("entropy", fixed(before.entropy, 2), fixed(point.entropy, 2)),
        row("operations", before.flops === null ? "–" : percent(before.flops), percent(point.flops_share)),
        row("first tokens", first(before.nearest.top), first(point.top)))),
    key === chosenKey(state) ? "" : h("p", { class: "small" }, "The choice has changed since it was run."),
  ];
}

function canRun({ host }: Page, state: State): boolean {
  return host.kind !== "file" && viewOf(state).id !== undefined;
}

async function run(page: Page): Promise<void> {
  const { host, state } = page;
  if (state.running || !canRun(page, state)) return;
  page.dispatch({ type: "start" });
  try {
    const point = await host.ask<Point>("run", {
      id: viewOf(state).id, importance: state.importance, n_edges: state.n, pinned: [...state.pinned], hidden: [...state.hidden],
      hidden_components: [...state.hiddenComponents].map((name) => {
        const [layer, kind, head] = name.split("/");
        return [Number(layer), kind, Number(head)];
      }),
    });
    page.dispatch({ type: "ran", key: chosenKey(state), point });
    page.say(`Run with ${count(point.n_edges)} edges: total variation ${fixed(point.tv, 4)}.`);
  } catch (error) {
    page.dispatch({ type: "notice", notice: (error as Error).message });
  } finally {
    page.dispatch({ type: "stop" });
  }
}

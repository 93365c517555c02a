// What the trace is compared with, and what both have in common.

import { overlapOf, sameShape } from "../compare";
import { readingNow, sidesOf, viewOf, type SideView } from "../derived";
import { columnHeads, count, fixed, h, percent } from "../dom";
import { sideName } from "../names";
import type { Page, PanelKind } from "../panel";
import { decode } from "../payload";
import { readingOf } from "../reading";
import type { State } from "../state";

export default {
  place: "side",
  order: 60,
  create(page) {
    const element = h("section", { "aria-label": "Comparison" });
    const form = page.host.kind === "server" ? otherText(page) : null; // stays, with what is typed into it
    return {
      element,
      update(state) {
        if (!viewOf(state).edges) return element.replaceChildren();
        const focused = (element.getRootNode() as ShadowRoot).activeElement?.id;
        const sides = sidesOf(state);
        element.replaceChildren(
          h("h2", {}, "Compare with"), picker(page, state),
          ...(state.traces.views.length > 1 ? [ownText(page, state)] : []),
          ...(form ? [form] : []),
          ...(sides.length > 1 ? [figures(state, sides), ...inCommon(sides)] : []));
        if (focused) element.querySelector<HTMLElement>(`#${focused}`)?.focus();
      },
    };
  },
} satisfies PanelKind;

/** Every other importance of every text. */
function picker(page: Page, state: State): HTMLElement {
  const { views } = state.traces;
  const others: [string, string][] = [];
  views.forEach((view, index) => {
    if (!view.edges) return;
    for (const name of view.importances) {
      if (index === state.view && name === state.importance) continue;
      others.push([`${index}:${name}`, views.length > 1 ? `${index + 1}. ${sideName(views, { view: index, importance: name })}` : `importance ${name}`]);
    }
  });
  const now = state.compare ? `${state.compare.view}:${state.compare.importance}` : "";
  const select = h("select", { id: "compare", "aria-label": "Compare with", onchange: () => {
    const [index, importance] = select.value.split(/:(.*)/);
    page.dispatch({ type: "compare", compare: select.value ? { view: Number(index), importance } : null });
  } }, h("option", { value: "", selected: !now }, "nothing"), ...others.map(([value, label]) => h("option", { value, selected: value === now }, label)));
  return select;
}

function ownText(page: Page, state: State): HTMLElement {
  const { views } = state.traces;
  const select = h("select", { id: "own-view", "aria-label": "Text shown on the left", onchange: () => page.dispatch({ type: "show", view: Number(select.value) }) },
    ...views.map((view, index) => h("option", { value: String(index), selected: index === state.view }, `${index + 1}. ${sideName(views, { view: index, importance: view.importances[0] })}`)));
  return h("label", { class: "small" }, "shown on the left: ", select);
}

function otherText(page: Page): HTMLElement {
  const input = h("input", { type: "text", id: "other-text", "aria-label": "Another text to compare with", placeholder: "another text…", autocomplete: "off" });
  const button = h("button", { type: "submit" }, "Compare");
  return h("form", { class: "other", onsubmit: async (event: Event) => {
    event.preventDefault();
    if (page.state.running) return;
    await page.busy(button, "Measuring…", async () => {
      const answer = decode(await page.host.ask("measure", { text: input.value, importance: [page.state.importance] }));
      if (answer.kind === "traces") page.dispatch({ type: "add", traces: answer });
    });
  } }, input, button);
}

function figures(state: State, [a, b]: SideView[]): HTMLElement {
  const ra = readingNow(state);
  const rb = readingOf(b.view, b.side.importance, b.n);
  const from = ({ view, side }: SideView) => {
    const at = view.density[side.importance].size_at;
    return at === null ? "–" : percent(at);
  };
  const rows: [string, string, string][] = [
    ["edges on", count(a.n), count(b.n)],
    ["share", percent(a.n / a.view.graph.n_edges), percent(b.n / b.view.graph.n_edges)],
    ["total variation", (ra.exact ? "" : "≈ ") + fixed(ra.tv, 3), (rb.exact ? "" : "≈ ") + fixed(rb.tv, 3)],
    ["TV ≤ 0.1 from", from(a), from(b)],
  ];
  return h("table", { class: "plain" }, columnHeads("", "left", "right"),
    h("tbody", {}, ...rows.map(([name, x, y]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, x), h("td", {}, y)))));
}

function inCommon([a, b]: SideView[]): HTMLElement[] {
  if (!sameShape(a.view, b.view)) return [h("p", { class: "small" }, "The two models differ in shape, so their edges cannot be matched and no overlap is shown.")];
  const overlap = overlapOf(a.view, a.side.importance, a.n, b.view, b.side.importance, b.n);
  const share = (value: number | null) => h("dd", {}, value === null ? "–" : percent(value));
  return [
    h("dl", { class: "facts", id: "overlap" },
      h("dt", {}, "edges in both"), h("dd", {}, count(overlap.shared)),
      h("dt", { title: "edges in both / edges in either" }, "overlap of edges"), share(overlap.jaccard),
      h("dt", { title: "components used by both / by either" }, "overlap of components"), share(overlap.components)),
    h("p", { class: "small" }, `Grey: in both. Coloured: on this side only. Tokens are aligned from the last one.${overlap.exact ? "" : ` Of the edges kept: ${count(overlap.first)} and ${count(overlap.second)}.`}`),
  ];
}

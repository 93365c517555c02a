// What is selected: an edge, a node or a component, what it is, what it reads and what it writes.

import { selectedComponent, selectedPlace, viewOf } from "../derived";
import { barOf, columnHeads, count, h, percent, visible } from "../dom";
import { componentName, componentOf, edgeName, edgeWay, isLong, keptIndex, kindOf, nodeName, writesOf } from "../names";
import type { Page, PanelKind } from "../panel";
import type { Order, View } from "../payload";
import { componentCounts } from "../reading";
import type { State } from "../state";

const SAMPLE_LIMIT = 8;

const GAP = 18; // px between the card and what it is about
const SHEET = 700; // px of the page: below it the card lies along its lower edge

export default {
  place: "over",
  order: 5,
  create(page) {
    const body = h("div", { class: "card-body" });
    const close = h("button", { type: "button", class: "close", "aria-label": "Close", title: "Close (Escape)", onclick: () => page.dispatch({ type: "select", selected: null }) }, "×");
    const element = h("section", { class: "card", "aria-label": "Selection", hidden: true }, close, body);
    const place = () => {
      if (!element.hidden) beside(element, anchorOf(page, element));
    };
    /** Where the card lies over what was selected, on a narrow page: scroll that into sight. */
    const uncover = () => {
      const anchor = element.classList.contains("sheet") ? anchorOf(page, element) : null;
      const under = anchor ? anchor.bottom + GAP - element.getBoundingClientRect().top : 0;
      if (under > 0) main?.scrollBy(0, under);
    };
    let main: Element | null = null; // scrolls where the page is narrow

    /** Pin or hide the selected edge, by a key. */
    function toggle(type: "pin" | "hide", set: "pinned" | "hidden"): void {
      const place = selectedPlace(page.state);
      if (!place || !("edge" in place)) return page.say("Select an edge first: E steps through the edges of a node.");
      page.dispatch({ type, edge: place.edge });
      page.say(page.state[set].has(place.edge) ? `Edge ${set}.` : `Edge no longer ${set}.`);
    }

    return {
      element,
      keys: { p: () => toggle("pin", "pinned"), h: () => toggle("hide", "hidden") },
      moved: place,
      update(state, before) {
        if (!main && (main = element.parentElement?.querySelector("main") ?? null)) main.addEventListener("scroll", place, { capture: true, passive: true });
        const details = viewOf(state).edges ? detailsOf(page, state) : null;
        element.hidden = details === null;
        const at = [...body.querySelectorAll("button")].indexOf((element.getRootNode() as ShadowRoot).activeElement as HTMLButtonElement);
        body.replaceChildren(...(details ?? []));
        if (at >= 0) body.querySelectorAll("button")[at]?.focus(); // the button that was pressed, made anew
        place();
        if (before?.selected === state.selected) return;
        body.scrollTop = 0;
        uncover();
      },
    };
  },
} satisfies PanelKind;

/** Where what is selected is in the window; null where it cannot be seen. A square's whole table counts, so that it stays free. */
function anchorOf({ state, graphs }: Page, element: HTMLElement): DOMRect | null {
  if (selectedComponent(state) !== null) return element.parentElement?.querySelector(".matrix")?.getBoundingClientRect() ?? null;
  const place = selectedPlace(state);
  const point = place && graphs[0]?.placeOf(place);
  return point ? new DOMRect(point[0] - 6, point[1] - 6, 12, 12) : null;
}

/** Put the card beside a place, on the side where there is more room; over or under a table; on a narrow page along the lower edge. */
function beside(element: HTMLElement, anchor: DOMRect | null): void {
  const page = element.parentElement;
  if (!page) return;
  const box = page.getBoundingClientRect();
  const sheet = box.width < SHEET;
  element.classList.toggle("sheet", sheet);
  if (sheet || !anchor) {
    for (const name of ["left", "top"]) element.style.removeProperty(name);
    return;
  }
  const { offsetWidth: width, offsetHeight: height } = element;
  const held = (value: number, most: number) => `${Math.max(8, Math.min(most - 8, value))}px`;
  const [left, right, top, bottom] = [anchor.left - box.left, anchor.right - box.left, anchor.top - box.top, anchor.bottom - box.top];
  const table = anchor.width > 2 * GAP;
  const over = top - GAP - height;
  if (table && (over >= 8 || bottom + GAP + height + 8 <= box.height)) {
    element.style.left = held(left, box.width - width);
    element.style.top = `${over >= 8 ? over : bottom + GAP}px`;
    return;
  }
  const x = right + GAP + width + 8 <= box.width && (box.width - right >= left || left < width + GAP) ? right + GAP : left - GAP - width;
  element.style.left = held(x, box.width - width);
  element.style.top = held(table ? top : top - 40, box.height - height);
}

/** What is to be said of what is selected; null where nothing is. */
function detailsOf(page: Page, state: State): HTMLElement[] | null {
  const component = selectedComponent(state);
  if (component !== null) return componentDetails(page, state, component);
  const place = selectedPlace(state);
  if (!place) return null;
  return "edge" in place ? edgeDetails(page, state, place.edge) : nodeDetails(page, state, place.row, place.token);
}

function edgeDetails(page: Page, state: State, edge: number): HTMLElement[] {
  const view = viewOf(state);
  const i = keptIndex(view, edge);
  if (i < 0) return [h("h2", {}, "Selection"), h("p", {}, `Edge ${edge} is not among those kept in this page.`)];
  const e = view.edges!;
  const total = view.graph.n_edges;
  const pinned = state.pinned.has(edge);
  const hidden = state.hidden.has(edge);
  return [
    h("h2", {}, edgeName(view, i)),
    h("table", { class: "plain" },
      columnHeads("importance", "value", "on from", "place"),
      h("tbody", {}, ...Object.entries(e.orders).map(([name, order]) => h("tr", {}, h("th", { scope: "row" }, name),
        h("td", {}, order.importance[i].toPrecision(3)), h("td", {}, percent((order.rank[i] + 1) / total)), h("td", {}, `${count(order.rank[i] + 1)}.`))))),
    h("div", { class: "row" },
      h("button", { type: "button", "aria-pressed": String(pinned), title: "Keep this edge on, whatever the size (P)", onclick: () => page.dispatch({ type: "pin", edge }) }, pinned ? "Unpin" : "Pin"),
      h("button", { type: "button", "aria-pressed": String(hidden), title: "Take this edge out of the trace (H)", onclick: () => page.dispatch({ type: "hide", edge }) }, hidden ? "Put back" : "Hide"),
      h("button", { type: "button", onclick: () => page.dispatch({ type: "select", selected: `c${componentOf(view, i)}` }) }, e.head[i] >= 0 ? "Whole head" : "All of its kind here")),
    ...(kindOf(view, e.kind[i]) === "residual"
      ? [h("p", { class: "small" }, "It carries the stream itself; its source reads:"), ...lens(page, state, e.level[i], e.source[i])]
      : writes(page, state, edge, i)),
    ...onLine(page, view, e.orders[state.importance], edge),
  ];
}

/** Where layers are folded: the other edges that are drawn on the same line. */
function onLine(page: Page, view: View, order: Order, edge: number): HTMLElement[] {
  const others = (page.graphs[0]?.scene.onLine(edge) ?? []).filter((i) => view.edges!.edge[i] !== edge);
  if (!others.length) return [];
  return [h("h3", {}, `On this line too, as its layers are folded: ${count(others.length)}`), edgeList(page, view, order, others)];
}

interface Writes {
  tokens: string[];
  changes: number[];
}

/** The tokens that an edge promotes and demotes most. */
function writes(page: Page, state: State, edge: number, i: number): HTMLElement[] {
  const view = viewOf(state);
  const own = writesOf(view, i);
  const found = own ? { tokens: own[0].map((k) => view.readings!.tokens[k]), changes: own[1] } : ask<Writes>(page, state, `e${edge}`, "edge", { id: view.id, edge });
  if (typeof found === "string") return [h("p", { class: "small" }, found)];
  const half = found.tokens.length / 2;
  const most = Math.max(...found.changes.map(Math.abs), 1e-9);
  const side = (name: string, from: number, kind: string) => h("table", { class: "bars" },
    h("thead", {}, h("tr", {}, h("th", { colspan: 2, scope: "colgroup" }, name))),
    h("tbody", {}, ...found.tokens.slice(from, from + half).map((t, k) => h("tr", {},
      h("th", { scope: "row", class: "token" }, visible(t)),
      h("td", { class: `bar-cell ${kind}` }, barOf(Math.abs(found.changes[from + k]), most), h("span", {}, found.changes[from + k].toFixed(1)))))));
  return [
    h("h3", {}, "What it writes"),
    h("div", { class: "two-columns" }, side("promotes", 0, "up"), side("demotes", half, "down")),
    h("p", { class: "small" }, "Its direction, read by the model's final norm and head as if nothing came between."),
  ];
}

interface Lens {
  tokens: string[];
  probabilities: number[];
}

/** What the model's head reads from the stream at a node. */
function lens(page: Page, state: State, row: number, token: number): HTMLElement[] {
  const view = viewOf(state);
  const own = view.readings?.nodes.get(`${row},${token}`);
  const found = own ? { tokens: own[0].map((k) => view.readings!.tokens[k]), probabilities: own[1] } : ask<Lens>(page, state, `n${row},${token}`, "node", { id: view.id, row, token });
  if (typeof found === "string") return [h("p", { class: "small" }, found)];
  return [h("table", { class: "bars" }, h("tbody", {}, ...found.tokens.map((name, k) => h("tr", {},
    h("th", { scope: "row", class: "token" }, visible(name)), h("td", { class: "bar-cell model" }, barOf(found.probabilities[k], 1), h("span", {}, found.probabilities[k].toFixed(3)))))))];
}

/** An answer of the model that came before; else a sentence that says what is going on. */
function ask<Answer>(page: Page, state: State, of: string, method: string, parameters: object): Answer | string {
  const view = viewOf(state);
  if (isLong(view)) return "A text as long as this is measured tile by tile, and the streams that this would be read from are not kept.";
  if (page.host.kind === "file" || !view.id) return "Not in this file, which keeps the most important only; `densitometer explore` answers for all.";
  const key = `${state.view}/${of}`;
  const known = state.answers.get(key);
  if (known !== undefined) return known as Answer | string;
  const asking = "Asking the model…";
  page.dispatch({ type: "answer", key, answer: asking });
  page.host.ask<Answer>(method, parameters).then(
    (answer) => page.dispatch({ type: "answer", key, answer }),
    (error: Error) => page.dispatch({ type: "answer", key, answer: error.message }),
  );
  return asking;
}

function nodeDetails(page: Page, state: State, row: number, token: number): HTMLElement[] {
  const view = viewOf(state);
  const e = view.edges!;
  const order = e.orders[state.importance];
  const incoming: number[] = [];
  const outgoing: number[] = [];
  for (let j = 0; j < order.sorted.length && order.ranks[j] < state.n; j++) {
    const i = order.sorted[j];
    if (e.level[i] + 1 === row && e.target[i] === token) incoming.push(i);
    if (e.level[i] === row && e.source[i] === token) outgoing.push(i);
  }
  const list = (name: string, edges: number[]) => (edges.length === 0 ? h("p", { class: "small" }, `${name}: none is on.`)
    : h("div", {}, h("h3", {}, `${name}, ${count(edges.length)}`), edgeList(page, view, order, edges)));
  return [
    h("h2", {}, nodeName(view, row, token)),
    h("h3", {}, "Logit lens: what its stream says"), ...lens(page, state, row, token),
    list("Edges in", incoming), list("Edges out", outgoing),
  ];
}

function componentDetails(page: Page, state: State, c: number): HTMLElement[] {
  const view = viewOf(state);
  const { components } = view;
  const e = view.edges!;
  const order = e.orders[state.importance];
  const layer = view.levels[components.level[c]].layer;
  const head = components.head[c];
  const on = componentCounts(view, state.importance, state.n)[c];
  const own: number[] = [];
  let sum = 0;
  for (const i of order.sorted) if (e.level[i] === components.level[c] && e.kind[i] === components.kind[c] && e.head[i] === head) {
    own.push(i);
    sum += order.importance[i];
  }
  const first = own.length ? `at ${percent((order.rank[own[0]] + 1) / view.graph.n_edges)} of the edges` : "beyond the edges kept";
  const name = `${layer}/${view.kinds[components.kind[c]]}/${head}`;
  const hidden = state.hiddenComponents.has(name);
  return [
    h("h2", {}, componentName(view, c)),
    h("dl", { class: "facts" },
      h("dt", {}, "edges on"), h("dd", {}, `${count(on)} of ${count(components.n_edges[c])}`),
      h("dt", {}, "first used"), h("dd", {}, first),
      h("dt", {}, "importance, sum"), h("dd", {}, `${sum.toPrecision(3)}${own.length < components.n_edges[c] ? ` (of ${count(own.length)} kept)` : ""}`)),
    h("div", { class: "row" },
      h("button", { type: "button", "aria-pressed": String(hidden), onclick: () => page.dispatch({ type: "hide component", name }) }, hidden ? "Put back" : "Hide all of it"),
      head >= 0 ? h("button", { type: "button", onclick: () => page.dispatch({ type: "draw", change: { layers: [layer, layer], heads: new Set([head]) } }) }, "Draw this head only") : null),
    h("h3", {}, "Its edges, most important first"),
    edgeList(page, view, order, own, edgeWay),
  ];
}

/** The first edges of a list, each with its importance; a click selects one. */
function edgeList(page: Page, view: View, order: Order, edges: number[], name = edgeName): HTMLElement {
  return h("ul", { class: "edges" }, ...edges.slice(0, SAMPLE_LIMIT).map((i) => h("li", {},
    h("button", { type: "button", class: "link", onclick: () => page.dispatch({ type: "select", selected: `e${view.edges!.edge[i]}` }) }, name(view, i)),
    ` ${order.importance[i].toPrecision(2)}`)));
}

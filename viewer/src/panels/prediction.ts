// The next token: what the model predicts, and what the trace predicts.

import { readingNow, viewOf } from "../derived";
import { barOf, h, patch, percent, visible } from "../dom";
import type { PanelKind } from "../panel";
import type { TokenProbability } from "../payload";

const SAMPLE_LIMIT = 8;

export default {
  place: "side",
  order: 20,
  follows: "live",
  create() {
    const element = h("section", { "aria-label": "Prediction" });
    return {
      element,
      update(state) {
        const { nearest } = readingNow(state);
        const rows = merged(viewOf(state).prediction, nearest.top);
        const most = Math.max(...rows.map(([, [p, q]]) => Math.max(p ?? 0, q ?? 0)), 1e-9);
        const bar = (value: number | null, kind: string) => h("td", { class: `bar-cell ${kind}` }, barOf(value, most), h("span", {}, value === null ? "–" : value.toFixed(3)));
        const at = nearest.n_edges === state.n ? "" : ` The trace's are those at ${percent(nearest.size)}, the nearest size measured.`;
        patch(element,
          h("h2", {}, "Next token"),
          h("table", { class: "bars" },
            h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "token"), h("th", { scope: "col", class: "model" }, "model"), h("th", { scope: "col", class: "trace" }, "this trace"))),
            h("tbody", {}, ...rows.map(([name, [p, q]]) => h("tr", {}, h("th", { scope: "row", class: "token" }, visible(name)), bar(p, "model"), bar(q, "trace"))))),
          h("p", { class: "small" }, `“–”: not among the ${nearest.top.length > 1 ? `first ${nearest.top.length}` : "tokens kept"}.${at}`),
        );
      },
    };
  },
} satisfies PanelKind;

/** The first tokens of both, with the probability that each gives them where it is known; the most probable first. */
function merged(model: TokenProbability[], trace: TokenProbability[]): [string, [number | null, number | null]][] {
  const rows = new Map<string, [number | null, number | null]>();
  for (const t of model.slice(0, SAMPLE_LIMIT)) rows.set(t.token, [t.probability, null]);
  for (const t of trace.slice(0, SAMPLE_LIMIT)) rows.set(t.token, [rows.get(t.token)?.[0] ?? model.find((o) => o.token === t.token)?.probability ?? null, t.probability]);
  for (const t of trace) {
    const row = rows.get(t.token);
    if (row) row[1] = t.probability;
  }
  const largest = ([, [p, q]]: [string, [number | null, number | null]]) => Math.max(p ?? 0, q ?? 0);
  return [...rows].sort((a, b) => largest(b) - largest(a)).slice(0, SAMPLE_LIMIT + 2);
}

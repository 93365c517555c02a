// The next token: what the model predicts, and what the trace predicts.

import { isOfBefore, readingNow, viewOf } from "../derived";
import { barOf, h, patch, percent, visible } from "../dom";
import type { PanelKind } from "../panel";
import type { TokenProbability } from "../payload";

const SAMPLE_LIMIT = 8;
const MOST_OTHERS = 3; // tokens of the trace alone

export default {
  place: "side",
  order: 20,
  follows: "live",
  create() {
    const element = h("section", { "aria-label": "Prediction" });
    return {
      element,
      update(state) {
        const { n, nearest } = readingNow(state);
        const rows = merged(viewOf(state).prediction, nearest.top);
        const most = Math.max(...rows.map(([, [p, q]]) => Math.max(p ?? 0, q ?? 0)), 1e-9);
        const bar = (value: number | null, kind: string) => h("td", { class: `bar-cell ${kind}` }, barOf(value, most), h("span", {}, value === null ? "–" : value.toFixed(3)));
        const at = isOfBefore(state) ? " The trace's are those before something was chosen." : nearest.n_edges === n ? "" : ` The trace's are those at ${percent(nearest.size)}, the nearest size measured.`;
        const unknown = rows.some(([, values]) => values.includes(null));
        patch(element,
          h("h2", {}, "Next token ", h("span", { class: "muted" }, "in the model's order")),
          h("table", { class: "bars" },
            h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "token"), h("th", { scope: "col", class: "model" }, "model"), h("th", { scope: "col", class: "trace" }, "this trace"))),
            h("tbody", {}, ...rows.map(([name, [p, q]]) => h("tr", {}, h("th", { scope: "row", class: "token" }, visible(name)), bar(p, "model"), bar(q, "trace"))))),
          h("p", { class: "small" }, unknown ? `“–”: not among the ${nearest.top.length > 1 ? `first ${nearest.top.length}` : "tokens kept"}.` : "", at),
        );
      },
    };
  },
} satisfies PanelKind;

/**
 * The first tokens of the model, the most probable first, and below them the first of the trace that the model does not rank as
 * high; each with the probability that both give it, where it is known.
 */
function merged(model: TokenProbability[], trace: TokenProbability[]): [string, [number | null, number | null]][] {
  const of = (list: TokenProbability[], token: string) => list.find((t) => t.token === token)?.probability ?? null;
  const first = model.slice(0, SAMPLE_LIMIT).map((t) => t.token);
  const others = trace.slice(0, SAMPLE_LIMIT).map((t) => t.token).filter((token) => !first.includes(token)).slice(0, MOST_OTHERS);
  return [...first, ...others].map((token) => [token, [of(model, token), of(trace, token)]]);
}

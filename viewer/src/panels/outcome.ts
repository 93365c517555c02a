// What the trace gives and costs: its distance from the model, its entropy, and its shares.

import { isOfBefore, readingNow, viewOf } from "../derived";
import { fixed, h, patch, percent, visible } from "../dom";
import { servesSink } from "../names";
import type { PanelKind } from "../panel";
import type { View } from "../payload";

export default {
  place: "side",
  order: 30,
  follows: "live",
  create(page) {
    const element = h("section", { "aria-label": "What the trace gives and costs" });
    return {
      element,
      update(state) {
        const view = viewOf(state);
        const reading = readingNow(state);
        const about = reading.exact ? "" : "≈ ";
        const rows: [string, string, string][] = [
          ["total variation", about + fixed(reading.tv, 4), "0 is the model's own prediction, 1 shares nothing with it"],
          ["KL divergence", `${about}${fixed(reading.kl, 3)} nats`, "from the model's prediction to the trace's"],
          ["entropy", `${about}${fixed(reading.entropy, 2)} nats`, "of the trace's prediction"],
          ["the model's entropy", `${fixed(view.entropy, 2)} nats`, ""],
          ["edges", percent(reading.n / view.graph.n_edges), ""],
          ["operations", reading.flops === null ? "–" : percent(reading.flops), "share of the full trace's that has to run"],
          ["parameters", reading.parameters === null ? "–" : percent(reading.parameters), "share of the full trace's that is used"],
        ];
        if (view.edges && view.sinks?.length) {
          const { sinks } = view;
          const names = sinks.map(({ token }) => `${visible(view.input.tokens[token])} (${token})`).join(", ");
          rows.push(["of these, serve sinks", percent(servedShare(view, state.importance, state.n)), `edges from or into ${names}, to which more than a third of the heads attend whatever it says`]);
        }
        const density = view.density[state.importance];
        const holds = density.size_at === null ? "never before everything" : `from ${percent(density.size_at)} of the edges`;
        patch(element,
          h("h2", {}, "What it gives and costs"),
          h("dl", { class: "facts" }, ...rows.flatMap(([name, value, title]) => [h("dt", { title }, name), h("dd", {}, value)])),
          h("p", { class: "small" }, `By ${state.importance}: TV stays ≤ 0.1 ${holds}; auc_log ${fixed(density.auc_log)}, auc_linear ${fixed(density.auc_linear)}.`,
            isOfBefore(state) ? " These are of the trace before something was chosen." : "",
            reading.exact ? "" : page.host.kind === "file" || !view.id ? " ≈: between two sizes that were measured." : " ≈: being measured."),
        );
      },
    };
  },
} satisfies PanelKind;

/** The share of a trace's edges that serve sinks, of those that the page keeps. */
function servedShare(view: View, importance: string, n: number): number {
  const order = view.edges!.orders[importance];
  const serves = servesSink(view);
  let own = 0;
  let j = 0;
  for (; j < order.sorted.length && order.ranks[j] < n; j++) if (serves(order.sorted[j])) own++;
  return own / Math.max(1, j);
}

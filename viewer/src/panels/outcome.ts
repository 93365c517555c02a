// What the trace gives and costs: its distance from the model, its entropy, and its shares.

import { isOfBefore, readingNow, viewOf } from "../derived";
import { fixed, h, patch, percent, significant, visible } from "../dom";
import { servesSink, spokenTarget } from "../names";
import type { PanelKind } from "../panel";
import type { Order, View } from "../payload";
import { countBelow } from "../reading";

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
        if (view.target && reading.target !== null && reading.faithfulness !== null) {
          rows.unshift([view.target.kind, about + significant(reading.target), `${spokenTarget(view)}: ${significant(view.target.full)} in the model, ${significant(view.target.nothing)} with no edge on`],
            ["faithfulness", about + percent(reading.faithfulness), "how far the target has come: 0 % with no edge on, 100 % in the model"]);
        }
        if (view.edges && view.sinks?.length) {
          const { sinks } = view;
          const names = sinks.map(({ token }) => `${visible(view.input.tokens[token])} (${token})`).join(", ");
          rows.push(["of these, serve sinks", percent(servedShare(view, state.importance, state.n)), `edges from or into ${names}, to which more than a third of the heads attend whatever it says`]);
        }
        const density = view.density[state.importance];
        const from = (size: number | null) => (size === null ? "never before everything" : `from ${percent(size)} of the edges`);
        const kept = density.faithful_at === undefined ? "" : ` Faithfulness stays within 0.1 of 1 ${from(density.faithful_at)}.`;
        patch(element,
          h("h2", {}, "What it gives and costs"),
          h("dl", { class: "facts" }, ...rows.flatMap(([name, value, title]) => [h("dt", { title }, name), h("dd", {}, value)])),
          h("p", { class: "small" }, `By ${state.importance}: TV stays ≤ 0.1 ${from(density.size_at)}; auc_log ${fixed(density.auc_log)}, auc_linear ${fixed(density.auc_linear)}.${kept}`,
            isOfBefore(state) ? " These are of the trace before something was chosen." : "",
            reading.exact ? "" : page.host.kind === "file" || !view.id ? " ≈: between two sizes that were measured." : " ≈: being measured."),
        );
      },
    };
  },
} satisfies PanelKind;

const servedOf = new WeakMap<Order, Int32Array>(); // of the first so many kept edges of an order, how many serve sinks

/** The share of a trace's edges that serve sinks, of those that the page keeps. It is asked for at each frame while the size moves. */
function servedShare(view: View, importance: string, n: number): number {
  const order = view.edges!.orders[importance];
  let served = servedOf.get(order);
  if (!served) {
    const serves = servesSink(view);
    servedOf.set(order, (served = new Int32Array(order.sorted.length + 1)));
    for (let j = 0; j < order.sorted.length; j++) served[j + 1] = served[j] + (serves(order.sorted[j]) ? 1 : 0);
  }
  const on = countBelow(order.ranks, n);
  return served[on] / Math.max(1, on);
}

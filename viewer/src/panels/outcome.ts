// What the trace gives and costs: its distance from the model, its entropy, and its shares.

import { isOfBefore, readingNow, viewOf } from "../derived";
import { fixed, h, patch, percent } from "../dom";
import type { PanelKind } from "../panel";

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

// The page in one sentence: how much is on, chosen by what, and how close that comes to the model.

import { canRun } from "../asking";
import { isOfBefore, readingNow, viewOf } from "../derived";
import { count, fixed, h, patch, percent, significant, visible } from "../dom";
import { isLong, spokenChoices, spokenDifferences, spokenTarget } from "../names";
import type { PanelKind } from "../panel";
import type { TokenProbability, View } from "../payload";
import type { Reading } from "../reading";
import type { State } from "../state";

const MOST_CHARACTERS = 90; // of a counterfactual; of a longer one its end is shown

export default {
  place: "left",
  order: 10,
  follows: "live",
  create(page) {
    const element = h("p", { class: "sentence" });
    let picker: HTMLSelectElement | null = null;

    /** The importance, to choose from where there are several. It is made again only where there are others. */
    function importancePicker(state: State): HTMLElement {
      const names = viewOf(state).importances;
      if (names.length < 2) return h("b", {}, state.importance);
      if (picker?.options.length !== names.length || names.some((name, i) => picker?.options[i].value !== name)) {
        const fresh = h("select", {
          id: "by", "aria-label": "Importance that chooses the edges", onchange: () => page.dispatch({ type: "importance", importance: fresh.value }),
        }, ...names.map((name) => h("option", { value: name }, name)));
        picker = fresh;
      }
      picker.value = state.importance;
      return picker;
    }

    return {
      element,
      update(state) {
        const view = viewOf(state);
        const reading = readingNow(state);
        const about = reading.exact ? "" : "about ";
        const own = view.prediction[0];
        const got = reading.nearest.top[0];
        const same = own.token === got.token;
        const words = spokenChoices(view, state).join(" ");
        const before = !isOfBefore(state) ? "" : canRun(page, state) ? "It is being run; the numbers are of the trace before. "
          : `The numbers are of the trace before: ${isLong(view) ? "chosen edges of a text as long as this cannot be run" : "this page is a file, with no model to run"}. `;
        patch(element,
          h("b", {}, percent(reading.n / view.graph.n_edges)), ` of the edges are on (${count(reading.n)} of ${count(view.graph.n_edges)}), chosen by `, importancePicker(state), ". ",
          h("span", { class: "choices" }, words), words ? " " : "", h("span", { class: "muted" }, before),
          "The model says ", token(own), `; this trace ${same ? "agrees: " : "says "}`, token(got), ". Its prediction is ",
          h("b", { class: reading.tv <= 0.1 ? "good" : "" }, `${about}${fixed(reading.tv, reading.tv < 0.001 ? 5 : 3)}`), " away (total variation, 0 is the same).",
          ...target(view, reading), ...counterfactual(view),
        );
      },
    };
  },
} satisfies PanelKind;

/** What is measured besides the whole prediction, in the model and in this trace. */
function target(view: View, { faithfulness, target: value, exact }: Reading): (HTMLElement | string)[] {
  const name = spokenTarget(view);
  if (name === null || value === null || faithfulness === null) return [];
  const near = Math.abs(1 - faithfulness) <= 0.1;
  const { full, nothing } = view.target!;
  return [` Target: ${name}, ${significant(nothing)} with no edge on, ${significant(full)} in the model, ${exact ? "" : "about "}${significant(value)} in this trace: `,
    h("b", { class: near ? "good" : "" }, percent(faithfulness)), " of the way (faithfulness)."];
}

/** What edges that are off carry, where that is not nothing. */
function counterfactual(view: View): (HTMLElement | string)[] {
  const tokens = view.counterfactual?.tokens;
  if (!tokens) return [];
  const text = tokens.join("");
  return [" Edges that are off carry what they carry in ", h("span", { title: visible(text) }, `“${visible(text.length > MOST_CHARACTERS ? `…${text.slice(-MOST_CHARACTERS)}` : text)}”`),
    ` (${spokenDifferences(view)}).`];
}

function token({ token: text, probability }: TokenProbability): HTMLElement {
  return h("span", { class: "nowrap" }, h("code", {}, visible(text)), ` ${probability.toFixed(2)}`);
}

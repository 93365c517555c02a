// What went wrong, until it is closed.

import { h } from "../dom";
import type { PanelKind } from "../panel";

export default {
  place: "top",
  order: 20,
  create(page) {
    const element = h("div", { class: "notice", role: "alert", hidden: true });
    return {
      element,
      update({ notice }, before) {
        if (before && notice === before.notice) return;
        element.hidden = notice === null;
        if (notice !== null) element.replaceChildren(h("span", {}, notice), h("button", { type: "button", onclick: () => page.dispatch({ type: "notice", notice: null }) }, "Close"));
      },
    };
  },
} satisfies PanelKind;

// What the page shows, and what its keys do.

import { helpDialog } from "../help";
import type { PanelKind } from "../panel";

export default {
  place: "over",
  order: 10,
  create() {
    const element = helpDialog();
    return { element, keys: { "?": () => element.showModal() }, update() {} };
  },
} satisfies PanelKind;

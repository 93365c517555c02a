// The exact reading of a size, which the model is asked for once the slider rests there.

import { readingNow, sizeKey, viewOf } from "./derived";
import type { Page } from "./panel";
import type { Point } from "./payload";

const ASK_AFTER_MS = 220; // the slider rests so long before the model is asked

export class ExactReading {
  private timer = 0;

  constructor(private page: Page) {}

  follow(): void {
    this.stop();
    const { host, state } = this.page;
    const view = viewOf(state);
    if (host.kind === "file" || !view.edges || !view.id || readingNow(state).exact) return;
    const { importance, n } = state;
    this.timer = window.setTimeout(async () => {
      try {
        const point = await host.ask<Point>("run", { id: view.id, importance, n_edges: n });
        this.page.dispatch({ type: "asked", key: sizeKey(state), point });
      } catch (error) {
        this.page.dispatch({ type: "notice", notice: (error as Error).message });
      }
    }, ASK_AFTER_MS);
  }

  stop(): void {
    clearTimeout(this.timer);
  }
}

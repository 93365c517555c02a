// The pictures and the data of a page, as files.

import { toHash } from "./address";
import { download } from "./dom";
import type { Page } from "./panel";

export type Format = "svg" | "png" | "json";

export async function save(page: Page, format: Format): Promise<void> {
  const { state, graphs } = page;
  const name = `densitometer-trace-${state.importance}-${state.n}`;
  try {
    if (format === "json") {
      const document = { ...state.traces.raw, offers: undefined, state: toHash(state) };
      download(`${name}.json`, new Blob([JSON.stringify(document)], { type: "application/json" }));
      return;
    }
    for (const [i, graph] of graphs.entries()) {
      const part = graphs.length > 1 ? `-${i + 1}` : "";
      const blob = format === "svg" ? new Blob([graph.toSvg()], { type: "image/svg+xml" }) : await graph.toPng();
      download(`${name}${part}.${format}`, blob);
    }
  } catch (error) {
    page.dispatch({ type: "notice", notice: (error as Error).message });
  }
}

// What tools and tests can see of a page, and do to it: `.explorer` of the page's element.

import { paletteOf, readingNow, sidesOf, viewOf } from "./derived";
import { save, type Format } from "./export";
import type { Page } from "./panel";

export function hookOf(page: Page, element: HTMLElement) {
  return {
    element,
    host: page.host,
    graphs: page.graphs,
    get state() { return page.state; },
    get view() { return viewOf(page.state); },
    get views() { return page.state.traces.views; },
    get palette() { return paletteOf(page.state); },
    sides: () => sidesOf(page.state),
    reading: () => readingNow(page.state),
    dispatch: page.dispatch.bind(page),
    press: page.press.bind(page),
    setSize: (n: number) => page.dispatch({ type: "size", n }),
    export: (format: Format) => save(page, format),
  };
}

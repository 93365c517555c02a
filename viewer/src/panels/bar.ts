// The bar: what is shown, another text to measure, and what one can do with the page.

import { viewOf } from "../derived";
import { count, h, visible } from "../dom";
import { save } from "../export";
import { textOf } from "../names";
import type { Page, PanelKind } from "../panel";
import { decode, decodeBytes, type Payload } from "../payload";

export default {
  place: "top",
  order: 10,
  create(page) {
    const { host, options } = page;
    const view = viewOf(page.state);
    const text = textOf(view);
    const theme = h("button", { type: "button", class: "theme", onclick: () => page.dispatch({ type: "next theme" }) }, "Theme");
    const element = h("header", { class: "bar" },
      options.back ? h("button", { type: "button", onclick: options.back }, "← Back to the text") : null,
      h("div", { class: "title" },
        h("strong", {}, "densitometer"), h("span", { class: "muted" }, `${view.model.name} · ${view.nTokens} tokens · ${count(view.graph.n_edges)} edges`)),
      host.kind === "server" && !options.back ? measureForm(page, text) : h("div", { class: "prompt", title: text }, visible(text.slice(0, 300))),
      h("div", { class: "buttons" },
        host.kind !== "file" && options.along && view.id ? alongButton(page, options.along) : null,
        exportMenu(page),
        ...openButton(page),
        theme,
        h("button", { type: "button", "aria-haspopup": "dialog", onclick: () => page.press("?") }, "Help")));
    return {
      element,
      update(state) {
        theme.textContent = `Theme: ${state.theme}`;
      },
    };
  },
} satisfies PanelKind;

function measureForm(page: Page, text: string): HTMLElement {
  const { importances } = viewOf(page.state);
  const input = h("input", { type: "text", name: "text", value: text, "aria-label": "Text to measure", autocomplete: "off", spellcheck: false });
  const names = page.state.traces.raw.offers?.importances ?? importances;
  const chosen = new Set(importances);
  const boxes = names.map((name) => {
    const box = h("input", { type: "checkbox", checked: chosen.has(name), onchange: () => (box.checked ? chosen.add(name) : chosen.delete(name)) });
    return h("label", {}, box, ` ${name}`);
  });
  const button = h("button", { type: "submit" }, "Measure");
  return h("form", { class: "measure", onsubmit: async (event: Event) => {
    event.preventDefault();
    if (page.state.running) return;
    await page.busy(button, "Measuring…", async () => {
      const answer = await page.host.ask("measure", { text: input.value, importance: names.filter((n) => chosen.has(n)) });
      try {
        history.replaceState(null, "", "#");
      } catch { /* no address */ }
      page.replace(decode(answer));
    });
  } }, input, h("details", { class: "menu" }, h("summary", {}, "Importances"), h("div", {}, ...boxes)), button);
}

function alongButton(page: Page, along: NonNullable<Page["options"]["along"]>): HTMLElement {
  const button = h("button", {
    type: "button", title: "How much each token of this text took to predict",
    onclick: () => page.busy(button, "Measuring…", () => along(page.state.traces)),
  }, "Along the text");
  return button;
}

function exportMenu(page: Page): HTMLElement {
  return h("details", { class: "menu" }, h("summary", {}, "Export"),
    h("div", {},
      h("button", { type: "button", onclick: () => save(page, "svg") }, "Picture, SVG"),
      h("button", { type: "button", onclick: () => save(page, "png") }, "Picture, PNG"),
      h("button", { type: "button", onclick: () => save(page, "json") }, "Data, JSON"),
      page.options.address ? h("button", { type: "button", onclick: () => copyLink(page) }, "Copy link to this view") : null));
}

async function copyLink(page: Page): Promise<void> {
  const link = page.link();
  try {
    await navigator.clipboard.writeText(link);
    page.say("Link copied.");
  } catch {
    page.dispatch({ type: "notice", notice: `This page may not write to the clipboard; copy the link yourself: ${link}` });
  }
}

function openButton(page: Page): HTMLElement[] {
  const input = h("input", { type: "file", accept: ".json,.gz,application/json", class: "sr", tabIndex: -1, "aria-hidden": "true", onchange: async () => {
    const file = input.files?.[0];
    input.value = "";
    if (!file) return;
    try {
      open(page, await decodeBytes(new Uint8Array(await file.arrayBuffer())));
    } catch (error) {
      page.dispatch({ type: "notice", notice: `${file.name}: ${(error as Error).message}` });
    }
  } });
  return [h("button", { type: "button", title: "Compare with, or open, data that was exported from such a page", onclick: () => input.click() }, "Open…"), input];
}

function open(page: Page, payload: Payload): void {
  if (payload.kind !== "traces") return page.replace(payload);
  page.dispatch({ type: "notice", notice: null });
  page.dispatch({ type: "add", traces: payload });
}

// Where the page starts: by itself in a document with #densitometer, or in a notebook cell through `render`.

import { Explorer } from "./explorer";
import { h } from "./dom";
import { fileHost, notebookHost, serverHost, type Host, type WidgetModel } from "./host";
import { decode, decodeBase64, decodeBytes, type Payload, type Traces } from "./payload";
import { tightest } from "./reading";
import css from "./style.css?inline";
import { TokenPage } from "./tokens";

interface Page {
  destroy(): void;
  element: HTMLElement;
}

function mount(place: HTMLElement, host: Host, address: boolean): (payload: Payload | Error) => void {
  const root = place.shadowRoot ?? place.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(css);
  root.adoptedStyleSheets = [sheet];
  let page: Page | null = null;
  const show = (payload: Payload | Error) => {
    page?.destroy();
    page = null;
    if (payload instanceof Error) {
      root.replaceChildren(h("div", { class: "failure", role: "alert" }, h("h1", {}, "densitometer"), h("p", {}, payload.message)));
      return;
    }
    page = payload.kind === "tokens" ? new TokenPage(payload, host, { address, back: backFrom(left) }, show)
      : new Explorer(payload, host, { address, along: alongText }, show);
    left = null;
    root.replaceChildren(page.element);
  };
  let left: { traces: Traces; hash: string } | null = null; // the page from which the density along the text was opened
  const backFrom = (page: typeof left) => page ? () => {
    if (address) history.replaceState(null, "", page.hash || "#");
    show(page.traces);
  } : undefined;
  const alongText = async (traces: Traces) => {
    const view = traces.views[0];
    const answer = decode(await host.ask("tokens", { id: view.id, importance: tightest(view) }));
    left = { traces, hash: location.hash };
    if (address) history.replaceState(null, "", "#");
    show(answer);
  };
  return show;
}

async function boot(place: HTMLElement): Promise<void> {
  const embedded = document.getElementById("densitometer-payload");
  const show = mount(place, embedded ? fileHost : serverHost, true);
  try {
    if (embedded) return show(await decodeBase64(embedded.textContent ?? ""));
    const response = await fetch("payload");
    if (!response.ok) throw new Error((await response.json()).error ?? `The server answered with ${response.status}.`);
    show(await decodeBytes(new Uint8Array(await response.arrayBuffer())));
  } catch (error) {
    const stopped = error instanceof TypeError;
    show(stopped ? new Error("The server does not answer. Start it again with `densitometer explore`.") : (error as Error));
  }
}

/** A notebook cell (anywidget). */
async function render({ model, el }: { model: WidgetModel; el: HTMLElement }): Promise<() => void> {
  const place = h("div", { class: "densitometer" });
  place.style.height = "760px";
  el.append(place);
  const show = mount(place, notebookHost(model), false);
  try {
    const data = model.get("payload");
    show(await decodeBytes(new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength)));
  } catch (error) {
    show(error as Error);
  }
  return () => place.remove();
}

export default { render };

const place = document.getElementById("densitometer");
if (place) {
  // at the end of the document: in a file, the data stand after this script
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => void boot(place));
  else void boot(place);
}

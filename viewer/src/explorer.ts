// The page of traces: it lays the panels out, keeps the state, connects the keys, and updates each panel at its own pace.

import { Address } from "./address";
import { Asking } from "./asking";
import { paletteOf } from "./derived";
import { h } from "./dom";
import type { Graph } from "./graph";
import { hookOf } from "./hook";
import type { Host } from "./host";
import type { Page, PageOptions, Panel, PanelKind } from "./panel";
import type { Payload, Traces } from "./payload";
import { firstState, Store, type Action, type State } from "./state";
import { Tip } from "./tip";

const REST_MS = 90; // after the size has moved: then what does not follow it live is brought up to date
const CATCH_UP_MS = 300; // so often panels that follow soon are brought up to date while it moves

const FILES = import.meta.glob<{ default: PanelKind }>("./panels/*.ts", { eager: true });
const KINDS = Object.values(FILES).map((file) => file.default).sort((a, b) => a.order - b.order);

interface Placed {
  kind: PanelKind;
  panel: Panel;
  shown: State | null; // at its last update
}

export class Explorer implements Page {
  readonly element: HTMLElement;
  readonly graphs: Graph[] = [];
  private store: Store;
  private placed: Placed[];
  private keys: Record<string, () => void>;
  private address: Address;
  private asking = new Asking(this);
  private live = h("div", { class: "sr", "aria-live": "polite", role: "status" });
  private tip = new Tip();
  private frame = 0;
  private onlySize = true; // whether all that changed since the last frame is the size
  private restTimer = 0;
  private caughtUp = 0;
  private destroyed = false;
  private darkQuery = matchMedia("(prefers-color-scheme: dark)");
  private keyed: EventTarget;
  private onKey = (event: Event) => this.key(event as KeyboardEvent);
  private onScheme = () => this.dispatch({ type: "prefer", dark: this.darkQuery.matches });

  constructor(traces: Traces, readonly host: Host, readonly options: PageOptions, readonly replace: (payload: Payload) => void) {
    this.address = new Address(options.address, () => this.dispatch({ type: "restore", look: this.address.read(this.state.traces) }));
    this.store = new Store(firstState(traces, this.address.read(traces), this.darkQuery.matches), (state, before) => this.changed(state, before));
    this.placed = KINDS.map((kind) => ({ kind, panel: kind.create(this), shown: null }));
    this.keys = Object.assign({}, ...this.placed.map(({ panel }) => panel.keys ?? {}));
    const at = (place: PanelKind["place"]) => this.placed.filter(({ kind }) => kind.place === place).map(({ panel }) => panel.element);
    this.element = h("div", { class: "explorer" },
      ...at("top"),
      h("main", {}, h("div", { class: "left" }, ...at("left")), h("aside", { class: "panels" }, ...at("side"))),
      this.tip.element, this.live, ...at("over"));
    this.darkQuery.addEventListener("change", this.onScheme);
    this.keyed = options.address ? window : this.element; // a notebook's other cells have keys of their own
    this.keyed.addEventListener("keydown", this.onKey);
    this.update();
    // tools and tests can look at the page through its element
    Object.assign(this.element, { explorer: hookOf(this, this.element) });
  }

  destroy(): void {
    this.destroyed = true;
    this.address.destroy();
    this.asking.end();
    this.darkQuery.removeEventListener("change", this.onScheme);
    this.keyed.removeEventListener("keydown", this.onKey);
    for (const { panel } of this.placed) panel.destroy?.();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.restTimer);
  }

  get state(): State {
    return this.store.state;
  }

  dispatch(action: Action): void {
    this.store.dispatch(action);
  }

  say(text: string): void {
    this.live.textContent = text;
  }

  shifted(): void {
    for (const { panel } of this.placed ?? []) panel.moved?.();
  }

  point(lines: string[] | null, x: number, y: number): void {
    this.tip.show(lines, x, y);
  }

  press(key: string): boolean {
    const action = Object.hasOwn(this.keys, key) ? this.keys[key] : null;
    action?.();
    return action !== null;
  }

  private key(event: KeyboardEvent): void {
    const [target] = event.composedPath();
    const typing = target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement || (target instanceof HTMLInputElement && !["range", "checkbox", "file"].includes(target.type));
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || typing || this.element.querySelector("dialog[open]")) return;
    if (this.press(event.key)) event.preventDefault();
  }

  link(): string {
    return this.address.link(this.state);
  }

  async busy(button: HTMLButtonElement, label: string, work: () => Promise<void>): Promise<void> {
    const before = button.textContent;
    this.dispatch({ type: "start" });
    button.disabled = true;
    button.textContent = label;
    try {
      await work();
    } catch (error) {
      this.dispatch({ type: "notice", notice: (error as Error).message });
    } finally {
      this.dispatch({ type: "stop" });
      button.disabled = false;
      button.textContent = before;
    }
  }

  private changed(state: State, before: State): void {
    if (this.destroyed) return;
    const differs = (Object.keys(state) as (keyof State)[]).filter((name) => state[name] !== before[name]);
    if (differs.every((name) => name === "zoom")) {
      this.address.save(state);
      return this.shifted(); // the graph has moved already
    }
    if (differs.some((name) => name !== "zoom" && name !== "n")) this.onlySize = false;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.onlySize) this.updateSize();
      else this.update();
    });
  }

  private update(): void {
    this.onlySize = true;
    clearTimeout(this.restTimer);
    this.element.dataset.theme = paletteOf(this.state).dark ? "dark" : "light";
    this.show(this.placed);
    this.settle();
  }

  /** While the size moves: what shows it at once, and the rest when it rests. */
  private updateSize(): void {
    this.show(this.placed.filter(({ kind }) => kind.follows === "live"));
    this.settle();
    const now = performance.now();
    if (now - this.caughtUp > CATCH_UP_MS) {
      this.caughtUp = now;
      this.show(this.placed.filter(({ kind }) => kind.follows === "soon"));
    }
    clearTimeout(this.restTimer);
    this.restTimer = window.setTimeout(() => this.update(), REST_MS);
  }

  private show(placed: Placed[]): void {
    const { state } = this;
    for (const own of placed) {
      const before = own.shown;
      own.shown = state;
      own.panel.update(state, before);
    }
  }

  private settle(): void {
    this.address.save(this.state);
    this.asking.follow();
  }
}

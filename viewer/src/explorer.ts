// The page of traces: the graph, the size, what the trace predicts, and everything one can ask of an edge.

import { overlapOf, counterparts, sameShape, type Overlap } from "./compare";
import { Curve } from "./curve";
import { count, download, fixed, h, patch, percent, s, visible } from "./dom";
import { Graph } from "./graph";
import type { Host } from "./host";
import { DARK, LIGHT, headColour, type Palette } from "./palette";
import { decode, decodeBytes, type Payload, type Point, type TokenProbability, type View } from "./payload";
import { componentCounts, nearestGrid, readingOf } from "./reading";
import { view_kind, type Filter, type Place } from "./scene";
import { emptyState, fromHash, toHash, type Side, type State } from "./state";

type Traces = Extract<Payload, { kind: "traces" }>;

const ASK_AFTER_MS = 220; // the slider rests so long before the model is asked
const SAMPLE_LIMIT = 8;
const REST_MS = 90; // after the size has moved: then what does not follow it live is brought up to date
const CATCH_UP_MS = 300; // so often the squares of heads and MLPs follow while it moves

export interface ExplorerOptions {
  address: boolean; // keep the state in the page's address
  back?: () => void;
  along?: () => Promise<void>; // open the density along this text
}

export class Explorer {
  readonly element: HTMLElement;
  state: State;
  graphs: Graph[] = [];
  private views: View[];
  private curve: Curve;
  private asked = new Map<string, Point>();
  private timer = 0;
  private asking = 0;
  private ran: { key: string; point: Point } | null = null;
  private running = false;
  private frame = 0;
  private onlySize = true; // whether all that changed since the last frame is the size
  private restTimer = 0;
  private caughtUp = 0;
  private picker: HTMLSelectElement | null = null;
  private hashTimer = 0;
  private details = new Map<string, any>();
  private live = h("div", { class: "sr", "aria-live": "polite", role: "status" });
  private tip = h("div", { class: "tip", role: "tooltip", hidden: true });
  private notice = h("div", { class: "notice", role: "alert", hidden: true });
  private stage = h("div", { class: "stage" });
  private sentence = h("p", { class: "sentence" });
  private panels = {
    prediction: h("section", { "aria-label": "Prediction" }),
    reading: h("section", { "aria-label": "What the trace gives and costs" }),
    selection: h("section", { "aria-label": "Selection" }),
    chosen: h("section", { "aria-label": "Chosen edges" }),
    components: h("section", { "aria-label": "Heads and MLPs" }),
    filter: h("section", { "aria-label": "What is drawn" }),
    compare: h("section", { "aria-label": "Comparison" }),
    rest: h("section", { "aria-label": "What is not drawn" }),
  };
  private kept = h("span", { id: "drawn" });
  private bar = h("header", { class: "bar" });
  private help: HTMLDialogElement;
  private onHash = () => {
    if (location.hash !== this.lastHash) this.restore();
  };
  private lastHash = "";
  private darkQuery = matchMedia("(prefers-color-scheme: dark)");
  private onScheme = () => this.update();

  constructor(private payload: Traces, private host: Host, private options: ExplorerOptions, private replace: (payload: Payload) => void) {
    this.views = payload.views;
    this.curve = new Curve((n) => this.setSize(n));
    this.state = this.initial();
    this.help = helpDialog();
    this.element = h("div", { class: "explorer" },
      this.bar, this.notice,
      h("main", {},
        h("div", { class: "left" }, this.sentence, this.stage, this.legend()),
        h("aside", { class: "panels" },
          h("section", { "aria-label": "Size of the trace" }, h("h2", {}, "Size of the trace"), this.curve.element),
          this.panels.prediction, this.panels.reading, this.panels.selection, this.panels.chosen, this.panels.compare, this.panels.components,
          this.panels.filter, this.panels.rest)),
      this.tip, this.live, this.help);
    this.buildBar();
    this.build();
    if (options.address) addEventListener("hashchange", this.onHash);
    this.darkQuery.addEventListener("change", this.onScheme);
    // tools and tests can look at the page through its element
    (this.element as any).explorer = this;
  }

  destroy(): void {
    removeEventListener("hashchange", this.onHash);
    this.darkQuery.removeEventListener("change", this.onScheme);
    for (const graph of this.graphs) graph.destroy();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.restTimer);
    clearTimeout(this.timer);
    clearTimeout(this.hashTimer);
  }

  // --- state -----------------------------------------------------------------------------------------

  private initial(): State {
    const view = this.views[0];
    const importance = view.importances[0];
    const at = view.density[importance].size_at;
    const start = nearestGrid(view, Math.max(1, Math.round((at ?? 0.1) * view.graph.n_edges)));
    const fallback = emptyState(importance, start);
    if (this.views.length > 1 && this.views[1].edges && view.edges) fallback.compare = { view: 1, importance: this.views[1].importances[0] };
    if (!this.options.address) return fallback;
    const shapes = this.views.map((v) => ({ importances: v.importances, n: v.nTokens, edges: v.graph.n_edges }));
    const state = fromHash(location.hash, fallback, shapes);
    const own = this.views[state.view];
    if (!location.hash.includes("n=") && state.importance !== importance) state.n = nearestGrid(own, (own.density[state.importance].size_at ?? 0.1) * own.graph.n_edges);
    state.n = nearestGrid(own, Math.max(1, state.n));
    return state;
  }

  private restore(): void {
    this.state = this.initial();
    this.build();
  }

  private saveHash(): void {
    if (!this.options.address) return;
    clearTimeout(this.hashTimer);
    this.hashTimer = window.setTimeout(() => {
      this.lastHash = toHash(this.state);
      try {
        history.replaceState(null, "", this.lastHash);
      } catch {
        // an about:srcdoc frame has no address to write to
      }
    }, 150);
  }

  get view(): View {
    return this.views[this.state.view];
  }

  get palette(): Palette {
    const { theme } = this.state;
    return theme === "dark" || (theme === "auto" && this.darkQuery.matches) ? DARK : LIGHT;
  }

  private filter(): Filter {
    const { kinds, layers, heads, hidden, pinned, hiddenComponents } = this.state;
    return { kinds, layers, heads, hidden, pinned, hiddenComponents };
  }

  private sides(): { side: Side; view: View; n: number }[] {
    const { state, view } = this;
    const sides = [{ side: { view: state.view, importance: state.importance }, view, n: state.n }];
    if (state.compare) {
      const other = this.views[state.compare.view];
      const n = nearestGrid(other, Math.max(1, (state.n / view.graph.n_edges) * other.graph.n_edges));
      sides.push({ side: state.compare, view: other, n });
    }
    return sides;
  }

  setSize(n: number): void {
    if (n === this.state.n) return;
    this.state.n = n;
    this.schedule();
  }

  private set(change: Partial<State>, rebuild = false): void {
    Object.assign(this.state, change);
    if (rebuild) this.build();
    else this.later();
  }

  private later(): void {
    this.onlySize = false;
    this.schedule();
  }

  private schedule(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.onlySize) this.updateSize();
      else this.update();
    });
  }

  // --- the bar ---------------------------------------------------------------------------------------

  private buildBar(): void {
    const { view } = this;
    const text = view.input.text ?? view.input.tokens.join("");
    const title = h("div", { class: "title" },
      h("strong", {}, "densitometer"), h("span", { class: "muted" }, `${view.model.name} · ${view.nTokens} tokens · ${count(view.graph.n_edges)} edges`));
    const children: (HTMLElement | null)[] = [
      this.options.back ? h("button", { type: "button", onclick: this.options.back }, "← Back to the text") : null,
      title,
    ];
    if (this.host.kind === "server" && !this.options.back) children.push(this.measureForm(text));
    else children.push(h("div", { class: "prompt", title: text }, visible(text.slice(0, 300))));
    const buttons = h("div", { class: "buttons" });
    const { along } = this.options;
    if (this.host.kind !== "file" && along && view.id) {
      const button = h("button", { type: "button", title: "How much each token of this text took to predict", onclick: () => this.busy(button, "Measuring…", along) }, "Along the text");
      buttons.append(button);
    }
    const menu = h("details", { class: "menu" }, h("summary", {}, "Export"),
      h("div", {},
        h("button", { type: "button", onclick: () => this.export("svg") }, "Picture, SVG"),
        h("button", { type: "button", onclick: () => this.export("png") }, "Picture, PNG"),
        h("button", { type: "button", onclick: () => this.export("json") }, "Data, JSON"),
        this.options.address ? h("button", { type: "button", onclick: () => this.copyLink() }, "Copy link to this view") : null));
    const open = h("input", { type: "file", accept: ".json,.gz,application/json", class: "sr", tabIndex: -1, "aria-hidden": "true", onchange: () => this.openFile(open) });
    buttons.append(menu,
      h("button", { type: "button", title: "Compare with, or open, data that was exported from such a page", onclick: () => open.click() }, "Open…"), open,
      h("button", { type: "button", class: "theme", onclick: () => this.nextTheme() }, "Theme"),
      h("button", { type: "button", "aria-haspopup": "dialog", onclick: () => this.help.showModal() }, "Help"));
    children.push(buttons);
    this.bar.replaceChildren(...(children.filter(Boolean) as HTMLElement[]));
  }

  private measureForm(text: string): HTMLElement {
    const input = h("input", { type: "text", name: "text", value: text, "aria-label": "Text to measure", autocomplete: "off", spellcheck: false });
    const names: string[] = (this.payload.raw.offers?.importances as string[]) ?? this.view.importances;
    const chosen = new Set(this.view.importances);
    const scores = h("details", { class: "menu" }, h("summary", {}, "Importances"),
      h("div", {}, ...names.map((name) => h("label", {}, h("input", { type: "checkbox", checked: chosen.has(name), onchange: (e: Event) => ((e.target as HTMLInputElement).checked ? chosen.add(name) : chosen.delete(name)) }), ` ${name}`))));
    const button = h("button", { type: "submit" }, "Measure");
    return h("form", { class: "measure", onsubmit: async (event: Event) => {
      event.preventDefault();
      if (this.running) return;
      await this.busy(button, "Measuring…", async () => {
        const answer = await this.host.ask("measure", { text: input.value, importance: names.filter((n) => chosen.has(n)) });
        try {
          history.replaceState(null, "", "#");
        } catch { /* no address */ }
        this.replace(decode(answer));
      });
    } }, input, scores, button);
  }

  private async busy(button: HTMLButtonElement, label: string, work: () => Promise<void>): Promise<void> {
    const before = button.textContent;
    this.running = true;
    button.disabled = true;
    button.textContent = label;
    this.fail(null);
    try {
      await work();
    } catch (error) {
      this.fail((error as Error).message);
    } finally {
      this.running = false;
      button.disabled = false;
      button.textContent = before;
      this.later();
    }
  }

  private fail(message: string | null): void {
    this.notice.hidden = message === null;
    if (message !== null) this.notice.replaceChildren(h("span", {}, message), h("button", { type: "button", onclick: () => this.fail(null) }, "Close"));
  }

  private nextTheme(): void {
    const order: State["theme"][] = ["auto", "light", "dark"];
    this.set({ theme: order[(order.indexOf(this.state.theme) + 1) % 3] });
  }

  private async copyLink(): Promise<void> {
    this.lastHash = toHash(this.state);
    const link = location.href.replace(/#.*$/, "") + this.lastHash;
    try {
      await navigator.clipboard.writeText(link);
      this.say("Link copied.");
    } catch {
      this.fail(`This page may not write to the clipboard; copy the link yourself: ${link}`);
    }
  }

  async export(kind: "svg" | "png" | "json"): Promise<void> {
    const name = `densitometer-trace-${this.state.importance}-${this.state.n}`;
    try {
      if (kind === "json") {
        const document = { ...this.payload.raw, offers: undefined, state: toHash(this.state) };
        download(`${name}.json`, new Blob([JSON.stringify(document)], { type: "application/json" }));
        return;
      }
      for (const [i, graph] of this.graphs.entries()) {
        const part = this.graphs.length > 1 ? `-${i + 1}` : "";
        const blob = kind === "svg" ? new Blob([graph.toSvg()], { type: "image/svg+xml" }) : await graph.toPng();
        download(`${name}${part}.${kind}`, blob);
      }
    } catch (error) {
      this.fail((error as Error).message);
    }
  }

  private async openFile(input: HTMLInputElement): Promise<void> {
    const file = input.files?.[0];
    input.value = "";
    if (!file) return;
    try {
      const other = await decodeBytes(new Uint8Array(await file.arrayBuffer()));
      if (other.kind !== "traces") return this.replace(other);
      this.fail(null);
      this.addViews(other);
    } catch (error) {
      this.fail(`${file.name}: ${(error as Error).message}`);
    }
  }

  private addViews(other: Traces): void {
    this.views.push(...other.views);
    this.payload.raw = { ...this.payload.raw, views: [...this.payload.raw.views, ...other.raw.views] };
    const view = this.views.length - other.views.length;
    if (this.views[view].edges && this.view.edges) this.state.compare = { view, importance: this.views[view].importances[0] };
    this.build();
  }

  // --- building and updating --------------------------------------------------------------------------

  private build(): void {
    for (const graph of this.graphs) graph.destroy();
    this.graphs = [];
    const parts: HTMLElement[] = [];
    if (!this.view.edges) {
      parts.push(h("div", { class: "empty" }, h("p", {}, "There is no trace to draw: this measurement was loaded from a file, and its model was not. The curve, the size and the predictions are here."),
        h("p", {}, h("code", {}, "densitometer explore measurement.json -m MODEL"), " loads both.")));
      this.state.compare = null;
    } else {
      this.sides().forEach(({ view, side }, i) => {
        const zoom = i === 0 && this.state.zoom ? { k: this.state.zoom[0], x: this.state.zoom[1], y: this.state.zoom[2] } : null;
        const label = `Trace of ${view.nTokens} tokens and ${view.graph.n_layers} layers by ${side.importance}. Arrow keys move between nodes, E steps through a node's edges, Enter selects.`;
        const graph = new Graph(view, label, {
          select: (place) => this.select(place, i),
          hover: (place, x, y) => this.hover(place, view, x, y),
          moved: (t) => {
            if (i === 0) this.state.zoom = [t.k, t.x, t.y];
            const other = this.graphs[1 - i];
            if (other && other.view.nTokens === view.nTokens) other.setTransform(t);
            this.saveHash();
          },
          key: (event) => this.key(event),
          say: (text) => this.say(text),
          describe: (place) => this.describe(place, view),
        }, zoom);
        this.graphs.push(graph);
        const name = this.state.compare ? h("div", { class: "side-name" }, this.sideName(side)) : null;
        parts.push(h("div", { class: "side" }, name, graph.element));
      });
    }
    this.stage.replaceChildren(...parts);
    this.stage.classList.toggle("two", parts.length > 1);
    this.update();
    for (const graph of this.graphs) graph.resize();
  }

  private sideName(side: Side): string {
    const view = this.views[side.view];
    const text = view.input.text ?? view.input.tokens.join("");
    return `${view.model.name} · ${side.importance} · ${visible(text.length > 60 ? `${text.slice(0, 60)}…` : text)}`;
  }

  update(): void {
    const { palette, state } = this;
    this.onlySize = true;
    clearTimeout(this.restTimer);
    this.element.dataset.theme = palette.dark ? "dark" : "light";
    (this.bar.querySelector(".theme") as HTMLElement).textContent = `Theme: ${state.theme}`;
    this.updateLive();
    this.updateSelection();
    this.updateChosen();
    this.updateCompare(this.sides());
    this.updateComponents();
    this.updateFilter();
    this.updateRest();
  }

  /** While the size moves: what shows it at once, and the rest when it rests. */
  private updateSize(): void {
    this.updateLive();
    const now = performance.now();
    if (now - this.caughtUp > CATCH_UP_MS) {
      this.caughtUp = now;
      this.updateComponents();
    }
    clearTimeout(this.restTimer);
    this.restTimer = window.setTimeout(() => this.update(), REST_MS);
  }

  private updateLive(): void {
    const { palette, state } = this;
    const sides = this.sides();
    this.graphs.forEach((graph, i) => {
      const { view, side, n } = sides[i];
      let shared: ((edge: number) => boolean) | undefined;
      if (sides.length > 1) {
        const other = sides[1 - i];
        if (sameShape(view, other.view)) {
          const to = counterparts(view, other.view);
          const rank = other.view.edges!.orders[other.side.importance].rank;
          shared = (edge) => to[edge] >= 0 && rank[to[edge]] < other.n;
        }
      }
      const own = i === 0;
      graph.update({
        importance: side.importance, n, filter: own ? this.filter() : { ...this.filter(), hidden: new Set(), pinned: new Set(), hiddenComponents: new Set() },
        palette, shared, selected: own ? this.selectedPlace() : null, component: own ? this.selectedComponent() : null,
      });
    });
    this.curve.update(this.view, state.importance, state.n, palette);
    this.updateSentence();
    this.updatePrediction();
    this.updateReading();
    this.saveHash();
    this.askLater();
  }

  /** The model is asked for the exact reading of a size once the slider rests. */
  private askLater(): void {
    clearTimeout(this.timer);
    if (this.host.kind === "file" || !this.view.edges || !this.view.id) return;
    const { importance, n } = this.state;
    if (readingOf(this.view, importance, n, this.asked.get(this.askKey())).exact) return;
    const { view } = this;
    const key = this.askKey();
    this.timer = window.setTimeout(async () => {
      const own = ++this.asking;
      try {
        const point = await this.host.ask("run", { id: view.id, importance, n_edges: n });
        this.asked.set(key, point);
        if (own === this.asking && key === this.askKey()) this.later();
      } catch (error) {
        this.fail((error as Error).message);
      }
    }, ASK_AFTER_MS);
  }

  private askKey(): string {
    return `${this.state.view}/${this.state.importance}/${this.state.n}`;
  }

  private reading() {
    return readingOf(this.view, this.state.importance, this.state.n, this.asked.get(this.askKey()));
  }

  private updateSentence(): void {
    const { view, state } = this;
    const reading = this.reading();
    const about = reading.exact ? "" : "about ";
    const own = view.prediction[0];
    const got = reading.nearest.top[0];
    const same = own.token === got.token;
    const size = state.n / view.graph.n_edges;
    patch(this.sentence,
      h("b", {}, percent(size)), ` of the edges are on (${count(state.n)} of ${count(view.graph.n_edges)}), chosen by `, this.scorePicker(),
      ". The model says ", token(own), `; this trace ${same ? "agrees: " : "says "}`, token(got), ". Its prediction is ",
      h("b", { class: reading.tv <= 0.1 ? "good" : "" }, `${about}${fixed(reading.tv, reading.tv < 0.001 ? 5 : 3)}`), " away (total variation, 0 is the same).",
    );
  }

  private scorePicker(): HTMLElement {
    const { view, state } = this;
    const names = view.importances;
    if (names.length < 2) return h("b", {}, state.importance);
    if (!this.picker || names.some((name, i) => this.picker!.options[i]?.value !== name) || this.picker.options.length !== names.length) {
      const picker = h("select", { id: "score", "aria-label": "Importance that chooses the edges", onchange: () => {
        const { compare, view } = this.state;
        this.set({ importance: picker.value, compare: compare && compare.view === view && compare.importance === picker.value ? null : compare }, true);
      } }, ...names.map((name) => h("option", { value: name }, name)));
      this.picker = picker;
    }
    this.picker.value = state.importance;
    return this.picker;
  }

  private updatePrediction(): void {
    const { view } = this;
    const reading = this.reading();
    const trace = reading.nearest.top;
    const own = view.prediction;
    const rows = new Map<string, [number | null, number | null]>();
    for (const t of own.slice(0, SAMPLE_LIMIT)) rows.set(t.token, [t.probability, null]);
    for (const t of trace.slice(0, SAMPLE_LIMIT)) rows.set(t.token, [rows.get(t.token)?.[0] ?? own.find((o) => o.token === t.token)?.probability ?? null, t.probability]);
    for (const t of trace) if (rows.has(t.token)) rows.get(t.token)![1] = t.probability;
    const sorted = [...rows].sort((a, b) => Math.max(b[1][0] ?? 0, b[1][1] ?? 0) - Math.max(a[1][0] ?? 0, a[1][1] ?? 0)).slice(0, SAMPLE_LIMIT + 2);
    const most = Math.max(...sorted.map(([, [p, q]]) => Math.max(p ?? 0, q ?? 0)), 1e-9);
    const bar = (value: number | null, kind: string) => h("td", { class: `bar-cell ${kind}` }, barOf(value, most), h("span", {}, value === null ? "–" : value.toFixed(3)));
    const at = reading.nearest.n_edges === this.state.n ? "" : ` The trace's are those at ${percent(reading.nearest.size)}, the nearest size measured.`;
    patch(this.panels.prediction,
      h("h2", {}, "Next token"),
      h("table", { class: "bars" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "token"), h("th", { scope: "col", class: "model" }, "model"), h("th", { scope: "col", class: "trace" }, "this trace"))),
        h("tbody", {}, ...sorted.map(([name, [p, q]]) => h("tr", {}, h("th", { scope: "row", class: "token" }, visible(name)), bar(p, "model"), bar(q, "trace"))))),
      h("p", { class: "small" }, `“–”: not among the ${trace.length > 1 ? `first ${trace.length}` : "tokens kept"}.${at}`),
    );
  }

  private updateReading(): void {
    const { view, state } = this;
    const reading = this.reading();
    const about = reading.exact ? "" : "≈ ";
    const rows: [string, string, string][] = [
      ["total variation", about + fixed(reading.tv, 4), "0 is the model's own prediction, 1 shares nothing with it"],
      ["KL divergence", `${about}${fixed(reading.kl, 3)} nats`, "from the model's prediction to the trace's"],
      ["entropy", `${about}${fixed(reading.entropy, 2)} nats`, "of the trace's prediction"],
      ["the model's entropy", `${fixed(view.entropy, 2)} nats`, ""],
      ["edges", percent(state.n / view.graph.n_edges), ""],
      ["operations", reading.flops === null ? "–" : percent(reading.flops), "share of the full trace's that has to run"],
      ["parameters", reading.parameters === null ? "–" : percent(reading.parameters), "share of the full trace's that is used"],
    ];
    const density = view.density[state.importance];
    const holds = density.size_at === null ? "never before everything" : `from ${percent(density.size_at)} of the edges`;
    patch(this.panels.reading,
      h("h2", {}, "What it gives and costs"),
      h("dl", { class: "facts" }, ...rows.flatMap(([name, value, title]) => [h("dt", { title }, name), h("dd", {}, value)])),
      h("p", { class: "small" }, `By ${state.importance}: TV stays ≤ 0.1 ${holds}; auc_log ${fixed(density.auc_log)}, auc_linear ${fixed(density.auc_linear)}.`,
        reading.exact ? "" : this.host.kind === "file" || !view.id ? " ≈: between two sizes that were measured." : " ≈: being measured."),
    );
  }

  // --- selection --------------------------------------------------------------------------------------

  private selectedPlace(): Place | null {
    const text = this.state.selected;
    const edge = /^e(\d+)$/.exec(text ?? "");
    if (edge) return { edge: Number(edge[1]) };
    const node = /^n(\d+),(\d+)$/.exec(text ?? "");
    if (node && Number(node[1]) <= this.view.levels.length && Number(node[2]) < this.view.nTokens) return { row: Number(node[1]), token: Number(node[2]) };
    return null;
  }

  private selectedComponent(): [number, number, number] | null {
    const component = /^c(\d+)$/.exec(this.state.selected ?? "");
    const { components } = this.view;
    if (!component || !components || Number(component[1]) >= components.level.length) return null;
    const i = Number(component[1]);
    return [components.level[i], components.kind[i], components.head[i]];
  }

  private select(place: Place | null, side: number): void {
    if (side !== 0) return;
    const selected = place === null ? null : "edge" in place ? `e${place.edge}` : `n${place.row},${place.token}`;
    this.set({ selected });
    if (place) this.say(this.describe(place, this.view));
  }

  private say(text: string): void {
    this.live.textContent = text;
  }

  private describe(place: Place, view: View): string {
    if ("edge" in place) {
      const i = this.graphs.find((g) => g.view === view)!.scene.indexOf(place.edge);
      return i < 0 ? `edge ${place.edge}, not kept` : this.edgeName(view, i);
    }
    const { row, token: t } = place;
    const level = view.levels[row - 1];
    const where = row === 0 ? "input" : `layer ${level.layer}, after ${level.mlp && level.n_heads ? "the block" : level.mlp ? "the MLP" : "attention"}`;
    const lens = view.readings?.nodes.get(`${row},${t}`);
    const reads = lens ? `, reads ${visible(view.readings!.tokens[lens[0][0]])}` : "";
    return `Token ${t}, ${visible(view.input.tokens[t])}, ${where}${reads}`;
  }

  private edgeName(view: View, i: number): string {
    const e = view.edges!;
    const layer = view.levels[e.level[i]].layer;
    const source = `${visible(view.input.tokens[e.source[i]])} (${e.source[i]})`;
    const kind = view_kind(view, e.kind[i]);
    if (kind === "residual") return `Layer ${layer}, residual stream of ${source}${view.kinds[e.kind[i]] === "residual_mlp" ? ", past the MLP" : view.kinds[e.kind[i]] === "residual_attention" ? ", past attention" : ""}`;
    if (e.head[i] < 0) return `Layer ${layer}, MLP at ${source}`;
    return `Layer ${layer}, head ${e.head[i]}: ${source} → ${visible(view.input.tokens[e.target[i]])} (${e.target[i]})`;
  }

  private hover(place: Place | null, view: View, x: number, y: number): void {
    if (!place) {
      this.tip.hidden = true;
      return;
    }
    const lines: string[] = [this.describe(place, view)];
    if ("edge" in place) {
      const i = this.graphs.find((g) => g.view === view)!.scene.indexOf(place.edge);
      for (const [name, order] of Object.entries(view.edges!.orders)) lines.push(`${name}: importance ${order.importance[i].toPrecision(3)}, on from ${percent((order.rank[i] + 1) / view.graph.n_edges)}`);
      const writes = view.readings?.writers.get(this.writerKeys(view, i)[0]) ?? view.readings?.writers.get(this.writerKeys(view, i)[1]);
      if (writes) lines.push(`promotes ${writes[0].slice(0, 3).map((k) => visible(view.readings!.tokens[k])).join(" ")}`);
    }
    this.tip.replaceChildren(...lines.map((text, k) => h("div", { class: k ? "small" : "" }, text)));
    this.tip.hidden = false;
    const box = this.element.getBoundingClientRect();
    const width = Math.min(360, this.tip.offsetWidth || 300);
    this.tip.style.left = `${Math.max(4, Math.min(box.width - width - 8, x - box.left + 14))}px`;
    this.tip.style.top = `${Math.min(box.height - 60, y - box.top + 16)}px`;
  }

  private writerKeys(view: View, i: number): [string, string] {
    const e = view.edges!;
    const start = `${e.level[i]},${e.head[i]},${e.source[i]}`;
    return [`${start},-1`, `${start},${e.target[i]}`];
  }

  private updateSelection(): void {
    const panel = this.panels.selection;
    const place = this.selectedPlace();
    const component = this.selectedComponent();
    if (!this.view.edges) return panel.replaceChildren();
    if (component) return panel.replaceChildren(...this.componentDetails(Number(this.state.selected!.slice(1))));
    if (!place) {
      return panel.replaceChildren(h("h2", {}, "Selection"),
        h("p", { class: "small" }, "Click an edge, a node, or a square below: what it is, what it reads and what it writes."));
    }
    panel.replaceChildren(...("edge" in place ? this.edgeDetails(place.edge) : this.nodeDetails(place.row, place.token)));
  }

  private edgeDetails(edge: number): HTMLElement[] {
    const { view, state } = this;
    const i = this.graphs[0].scene.indexOf(edge);
    if (i < 0) return [h("h2", {}, "Selection"), h("p", {}, `Edge ${edge} is not among those kept in this page.`)];
    const e = view.edges!;
    const total = view.graph.n_edges;
    const pinned = state.pinned.has(edge);
    const hidden = state.hidden.has(edge);
    const toggle = (set: Set<number>, other: Set<number>) => {
      if (set.has(edge)) set.delete(edge);
      else {
        set.add(edge);
        other.delete(edge);
      }
      this.later();
    };
    const parts: HTMLElement[] = [
      h("h2", {}, this.edgeName(view, i)),
      h("table", { class: "plain" },
        h("thead", {}, h("tr", {}, ...["importance", "value", "on from", "place"].map((t) => h("th", { scope: "col" }, t)))),
        h("tbody", {}, ...Object.entries(e.orders).map(([name, order]) => h("tr", {}, h("th", { scope: "row" }, name),
          h("td", {}, order.importance[i].toPrecision(3)), h("td", {}, percent((order.rank[i] + 1) / total)), h("td", {}, `${count(order.rank[i] + 1)}.`))))),
      h("div", { class: "row" },
        h("button", { type: "button", "aria-pressed": String(pinned), title: "Keep this edge on, whatever the size (P)", onclick: () => toggle(state.pinned, state.hidden) }, pinned ? "Unpin" : "Pin"),
        h("button", { type: "button", "aria-pressed": String(hidden), title: "Take this edge out of the trace (H)", onclick: () => toggle(state.hidden, state.pinned) }, hidden ? "Put back" : "Hide"),
        h("button", { type: "button", onclick: () => this.set({ selected: `c${this.componentOf(i)}` }) }, e.head[i] >= 0 ? "Whole head" : "All of its kind here")),
    ];
    if (view_kind(view, e.kind[i]) === "residual") parts.push(h("p", { class: "small" }, "It carries the stream itself; its source reads:"), ...this.lens(e.level[i], e.source[i]));
    else {
      const [any, one] = this.writerKeys(view, i);
      const own = view.readings?.writers.get(any) ?? view.readings?.writers.get(one);
      const found = own ? { tokens: own[0].map((k) => view.readings!.tokens[k]), changes: own[1] } : this.ask(`e${edge}`, "edge", { id: view.id, edge });
      parts.push(...this.writesTable(found));
    }
    return parts;
  }

  private writesTable(found: { tokens: string[]; changes: number[] } | string): HTMLElement[] {
    if (typeof found === "string") return [h("p", { class: "small" }, found)];
    const half = found.tokens.length / 2;
    const most = Math.max(...found.changes.map(Math.abs), 1e-9);
    const side = (from: number, kind: string) => h("tbody", {}, ...found.tokens.slice(from, from + half).map((t, k) => h("tr", {},
      h("th", { scope: "row", class: "token" }, visible(t)), h("td", { class: `bar-cell ${kind}` }, barOf(Math.abs(found.changes[from + k]), most), h("span", {}, found.changes[from + k].toFixed(1))))));
    return [
      h("h3", {}, "What it writes"),
      h("div", { class: "two-columns" },
        h("table", { class: "bars" }, h("thead", {}, h("tr", {}, h("th", { colspan: 2, scope: "colgroup" }, "promotes"))), side(0, "up")),
        h("table", { class: "bars" }, h("thead", {}, h("tr", {}, h("th", { colspan: 2, scope: "colgroup" }, "demotes"))), side(half, "down"))),
      h("p", { class: "small" }, "Its direction, read by the model's final norm and head as if nothing came between."),
    ];
  }

  private lens(row: number, t: number): HTMLElement[] {
    const { view } = this;
    const own = view.readings?.nodes.get(`${row},${t}`);
    const found = own ? { tokens: own[0].map((k) => view.readings!.tokens[k]), probabilities: own[1] } : this.ask(`n${row},${t}`, "node", { id: view.id, row, token: t });
    if (typeof found === "string") return [h("p", { class: "small" }, found)];
    return [h("table", { class: "bars" }, h("tbody", {}, ...found.tokens.map((name: string, k: number) => h("tr", {},
      h("th", { scope: "row", class: "token" }, visible(name)), h("td", { class: "bar-cell model" }, barOf(found.probabilities[k], 1), h("span", {}, found.probabilities[k].toFixed(3)))))))];
  }

  /** An answer that was fetched before; else a sentence that says what is going on. */
  private ask(key: string, method: string, parameters: object): any {
    if (isLong(this.view)) return "A text as long as this is measured tile by tile, and the streams that this would be read from are not kept.";
    if (this.host.kind === "file" || !this.view.id) return "Not in this file, which keeps the most important only; `densitometer explore` answers for all.";
    const own = `${this.state.view}/${key}`;
    if (!this.details.has(own)) {
      this.details.set(own, "Asking the model…");
      this.host.ask(method, parameters).then(
        (answer) => this.details.set(own, answer),
        (error) => this.details.set(own, (error as Error).message),
      ).finally(() => this.later());
    }
    return this.details.get(own);
  }

  private nodeDetails(row: number, t: number): HTMLElement[] {
    const { view, state } = this;
    const e = view.edges!;
    const order = e.orders[state.importance];
    const incoming: number[] = [];
    const outgoing: number[] = [];
    for (let j = 0; j < order.sorted.length && order.ranks[j] < state.n; j++) {
      const i = order.sorted[j];
      if (e.level[i] + 1 === row && e.target[i] === t) incoming.push(i);
      if (e.level[i] === row && e.source[i] === t) outgoing.push(i);
    }
    const list = (name: string, edges: number[]) => edges.length === 0 ? h("p", { class: "small" }, `${name}: none is on.`)
      : h("div", {}, h("h3", {}, `${name}, ${count(edges.length)}`), h("ul", { class: "edges" }, ...edges.slice(0, SAMPLE_LIMIT).map((i) => h("li", {}, h("button", { type: "button", class: "link", onclick: () => this.set({ selected: `e${e.edge[i]}` }) }, this.edgeName(view, i)), ` ${order.importance[i].toPrecision(2)}`))));
    return [
      h("h2", {}, this.describe({ row, token: t }, view).replace(/, reads .*$/, "")),
      h("h3", {}, "Logit lens: what its stream says"), ...this.lens(row, t),
      list("Edges in", incoming), list("Edges out", outgoing),
    ];
  }

  private componentOf(i: number): number {
    const e = this.view.edges!;
    const { components } = this.view;
    return components.level.findIndex((level, c) => level === e.level[i] && components.kind[c] === e.kind[i] && components.head[c] === e.head[i]);
  }

  private componentName(c: number): string {
    const { view } = this;
    const layer = view.levels[view.components.level[c]].layer;
    const kind = view.kinds[view.components.kind[c]];
    if (view.components.head[c] >= 0) return `Layer ${layer}, head ${view.components.head[c]}`;
    if (kind === "mlp") return `Layer ${layer}, MLP`;
    return `Layer ${layer}, residual stream${kind === "residual_mlp" ? " past the MLP" : kind === "residual_attention" ? " past attention" : ""}`;
  }

  private componentDetails(c: number): HTMLElement[] {
    const { view, state } = this;
    const { components } = view;
    const e = view.edges!;
    const order = e.orders[state.importance];
    const on = componentCounts(view, state.importance, state.n)[c];
    const own: number[] = [];
    let sum = 0;
    for (const i of order.sorted) if (e.level[i] === components.level[c] && e.kind[i] === components.kind[c] && e.head[i] === components.head[c]) {
      own.push(i);
      sum += order.importance[i];
    }
    const first = own.length ? percent((order.rank[own[0]] + 1) / view.graph.n_edges) : "beyond the edges kept";
    const name = `${view.levels[components.level[c]].layer}/${view.kinds[components.kind[c]]}/${components.head[c]}`;
    const hidden = state.hiddenComponents.has(name);
    return [
      h("h2", {}, this.componentName(c)),
      h("dl", { class: "facts" },
        h("dt", {}, "edges on"), h("dd", {}, `${count(on)} of ${count(components.n_edges[c])}`),
        h("dt", {}, "first used"), h("dd", {}, own.length ? `at ${first} of the edges` : first),
        h("dt", {}, "importance, sum"), h("dd", {}, `${sum.toPrecision(3)}${own.length < components.n_edges[c] ? ` (of ${count(own.length)} kept)` : ""}`)),
      h("div", { class: "row" },
        h("button", { type: "button", "aria-pressed": String(hidden), onclick: () => {
          if (hidden) state.hiddenComponents.delete(name);
          else state.hiddenComponents.add(name);
          this.later();
        } }, hidden ? "Put back" : "Hide all of it"),
        components.head[c] >= 0 ? h("button", { type: "button", onclick: () => {
          const layer = view.levels[components.level[c]].layer;
          this.set({ layers: [layer, layer], heads: new Set([components.head[c]]) });
        } }, "Draw this head only") : null),
      h("h3", {}, "Its edges, most important first"),
      h("ul", { class: "edges" }, ...own.slice(0, SAMPLE_LIMIT).map((i) => h("li", {}, h("button", { type: "button", class: "link", onclick: () => this.set({ selected: `e${e.edge[i]}` }) }, this.edgeName(view, i)), ` ${order.importance[i].toPrecision(2)}`))),
    ];
  }

  private key(event: KeyboardEvent): boolean {
    const { state } = this;
    const place = this.selectedPlace();
    const edge = place && "edge" in place ? place.edge : null;
    const toggle = (set: Set<number>, other: Set<number>, verb: string) => {
      if (edge === null) return this.say("Select an edge first: E steps through the edges of a node.");
      if (set.has(edge)) set.delete(edge);
      else {
        set.add(edge);
        other.delete(edge);
      }
      this.say(set.has(edge) ? `Edge ${verb}.` : `Edge no longer ${verb}.`);
      this.later();
    };
    const actions: Record<string, () => void> = {
      "[": () => this.curve.step(-1), "]": () => this.curve.step(1), "{": () => this.curve.step(-10), "}": () => this.curve.step(10),
      p: () => toggle(state.pinned, state.hidden, "pinned"), h: () => toggle(state.hidden, state.pinned, "hidden"),
      r: () => void this.runChosen(), "?": () => this.help.showModal(),
    };
    if (!actions[event.key]) return false;
    actions[event.key]();
    return true;
  }

  // --- chosen edges -----------------------------------------------------------------------------------

  private chosenKey(): string {
    const { state } = this;
    const list = (values: Iterable<unknown>) => [...values].sort().join(" ");
    return [state.view, state.importance, state.n, list(state.pinned), list(state.hidden), list(state.hiddenComponents)].join("/");
  }

  private updateChosen(): void {
    const { state, view } = this;
    const panel = this.panels.chosen;
    if (!view.edges) return panel.replaceChildren();
    const changes = state.pinned.size + state.hidden.size + state.hiddenComponents.size;
    const parts: (HTMLElement | string)[] = [h("h2", {}, "Chosen edges")];
    if (!changes && !this.ran) {
      panel.replaceChildren(...parts, h("p", { class: "small" }, "Pin edges to keep them on, hide edges or whole heads to take them out, then run the model with exactly what is left."));
      return;
    }
    const item = (label: string, remove: () => void) => h("li", {}, label, " ", h("button", { type: "button", class: "link", "aria-label": `Undo: ${label}`, onclick: () => {
      remove();
      this.later();
    } }, "undo"));
    const name = (edge: number) => {
      const i = this.graphs[0].scene.indexOf(edge);
      return i < 0 ? `edge ${edge}` : this.edgeName(view, i);
    };
    const items = [
      ...[...state.pinned].map((e) => item(`on: ${name(e)}`, () => state.pinned.delete(e))),
      ...[...state.hidden].map((e) => item(`off: ${name(e)}`, () => state.hidden.delete(e))),
      ...[...state.hiddenComponents].map((c) => item(`off: all of ${c.replace(/\/-1$/, "")} (layer/kind/head)`, () => state.hiddenComponents.delete(c))),
    ];
    parts.push(h("ul", { class: "edges" }, ...items));
    const run = h("button", { type: "button", class: "primary", id: "run", disabled: this.running || this.host.kind === "file" || !view.id, onclick: () => void this.runChosen() }, this.running ? "Running…" : "Run exactly these edges");
    parts.push(h("div", { class: "row" }, run, changes ? h("button", { type: "button", onclick: () => {
      state.pinned.clear();
      state.hidden.clear();
      state.hiddenComponents.clear();
      this.ran = null;
      this.later();
    } }, "Undo all") : ""));
    if (isLong(view)) parts.push(h("p", { class: "small" }, "Chosen edges of a text as long as this cannot be run; its traces were."));
    else if (this.host.kind === "file" || !view.id) parts.push(h("p", { class: "small" }, "This page is a file: it has no model to run. Open the text with `densitometer explore`."));
    if (this.ran) {
      const { point, key } = this.ran;
      const before = this.reading();
      parts.push(
        h("table", { class: "plain result" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, ""), h("th", { scope: "col" }, "by the importance"), h("th", { scope: "col" }, "as chosen"))),
          h("tbody", {},
            h("tr", {}, h("th", { scope: "row" }, "edges"), h("td", {}, count(state.n)), h("td", {}, count(point.n_edges))),
            h("tr", {}, h("th", { scope: "row" }, "total variation"), h("td", {}, `${before.exact ? "" : "≈ "}${fixed(before.tv, 4)}`), h("td", { id: "ran-tv" }, fixed(point.tv, 4))),
            h("tr", {}, h("th", { scope: "row" }, "entropy"), h("td", {}, fixed(before.entropy, 2)), h("td", {}, fixed(point.entropy, 2))),
            h("tr", {}, h("th", { scope: "row" }, "operations"), h("td", {}, before.flops === null ? "–" : percent(before.flops)), h("td", {}, percent(point.flops_share))),
            h("tr", {}, h("th", { scope: "row" }, "first tokens"), h("td", {}, before.nearest.top.slice(0, 3).map((t) => visible(t.token)).join(" ")), h("td", {}, point.top.slice(0, 3).map((t) => visible(t.token)).join(" "))))),
        key === this.chosenKey() ? "" : h("p", { class: "small" }, "The choice has changed since it was run."),
      );
    }
    const active = (panel.getRootNode() as ShadowRoot).activeElement?.id === "run";
    panel.replaceChildren(...parts);
    if (active) (panel.querySelector("#run") as HTMLElement)?.focus();
  }

  private async runChosen(): Promise<void> {
    const { state, view } = this;
    if (this.running || this.host.kind === "file" || !view.id) return;
    const key = this.chosenKey();
    this.running = true;
    this.fail(null);
    this.update();
    try {
      const point = await this.host.ask("run", {
        id: view.id, importance: state.importance, n_edges: state.n, pinned: [...state.pinned], hidden: [...state.hidden],
        hidden_components: [...state.hiddenComponents].map((c) => {
          const [layer, kind, head] = c.split("/");
          return [Number(layer), kind, Number(head)];
        }),
      });
      this.ran = { key, point };
      this.say(`Run with ${count(point.n_edges)} edges: total variation ${fixed(point.tv, 4)}.`);
    } catch (error) {
      this.fail((error as Error).message);
    } finally {
      this.running = false;
      this.update();
    }
  }

  // --- comparison -------------------------------------------------------------------------------------

  private updateCompare(sides: { side: Side; view: View; n: number }[]): void {
    const panel = this.panels.compare;
    const { state } = this;
    if (!this.view.edges) return panel.replaceChildren();
    const focused = (panel.getRootNode() as ShadowRoot).activeElement?.id;
    const others: [string, string][] = [];
    this.views.forEach((view, index) => {
      if (!view.edges) return;
      for (const name of view.importances) {
        if (index === state.view && name === state.importance) continue;
        others.push([`${index}:${name}`, this.views.length > 1 ? `${index + 1}. ${this.sideName({ view: index, importance: name })}` : `importance ${name}`]);
      }
    });
    const now = state.compare ? `${state.compare.view}:${state.compare.importance}` : "";
    const picker = h("select", { id: "compare", "aria-label": "Compare with", onchange: () => {
      const [index, name] = picker.value.split(/:(.*)/);
      this.set({ compare: picker.value ? { view: Number(index), importance: name } : null }, true);
    } }, h("option", { value: "", selected: !now }, "nothing"), ...others.map(([value, label]) => h("option", { value, selected: value === now }, label)));
    const parts: HTMLElement[] = [h("h2", {}, "Compare with"), picker];
    if (this.views.length > 1) {
      const own = h("select", { id: "own-view", "aria-label": "Text shown on the left", onchange: () => {
        const view = this.views[Number(own.value)];
        this.set({ view: Number(own.value), importance: view.importances[0], n: nearestGrid(view, (state.n / this.view.graph.n_edges) * view.graph.n_edges), compare: null, selected: null, pinned: new Set(), hidden: new Set(), hiddenComponents: new Set(), zoom: null }, true);
      } }, ...this.views.map((v, index) => h("option", { value: String(index), selected: index === state.view }, `${index + 1}. ${this.sideName({ view: index, importance: v.importances[0] })}`)));
      parts.push(h("label", { class: "small" }, "shown on the left: ", own));
    }
    if (this.host.kind === "server") {
      const existing = panel.querySelector("form.other");
      parts.push((existing as HTMLElement) ?? this.otherForm());
    }
    if (sides.length > 1) {
      const [a, b] = sides;
      const ra = readingOf(a.view, a.side.importance, a.n, this.asked.get(this.askKey()));
      const rb = readingOf(b.view, b.side.importance, b.n);
      const rows: [string, string, string][] = [
        ["edges on", count(a.n), count(b.n)],
        ["share", percent(a.n / a.view.graph.n_edges), percent(b.n / b.view.graph.n_edges)],
        ["total variation", (ra.exact ? "" : "≈ ") + fixed(ra.tv, 3), (rb.exact ? "" : "≈ ") + fixed(rb.tv, 3)],
        ["TV ≤ 0.1 from", ...[a, b].map(({ view, side }) => (view.density[side.importance].size_at === null ? "–" : percent(view.density[side.importance].size_at!)))] as [string, string, string],
      ];
      parts.push(h("table", { class: "plain" }, h("thead", {}, h("tr", {}, ...["", "left", "right"].map((t) => h("th", { scope: "col" }, t)))),
        h("tbody", {}, ...rows.map(([name, x, y]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, x), h("td", {}, y))))));
      if (sameShape(a.view, b.view)) {
        const overlap: Overlap = overlapOf(a.view, a.side.importance, a.n, b.view, b.side.importance, b.n);
        parts.push(
          h("dl", { class: "facts", id: "overlap" },
            h("dt", {}, "edges in both"), h("dd", {}, count(overlap.shared)),
            h("dt", { title: "edges in both / edges in either" }, "overlap of edges"), h("dd", {}, overlap.jaccard === null ? "–" : percent(overlap.jaccard)),
            h("dt", { title: "components used by both / by either" }, "overlap of components"), h("dd", {}, overlap.components === null ? "–" : percent(overlap.components))),
          h("p", { class: "small" }, `Grey: in both. Coloured: on this side only. Tokens are aligned from the last one.${overlap.exact ? "" : ` Of the edges kept: ${count(overlap.first)} and ${count(overlap.second)}.`}`));
      } else parts.push(h("p", { class: "small" }, "The two models differ in shape, so their edges cannot be matched and no overlap is shown."));
    }
    panel.replaceChildren(...parts);
    if (focused) (panel.querySelector(`#${focused}`) as HTMLElement)?.focus();
  }

  private otherForm(): HTMLElement {
    const input = h("input", { type: "text", id: "other-text", "aria-label": "Another text to compare with", placeholder: "another text…", autocomplete: "off" });
    const button = h("button", { type: "submit" }, "Compare");
    return h("form", { class: "other", onsubmit: async (event: Event) => {
      event.preventDefault();
      if (this.running) return;
      await this.busy(button, "Measuring…", async () => {
        const answer = decode(await this.host.ask("measure", { text: input.value, importance: [this.state.importance] }));
        if (answer.kind === "traces") this.addViews(answer);
      });
    } }, input, button);
  }

  // --- components, filter, rest ------------------------------------------------------------------------

  private updateComponents(): void {
    const panel = this.panels.components;
    const { view, state, palette } = this;
    if (!view.edges) return panel.replaceChildren();
    const { components } = view;
    const counts = componentCounts(view, state.importance, state.n);
    const layers = [...new Set(view.levels.map((level) => level.layer))].reverse();
    const heads = Math.max(...view.levels.map((level) => level.n_heads));
    let grid = panel.querySelector(".matrix") as HTMLElement | null;
    if (!grid || grid.dataset.view !== String(state.view)) {
      const cells: HTMLElement[] = [];
      for (const layer of layers) {
        const row = h("div", { role: "row", class: "matrix-row" }, h("span", { class: "small", role: "rowheader" }, String(layer)));
        const own = components.level.map((level, c) => [level, c]).filter(([level]) => view.levels[level].layer === layer).map(([, c]) => c);
        const rank = (c: number) => (components.head[c] >= 0 ? components.head[c] : view.kinds[components.kind[c]] === "mlp" ? 1e6 : 2e6);
        own.sort((a, b) => rank(a) - rank(b));
        for (const c of own) {
          const form = components.head[c] >= 0 ? "" : view.kinds[components.kind[c]] === "mlp" ? " mlp" : " residual";
          row.append(h("button", { type: "button", role: "gridcell", tabIndex: -1, class: `cell${form}`, onclick: () => this.set({ selected: state.selected === `c${c}` ? null : `c${c}` }) }));
          (row.lastChild as HTMLElement).dataset.c = String(c);
        }
        cells.push(row);
      }
      grid = h("div", { class: "matrix", role: "grid", "aria-label": "Components by layer: how much of each is on", onkeydown: (event: KeyboardEvent) => this.moveInMatrix(event) }, ...cells);
      grid.dataset.view = String(state.view);
      grid.style.setProperty("--cell", `${Math.max(6, Math.min(22, Math.floor(330 / (heads + 4))))}px`);
      panel.replaceChildren(h("h2", {}, "Heads and MLPs in the trace"),
        h("p", { class: "small" }, `A row a layer, the last on top; ${heads} heads, then MLP (orange) and residual (grey). The fuller, the more of its edges are on.`), grid);
      (grid.querySelector(".cell") as HTMLElement).tabIndex = 0;
    }
    for (const cell of grid.querySelectorAll<HTMLElement>(".cell")) {
      const c = Number(cell.dataset.c);
      const share = components.n_edges[c] ? counts[c] / components.n_edges[c] : 0;
      const kind = view.kinds[components.kind[c]];
      const now = `${counts[c]} ${palette.dark}`;
      if (cell.dataset.on !== now) {
        const colour = components.head[c] >= 0 ? headColour(components.head[c], heads, palette) : kind === "mlp" ? palette.mlp : palette.residual;
        const label = `${this.componentName(c)}: ${count(counts[c])} of ${count(components.n_edges[c])} edges on`;
        cell.dataset.on = now;
        cell.style.setProperty("--fill", colour);
        cell.style.setProperty("--share", counts[c] ? String(0.15 + 0.85 * Math.sqrt(share)) : "0");
        cell.setAttribute("aria-label", label);
        cell.title = label;
      }
      cell.setAttribute("aria-selected", String(state.selected === `c${c}`));
    }
  }

  private moveInMatrix(event: KeyboardEvent): void {
    const steps: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const rows = [...this.panels.components.querySelectorAll(".matrix-row")].map((row) => [...row.querySelectorAll<HTMLElement>(".cell")]);
    const r = rows.findIndex((row) => row.includes(event.target as HTMLElement));
    const next = rows[Math.max(0, Math.min(rows.length - 1, r + step[0]))];
    const c = rows[r].indexOf(event.target as HTMLElement) + step[1];
    const cell = next[Math.max(0, Math.min(next.length - 1, c))];
    (event.target as HTMLElement).tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  }

  private updateFilter(): void {
    const panel = this.panels.filter;
    const { view, state } = this;
    if (!view.edges) return panel.replaceChildren();
    const focused = (panel.getRootNode() as ShadowRoot).activeElement?.id;
    if (focused && panel.querySelector(`#${focused}`) && focused.startsWith("f-text")) return; // someone is typing
    const layers = [view.levels[0].layer, view.levels[view.levels.length - 1].layer];
    const names: Record<string, string> = { residual_attention: "residual, past attention", residual_mlp: "residual, past the MLP", residual: "residual", attention: "attention", mlp: "MLP" };
    const kinds = view.kinds.map((kind) => h("label", { class: "check" }, h("input", { type: "checkbox", id: `f-${kind}`, checked: !state.kinds.has(kind), onchange: (event: Event) => {
      if ((event.target as HTMLInputElement).checked) state.kinds.delete(kind);
      else state.kinds.add(kind);
      this.later();
    } }), ` ${names[kind] ?? kind}`));
    const layerInput = (index: 0 | 1, label: string) => h("input", { type: "number", id: `f-layer${index}`, "aria-label": label, min: String(layers[0]), max: String(layers[1]), value: String((state.layers ?? layers)[index]), onchange: (event: Event) => {
      const value = Math.max(layers[0], Math.min(layers[1], Number((event.target as HTMLInputElement).value) || layers[0]));
      const now = [...(state.layers ?? layers)] as [number, number];
      now[index] = value;
      this.set({ layers: now[0] === layers[0] && now[1] === layers[1] ? null : now });
    } });
    const heads = h("input", { type: "text", id: "f-text-heads", "aria-label": "Heads that are drawn, by commas; empty for all", placeholder: "all", value: state.heads ? [...state.heads].join(", ") : "", onchange: () => {
      const found = heads.value.split(/[\s,]+/).filter((t) => /^\d+$/.test(t)).map(Number);
      this.set({ heads: heads.value.trim() ? new Set(found) : null });
    } });
    const any = state.kinds.size || state.layers || state.heads;
    panel.replaceChildren(h("h2", {}, "What is drawn"), h("div", { class: "checks" }, ...kinds),
      h("div", { class: "row" }, h("span", {}, "layers "), layerInput(0, "First layer drawn"), h("span", {}, " to "), layerInput(1, "Last layer drawn"), h("span", {}, " heads "), heads),
      any ? h("div", { class: "row" }, h("button", { type: "button", id: "f-all", onclick: () => this.set({ kinds: new Set(), layers: null, heads: null }) }, "Draw everything")) : h("span", {}));
    if (focused) (panel.querySelector(`#${focused}`) as HTMLElement)?.focus();
  }

  private updateRest(): void {
    const panel = this.panels.rest;
    const { view, state, palette } = this;
    const edges = view.edges;
    if (!edges) return panel.replaceChildren();
    const total = view.graph.n_edges;
    this.kept.textContent = state.n > edges.exactTo ? "the most important are drawn" : "";
    if (edges.kept === total) {
      panel.replaceChildren(h("p", { class: "small" }, `All ${count(total)} edges are in this page.`));
      return;
    }
    const order = edges.orders[state.importance];
    let drawn = 0;
    while (drawn < order.ranks.length && order.ranks[drawn] < state.n) drawn++;
    const histogram = view.histograms[state.importance];
    const most = Math.max(...histogram.all.map(Math.log1p), 1);
    const width = 372 / histogram.all.length;
    const bars = histogram.all.flatMap((all, k) => [[all, palette.faint], [histogram.kept[k], palette.accent]].map(([n, colour]) => {
      const tall = (60 * Math.log1p(Number(n))) / most;
      return s("rect", { x: k * width, y: 64 - tall, width: width - 1, height: tall, fill: String(colour) }, s("title", {}, `${count(Number(n))} edges`));
    }));
    panel.replaceChildren(
      h("h2", {}, "What is not drawn"),
      h("p", { class: "small", id: "kept" }, `This page keeps ${count(edges.kept)} of ${count(total)} edges. Every edge of a trace is there up to ${percent(edges.exactTo / total)}; at this size ${count(drawn)} of ${count(state.n)}. Counts and the squares above are exact at every size, costs ${isLong(view) ? "at those measured" : "too"}.`),
      s("svg", { viewBox: "0 0 372 82", class: "histogram", role: "img", "aria-label": "Edges by importance, all and kept, log scale" }, ...bars,
        s("text", { x: 0, y: 78, "font-size": 10, fill: palette.muted }, `importance 1e${histogram.from.toFixed(1)}`),
        s("text", { x: 372, y: 78, "font-size": 10, fill: palette.muted, "text-anchor": "end" }, `1e${histogram.to.toFixed(1)}${histogram.zero ? `, ${count(histogram.zero)} at 0` : ""}`)),
      h("p", { class: "small" }, "Light: all edges; blue: those in this page."));
  }

  private legend(): HTMLElement {
    const sample = (...children: SVGElement[]) => s("svg", { viewBox: "0 0 26 16", width: 26, height: 16, "aria-hidden": "true" }, ...children);
    return h("p", { class: "legend small" },
      h("span", {}, sample(s("line", { x1: 13, x2: 13, y1: 1, y2: 15, class: "l-residual" })) as unknown as HTMLElement, "residual"),
      h("span", {}, sample(s("path", { d: "M2 15C2 6 24 10 24 1", class: "l-attention" })) as unknown as HTMLElement, "attention, a colour a head"),
      h("span", {}, sample(s("path", { d: "M9 15C17 11 17 5 9 1", class: "l-mlp" }), s("rect", { x: 11, y: 5, width: 6, height: 6, class: "l-mlp-square" })) as unknown as HTMLElement, "MLP"),
      h("span", {}, sample(s("circle", { cx: 13, cy: 8, r: 4.5, class: "l-output" })) as unknown as HTMLElement, "output"),
      this.kept,
      h("span", { id: "keys" }, "drag: pan · wheel: zoom · 0: reset · F: whole text · ?: keys"));
  }
}

/** Whether its edges were measured tile by tile. */
function isLong(view: View): boolean {
  return view.provenance.edges === "tiled";
}

function barOf(value: number | null, most: number): HTMLElement {
  const bar = h("i", { "aria-hidden": "true" });
  bar.style.width = `${(100 * (value ?? 0)) / most}%`;
  return bar;
}

function token({ token: text, probability }: TokenProbability): HTMLElement {
  return h("span", { class: "nowrap" }, h("code", {}, visible(text)), ` ${probability.toFixed(2)}`);
}

export function helpDialog(): HTMLDialogElement {
  const keys: [string, string][] = [
    ["Tab", "from one part to the next"],
    ["← → on the size", "smaller, larger; Page keys in larger steps, Home and End to the ends"],
    ["arrows on the graph", "move the cursor between nodes; with Shift, pan"],
    ["E, Shift+E", "step through the edges at the cursor"],
    ["Enter", "select the node at the cursor; Escape lets go"],
    ["P, H", "pin or hide the selected edge"],
    ["R", "run exactly the chosen edges (with a server)"],
    ["[ ]", "smaller, larger, while on the graph; { } in larger steps"],
    ["+ − 0 F", "zoom in, out, reset, whole text"],
  ];
  const dialog = h("dialog", { "aria-labelledby": "help-title" },
    h("h2", { id: "help-title" }, "What this shows"),
    h("p", {}, "The graph shows how the model computes one next token. Each column is a token, each row is half a layer, and the output is at the top right. Edges carry vectors, and each edge has an importance. A trace takes the most important edges first, starting at the output. The model then runs with those edges alone."),
    h("p", {}, "Move the size and watch the prediction come back. The curve shows how far the trace's prediction is from the model's at each size. The triangle marks the size from which on it stays within 0.1. Below the sizes at the dashed lines, not even the output token's own path fits."),
    h("h2", {}, "Keys"),
    h("dl", { class: "facts keys" }, ...keys.flatMap(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])),
    h("form", { method: "dialog" }, h("button", {}, "Close")));
  return dialog;
}

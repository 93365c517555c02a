// Density along a text: every token coloured by what it took to predict it, a strip over the whole document, and a click
// that opens the trace of that prediction. The last word stands for what comes after the text.

import { scaleLinear } from "d3-scale";
import { interpolateInferno, interpolateYlOrRd } from "d3-scale-chromatic";
import { count, download, fixed, h, percent, visible } from "./dom";
import { Explorer } from "./explorer";
import { helpDialog } from "./help";
import type { Host } from "./host";
import { DARK, LIGHT, inkOn } from "./palette";
import { decode, type Payload, type Tokens, type TokenTable } from "./payload";

interface Measure {
  column: string;
  name: string;
  show: (value: number) => string;
  own?: boolean; // of the token itself, not of its prediction
}

const MEASURES: Measure[] = [
  { column: "size_at", name: "density: edges needed for TV ≤ 0.1", show: percent },
  { column: "auc_log", name: "density: area over log size", show: (v) => fixed(v) },
  { column: "auc_linear", name: "density: area over size", show: (v) => fixed(v) },
  { column: "entropy", name: "entropy of the prediction, nats", show: (v) => fixed(v, 2) },
  { column: "surprisal", name: "surprisal, nats", show: (v) => fixed(v, 2) },
  { column: "frequency", name: "frequency", show: (v) => v.toPrecision(2), own: true },
];

/** A word of the page: a token, or what comes after the last. */
interface Word {
  position: number; // of the token
  text: string | null; // null: not there yet
  from: number | null; // the position at which it was predicted, if that was measured
}

/** A token in running text: spaces stay spaces. */
function readable(name: string): string {
  return visible(name).replaceAll("\u2423", " ");
}

export class TokenPage {
  readonly element: HTMLElement;
  private measure: Measure;
  private importance: string;
  private contrast = 1;
  private at: number | null = null; // the position of the word that is chosen
  private theme: "auto" | "light" | "dark" = "auto";
  private rows = new Map<string, number>(); // "importance/position" -> row
  private list: Word[];
  private words: HTMLElement[] = [];
  private text = h("div", { class: "text", role: "listbox", "aria-label": "The text, a token at a time" });
  private strip = h("canvas", { class: "strip", role: "img", "aria-label": "The measure along the whole text" });
  private facts = h("aside", { class: "panels" });
  private notice = h("div", { class: "notice", role: "alert", hidden: true });
  private key = h("canvas", { width: 220, height: 12, "aria-hidden": "true" });
  private keyText = h("span", { class: "small" });
  private inner: Explorer | null = null;
  private outer: HTMLElement;
  private observer = new ResizeObserver(() => this.drawStrip());
  private help = helpDialog();
  private opening = false;
  private darkQuery = matchMedia("(prefers-color-scheme: dark)");
  private onScheme = () => this.update();

  constructor(private payload: Tokens, private host: Host, private options: { address: boolean; back?: () => void }, private replace: (payload: Payload | Error) => void) {
    const { columns } = payload;
    this.list = wordsOf(columns);
    columns.position.forEach((position, row) => this.rows.set(`${columns.importance[row]}/${position}`, row));
    const measures = MEASURES.filter(({ column }) => columns[column]?.some((v) => v !== null));
    this.measure = measures[0] ?? MEASURES[0];
    const importances = [...new Set(columns.importance)];
    this.importance = importances[0];
    this.restore(measures, importances);
    const measureSelect = h("select", { "aria-label": "Colour by", id: "measure", onchange: () => {
      this.measure = measures.find((m) => m.column === measureSelect.value)!;
      this.update();
    } }, ...measures.map((m) => h("option", { value: m.column, selected: m === this.measure }, m.name)));
    const importanceSelect = h("select", { "aria-label": "Importance", id: "importance", onchange: () => {
      this.importance = importanceSelect.value;
      this.update();
    } }, ...importances.map((name) => h("option", { value: name, selected: name === this.importance }, name)));
    const contrast = h("input", { type: "range", min: "0", max: "100", step: "1", value: String(50 + 25 * Math.log2(this.contrast)), id: "contrast", "aria-label": "Contrast", oninput: () => {
      this.contrast = 2 ** ((Number(contrast.value) - 50) / 25);
      contrast.setAttribute("aria-valuetext", this.contrast.toFixed(2));
      this.update();
    } });
    this.outer = h("div", {},
      h("header", { class: "bar" },
        options.back ? h("button", { type: "button", onclick: options.back }, "← Back to the trace") : null,
        h("div", { class: "title" }, h("strong", {}, "densitometer"), h("span", { class: "muted" }, `${count(this.list.length - 1)} tokens`)),
        h("div", { class: "prompt" }, payload.label),
        h("div", { class: "buttons" },
          h("label", { class: "small" }, "colour by ", measureSelect), importances.length > 1 ? h("label", { class: "small" }, "importance ", importanceSelect) : null,
          h("label", { class: "small" }, "contrast ", contrast),
          h("button", { type: "button", onclick: () => download("densitometer-tokens.json", new Blob([JSON.stringify(payload.raw)], { type: "application/json" })) }, "Data, JSON"),
          h("button", { type: "button", class: "theme", onclick: () => this.nextTheme() }, "Theme"))),
      this.notice,
      h("div", { class: "strip-box" }, this.strip),
      h("main", {},
        h("div", { class: "left" }, this.text, h("p", { class: "legend small" }, this.key, this.keyText, h("span", { class: "hatched" }, " none "), "no value: the first token, or never within 0.1",
          this.someOpen() ? h("span", { id: "open" }, h("span", { class: "openable" }, "underlined"), `: the traces of ${count(payload.views.size)} of ${count(this.list.length - 1)} predictions are in this file, those that need most`) : null)),
        this.facts));
    this.element = h("div", { class: "explorer tokens" }, this.outer, this.help);
    this.buildText();
    this.strip.addEventListener("click", (event) => {
      const box = this.strip.getBoundingClientRect();
      const index = Math.min(this.words.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * this.words.length)));
      this.focus(index);
    });
    this.observer.observe(this.strip);
    this.darkQuery.addEventListener("change", this.onScheme);
    this.update();
    if (this.at !== null) requestAnimationFrame(() => this.choose(this.indexOf(this.at)));
  }

  destroy(): void {
    this.observer.disconnect();
    this.darkQuery.removeEventListener("change", this.onScheme);
    this.inner?.destroy();
  }

  private restore(measures: Measure[], importances: string[]): void {
    if (!this.options.address) return;
    const parts = new URLSearchParams(location.hash.slice(1));
    this.measure = measures.find((m) => m.column === parts.get("colour")) ?? this.measure;
    this.importance = importances.find((name) => name === parts.get("by")) ?? this.importance;
    const contrast = Number(parts.get("contrast"));
    if (contrast > 0.1 && contrast < 10) this.contrast = contrast;
    const at = Number(parts.get("at") ?? NaN);
    if (this.indexOf(at) >= 0) this.at = at;
    const theme = parts.get("theme");
    if (theme === "light" || theme === "dark") this.theme = theme;
  }

  private indexOf(position: number | null): number {
    return this.list.findIndex((word) => word.position === position);
  }

  private save(): void {
    if (!this.options.address || this.inner) return;
    const parts = new URLSearchParams({ colour: this.measure.column, by: this.importance });
    if (this.contrast !== 1) parts.set("contrast", this.contrast.toFixed(2));
    if (this.at !== null) parts.set("at", String(this.at));
    if (this.theme !== "auto") parts.set("theme", this.theme);
    try {
      history.replaceState(null, "", `#${parts}`);
    } catch {
      // an about:srcdoc frame has no address
    }
  }

  private get dark(): boolean {
    return this.theme === "dark" || (this.theme === "auto" && this.darkQuery.matches);
  }

  private nextTheme(): void {
    const order = ["auto", "light", "dark"] as const;
    this.theme = order[(order.indexOf(this.theme) + 1) % 3];
    this.update();
  }

  private buildText(): void {
    const parts: Node[] = [];
    this.words = this.list.map(({ text, from }, index) => {
      const word = h("span", { class: text === null ? "word next" : "word", role: "option", tabIndex: index === 0 ? 0 : -1, "aria-selected": "false" }, text === null ? "…" : readable(text));
      word.classList.toggle("openable", this.someOpen() && this.canOpen(from));
      word.addEventListener("focus", () => this.choose(index));
      word.addEventListener("pointerenter", () => this.showFacts(index));
      word.addEventListener("click", () => void this.open(index));
      parts.push(word);
      if (text?.includes("\n")) parts.push(h("br"));
      return word;
    });
    this.text.replaceChildren(...parts);
    this.text.addEventListener("pointerleave", () => this.showFacts(this.at === null ? -1 : this.indexOf(this.at)));
    this.text.addEventListener("keydown", (event) => {
      const now = Math.max(0, this.words.indexOf(event.target as HTMLElement));
      const steps: Record<string, number> = { ArrowRight: 1, ArrowDown: 10, ArrowLeft: -1, ArrowUp: -10, Home: -1e9, End: 1e9 };
      if (event.key in steps) {
        event.preventDefault();
        this.focus(Math.max(0, Math.min(this.words.length - 1, now + steps[event.key])));
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        void this.open(now);
      }
    });
  }

  /** What a word's measure is: of its prediction, or of the token itself. */
  private valueOf(index: number, measure: Measure): number | null {
    const { from, position } = this.list[index];
    const row = this.rows.get(`${this.importance}/${measure.own ? position : from}`);
    const value = row === undefined ? null : this.payload.columns[measure.column]?.[row];
    return typeof value === "number" ? value : null;
  }

  private value(index: number): number | null {
    return this.valueOf(index, this.measure);
  }

  /** From a value to [0, 1]: between the smallest and the largest, bent by the contrast. */
  private scale(): { colour: (value: number) => string; low: number; high: number } {
    const values = this.words.map((_, i) => this.value(i)).filter((v): v is number => v !== null);
    const low = Math.min(...values);
    const high = Math.max(...values);
    const unit = scaleLinear([low, high > low ? high : low + 1], [0, 1]);
    const ramp = this.dark ? (u: number) => interpolateInferno(0.12 + 0.8 * u) : (u: number) => interpolateYlOrRd(0.9 * u);
    return { colour: (value) => ramp(unit(value) ** (1 / this.contrast)), low, high };
  }

  private update(): void {
    const palette = this.dark ? DARK : LIGHT;
    this.element.dataset.theme = this.dark ? "dark" : "light";
    (this.outer.querySelector(".theme") as HTMLElement).textContent = `Theme: ${this.theme}`;
    const { colour, low, high } = this.scale();
    this.words.forEach((word, index) => {
      const value = this.value(index);
      word.classList.toggle("hatched", value === null);
      const ground = value === null ? "" : colour(value);
      word.style.backgroundColor = ground;
      word.style.color = value === null ? "" : inkOn(ground);
      word.setAttribute("aria-label", `${word.textContent}: ${value === null ? "no value" : this.measure.show(value)}`);
    });
    const context = this.key.getContext("2d")!;
    for (let x = 0; x < 220; x++) {
      context.fillStyle = colour(low + ((high - low) * x) / 219);
      context.fillRect(x, 0, 1, 12);
    }
    this.keyText.textContent = Number.isFinite(low) ? `${this.measure.show(low)} to ${this.measure.show(high)}` : "no values";
    this.drawStrip(palette.ground);
    this.showFacts(this.at === null ? -1 : this.indexOf(this.at));
    this.save();
  }

  private drawStrip(ground = (this.dark ? DARK : LIGHT).ground): void {
    const width = this.strip.clientWidth || 800;
    const height = 44;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.strip.width = width * ratio;
    this.strip.height = height * ratio;
    const context = this.strip.getContext("2d")!;
    context.scale(ratio, ratio);
    context.fillStyle = ground;
    context.fillRect(0, 0, width, height);
    const { colour, low, high } = this.scale();
    const n = this.words.length;
    // several tokens may share a pixel: the tallest of them is seen
    for (let index = 0; index < n; index++) {
      const value = this.value(index);
      if (value === null) continue;
      const tall = 4 + 36 * ((value - low) / (high - low || 1));
      context.fillStyle = colour(value);
      context.fillRect((index * width) / n, height - tall, Math.max(1, width / n - (width / n > 4 ? 1 : 0)), tall);
    }
    if (this.at !== null) {
      context.fillStyle = (this.dark ? DARK : LIGHT).accent;
      context.fillRect((this.indexOf(this.at) * width) / n, 0, Math.max(2, width / n), 3);
    }
  }

  private focus(index: number): void {
    this.words[index].focus();
    this.words[index].scrollIntoView({ block: "nearest" });
  }

  private choose(index: number): void {
    if (index < 0) return;
    const before = this.at === null ? -1 : this.indexOf(this.at);
    if (before >= 0) {
      this.words[before].tabIndex = -1;
      this.words[before].setAttribute("aria-selected", "false");
    } else this.words[0].tabIndex = -1;
    this.at = this.list[index].position;
    this.words[index].tabIndex = 0;
    this.words[index].setAttribute("aria-selected", "true");
    this.showFacts(index);
    this.drawStrip();
    this.save();
  }

  private showFacts(index: number): void {
    const after = this.list[index]?.from ?? null;
    this.words.forEach((word, i) => word.classList.toggle("before", after !== null && this.list[i].position === after && this.list[i].text !== null));
    if (index < 0) {
      this.facts.replaceChildren(h("section", {}, h("h2", {}, "A token"), h("p", { class: "small" }, "Point at a token, or move with the arrow keys. Its colour tells how much of the model's computation it took to predict this token from the text before it; Enter or a click opens the trace of that prediction.")));
      return;
    }
    const { text, position } = this.list[index];
    const facts = MEASURES.filter(({ column, own }) => this.payload.columns[column] && (own || after !== null)).map((m): [string, string] => {
      const value = this.valueOf(index, m);
      return [m.name, value === null ? "none" : m.show(value)];
    });
    const name = (value: string) => h("code", {}, visible(value));
    const before = this.list.find((word) => word.position === after)?.text;
    const told = typeof before === "string" ? h("p", { class: "small", id: "after" }, "predicted after ", name(before), ` (${after})`)
      : h("p", { class: "small", id: "after" }, "The text begins with it: nothing comes before it to predict it from.");
    this.facts.replaceChildren(h("section", {}, text === null ? h("h2", {}, "What comes next") : h("h2", {}, `Token ${position}: `, name(text)), told,
      h("dl", { class: "facts wide" }, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      this.canOpen(after) ? h("button", { type: "button", onclick: () => void this.open(index) }, "Open its trace")
        : after === null ? null : h("p", { class: "small" }, "Its trace is not in this file; `densitometer explore` opens any.")));
  }

  /** Whether the traces of some tokens open, and of others not. */
  private someOpen(): boolean {
    return this.host.kind === "file" && this.payload.views.size > 0 && this.payload.views.size < this.list.length - 1;
  }

  /** Whether the trace of the prediction at a position opens. */
  private canOpen(position: number | null): position is number {
    if (position === null) return false;
    return this.payload.views.has(position) || (this.host.kind !== "file" && this.payload.raw.id !== undefined);
  }

  private async open(index: number): Promise<void> {
    const position = this.list[index].from;
    this.choose(index);
    if (!this.canOpen(position) || this.opening) return;
    let payload: Payload;
    const own = this.payload.views.get(position);
    if (own) payload = { kind: "traces", views: [own], raw: { schema: this.payload.raw.schema, kind: "traces", views: [this.payload.raw.views![String(position)]] } };
    else {
      this.opening = true;
      this.element.classList.add("waiting");
      try {
        payload = decode(await this.host.ask("trace_at", { id: this.payload.raw.id, position, importance: this.importance }));
      } catch (error) {
        this.notice.hidden = false;
        this.notice.textContent = (error as Error).message;
        return;
      } finally {
        this.opening = false;
        this.element.classList.remove("waiting");
      }
    }
    if (payload.kind !== "traces") return;
    if (this.options.address) history.replaceState(null, "", "#");
    this.inner?.destroy();
    this.inner = new Explorer(payload, this.host, {
      address: this.options.address,
      back: () => {
        this.inner?.destroy();
        this.inner = null;
        this.element.replaceChildren(this.outer, this.help);
        this.update();
        this.focus(index);
      },
    }, (next) => this.replace(next));
    this.element.replaceChildren(this.inner.element);
    (this.inner.element.querySelector("button") as HTMLElement | null)?.focus();
  }
}

function wordsOf(columns: TokenTable): Word[] {
  const names = new Map(columns.position.map((position, row) => [position, columns.token[row]]));
  const positions = [...names.keys()].sort((a, b) => a - b);
  const from = (position: number) => (names.has(position - 1) ? position - 1 : null);
  const next = positions[positions.length - 1] + 1;
  return [...positions.map((position) => ({ position, text: names.get(position)!, from: from(position) })), { position: next, text: null, from: from(next) }];
}

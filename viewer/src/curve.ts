// The curve, total variation over size on a log axis, with the size slider under it on the same axis.

import { scaleLinear, scaleLog, type ScaleContinuousNumeric } from "d3-scale";
import { line } from "d3-shape";
import { count, h, patch, percent, s } from "./dom";
import { seriesColour, type Palette } from "./palette";
import type { View } from "./payload";
import { gridIndex, nearestGrid, readingOf } from "./reading";

const WIDTH = 372;
const HEIGHT = 190;
const LEFT = 34;
const RIGHT = 12;
const TOP = 26;
const BOTTOM = 24;
const STEPS = 2000;
const LANDMARKS: Record<string, string> = { residual_chain: "chain", residual_mlp_chain: "+ MLPs" };
const LANDMARK_TEXT: Record<string, string> = {
  residual_chain: "the output token's own residual chain fits from here",
  residual_mlp_chain: "and with its MLPs from here",
};

export class Curve {
  readonly element: HTMLElement;
  readonly slider: HTMLInputElement;
  private svg: SVGElement;
  private chips: HTMLElement;
  private x!: ScaleContinuousNumeric<number, number>;
  private y = scaleLinear([0, 1], [HEIGHT - BOTTOM, TOP]);
  private view!: View;
  private n = 1;
  private drawn: unknown[] = []; // what the parts that do not move were drawn for
  private still = s("g");
  private moving = s("g");

  constructor(private onSize: (n: number) => void) {
    this.svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "curve" });
    this.slider = h("input", {
      type: "range", min: "0", max: String(STEPS), step: "1", class: "size", id: "size", "aria-label": "Size of the trace, share of the edges that are on",
      oninput: () => this.onSize(nearestGrid(this.view, this.x.invert(LEFT + (Number(this.slider.value) / STEPS) * (WIDTH - LEFT - RIGHT)) * this.view.graph.n_edges)),
      onkeydown: (event: KeyboardEvent) => this.key(event),
    });
    this.chips = h("div", { class: "chips", role: "group", "aria-label": "Sizes worth a look" });
    this.svg.append(this.still, this.moving);
    this.element = h("div", { class: "size-box" }, this.svg, h("div", { class: "slider" }, this.slider), this.chips);
    this.svg.addEventListener("pointerdown", (event) => {
      const box = this.svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * WIDTH;
      if (x >= LEFT - 4) this.onSize(nearestGrid(this.view, this.x.invert(Math.min(WIDTH - RIGHT, Math.max(LEFT, x))) * this.view.graph.n_edges));
    });
  }

  private key(event: KeyboardEvent): void {
    const steps: Record<string, number> = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -1e9, End: 1e9 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.step(steps[event.key]);
  }

  step(by: number): void {
    const i = gridIndex(this.view, this.n) + by;
    this.onSize(this.view.grid[Math.max(0, Math.min(this.view.grid.length - 1, i))]);
  }

  update(view: View, importance: string, n: number, palette: Palette): void {
    this.view = view;
    this.n = n;
    const total = view.graph.n_edges;
    const now = [view, importance, palette];
    if (now.some((value, i) => value !== this.drawn[i])) {
      this.drawn = now;
      this.x = scaleLog([1 / total, 1], [LEFT, WIDTH - RIGHT]);
      this.still.replaceChildren(...this.marks(importance, palette));
      this.buildChips(importance);
    }
    const { x, y } = this;
    const size = n / total;
    const reading = readingOf(view, importance, n);
    patch(this.moving,
      s("line", { x1: x(size), x2: x(size), y1: TOP - 2, y2: HEIGHT - BOTTOM, stroke: palette.ink, "stroke-width": 1.2 }),
      s("circle", { cx: x(size), cy: y(reading.tv), r: 4.5, fill: palette.ground, stroke: palette.ink, "stroke-width": 2 }));
    this.svg.setAttribute("aria-label", `Total variation over size, traces by ${importance}; ${percent(size)} of the edges: ${reading.exact ? "" : "about "}${reading.tv.toFixed(3)}`);
    this.slider.value = String(Math.round(((x(size) - LEFT) / (WIDTH - LEFT - RIGHT)) * STEPS));
    this.slider.setAttribute("aria-valuetext", `${percent(size)} of the edges, ${count(n)} of ${count(total)}, total variation ${reading.exact ? "" : "about "}${reading.tv.toFixed(3)}`);
    for (const chip of this.chips.children as unknown as Iterable<HTMLElement>) chip.setAttribute("aria-pressed", String(Number(chip.dataset.n) === n));
  }

  /** What stays where it is while the size moves: axes, landmarks, curves. */
  private marks(importance: string, palette: Palette): SVGElement[] {
    const { view, x, y } = this;
    const total = view.graph.n_edges;
    const text = (px: number, py: number, what: string, more: Record<string, string | number> = {}) =>
      s("text", { x: px, y: py, fill: palette.muted, "font-size": 10, ...more }, what);
    const marks: SVGElement[] = [];
    for (const tick of [0, 0.5, 1]) marks.push(text(LEFT - 6, y(tick) + 3, tick.toFixed(1), { "text-anchor": "end" }));
    marks.push(text(LEFT - 6, TOP - 13, "TV", { "text-anchor": "end" }));
    const every = Math.ceil(54 / (x(1) - x(0.1))); // decades between two labels, so that they do not touch
    for (let exponent = 0; exponent > -12; exponent -= every) {
      const size = 10 ** exponent;
      if (size < 1 / total) break;
      marks.push(s("line", { x1: x(size), x2: x(size), y1: y(0), y2: y(0) + 4, stroke: palette.muted }));
      marks.push(text(x(size), HEIGHT - 7, percent(size), { "text-anchor": exponent === 0 ? "end" : "middle" }));
    }
    marks.push(s("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(0), y2: y(0), stroke: palette.muted }));
    marks.push(s("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(0.1), y2: y(0.1), stroke: palette.muted, "stroke-width": 0.6 }));
    for (const [name, size] of Object.entries(view.graph.landmarks)) {
      marks.push(
        s("line", { x1: x(size), x2: x(size), y1: TOP - 4, y2: y(0), stroke: palette.muted, "stroke-dasharray": "2 3" },
          s("title", {}, `${percent(size)}: ${LANDMARK_TEXT[name] ?? name}`)),
        text(x(size) + (name === "residual_chain" ? -2 : 2), TOP - 10, LANDMARKS[name] ?? name, { "text-anchor": name === "residual_chain" ? "end" : "start", "font-size": 9 }),
      );
    }
    const path = line<{ size: number; tv: number }>((p) => x(Math.max(p.size, 1 / total)), (p) => y(p.tv));
    for (const [kind, dash] of [["random", "1 3"], ["inverse", "5 3"]]) {
      const points = (view.baselines[importance]?.[kind] ?? []).filter((p) => p.size * total >= 1);
      if (points.length)
        marks.push(s("path", { d: path(points)!, fill: "none", stroke: palette.muted, "stroke-dasharray": dash, "stroke-width": 1.2 }, s("title", {}, kind === "random" ? "a random connected subgraph of the same size" : "everything but the trace")));
    }
    view.importances.forEach((name, index) => {
      const own = name === importance;
      const colour = seriesColour(index, palette);
      const points = view.curves[name].filter((p) => p.n_edges > 0);
      marks.push(s("path", { d: path(points)!, fill: "none", stroke: colour, "stroke-width": own ? 2.2 : 1.1, "stroke-opacity": own ? 1 : 0.75 }, s("title", {}, `traces by ${name}`)));
      if (own) for (const p of points) marks.push(s("circle", { cx: x(Math.max(p.size, 1 / total)), cy: y(p.tv), r: 2, fill: colour }));
      const at = view.density[name].size_at;
      if (at !== null) marks.push(s("path", { d: `M${x(at)} ${y(0.1)}l-4.5 -8h9z`, fill: colour }, s("title", {}, `TV stays at most 0.1 from ${percent(at)} on, by ${name}`)));
    });
    return marks;
  }

  private buildChips(importance: string): void {
    const { view } = this;
    const total = view.graph.n_edges;
    const { size_at: at, faithful_at: faithful } = view.density[importance];
    const marks: [string, number, string][] = [
      ...Object.entries(view.graph.landmarks).map(([name, size]): [string, number, string] => [name === "residual_chain" ? "residual chain" : "with its MLPs", Math.round(size * total), LANDMARK_TEXT[name] ?? ""]),
      ...(at === null ? [] : [["TV ≤ 0.1", Math.round(at * total), "the prediction holds from here on"] as [string, number, string]]),
      ...(faithful ? [["target kept", Math.round(faithful * total), "faithfulness stays within 0.1 of 1 from here on"] as [string, number, string]] : []),
      ["everything", total, "the model itself"],
    ];
    this.chips.replaceChildren(...marks.map(([label, n, title]) => {
      const chip = h("button", { type: "button", title, onclick: () => this.onSize(n) }, `${label} ${percent(n / total)}`);
      chip.dataset.n = String(n);
      return chip;
    }));
  }
}

// One trace on the screen: a canvas with zoom, pan, hover, click, and a cursor for the keyboard.

import { select } from "d3-selection";
import { zoom, zoomIdentity, type ZoomBehavior, type ZoomTransform } from "d3-zoom";
import { h } from "./dom";
import type { Palette } from "./palette";
import type { View } from "./payload";
import { Scene, type Filter, type Place, type Transform } from "./scene";
import { CanvasSurface, SvgSurface } from "./surface";

export interface GraphInput {
  importance: string;
  n: number;
  filter: Filter;
  palette: Palette;
  selected: Place | null;
  component: [number, number, number] | null;
  shared?: (edge: number) => boolean;
}

export interface GraphEvents {
  select(place: Place | null): void;
  hover(place: Place | null, x: number, y: number): void;
  moved(transform: Transform): void;
  key(event: KeyboardEvent): boolean; // whether the page took it
  say(text: string): void;
  describe(place: Place): string;
}

// Edges drawn while things move: the most, and the fewest on a machine that does not keep up 30 frames a second.
const MOVING_LIMIT = 6_000;
const LEAST_LIMIT = 600;
const FRAME_MS = 1000 / 30;
const FADE_MS = 700;

export class Graph {
  readonly element: HTMLElement;
  readonly canvas: HTMLCanvasElement;
  readonly scene: Scene;
  cursor: Place | null = null;
  private input!: GraphInput;
  private hovered: Place | null = null;
  private transform: ZoomTransform = zoomIdentity;
  private behaviour: ZoomBehavior<HTMLCanvasElement, unknown>;
  private frame = 0;
  private moving = 0;
  private idle = 0;
  private limit = MOVING_LIMIT;
  private lastFrame = 0;
  private grew: { from: number; to: number; at: number } | null = null;
  private edgeAt = -1; // of the edges at the cursor
  private observer: ResizeObserver;
  private wanted: Transform | null;
  private placed = false; // whether it was given its size and place
  frames = 0; // drawn so far
  atRest = false; // whether the last frame drew everything that can be seen

  constructor(readonly view: View, label: string, private events: GraphEvents, zoomedTo: Transform | null) {
    this.scene = new Scene(view);
    this.wanted = zoomedTo;
    this.canvas = h("canvas", {
      tabIndex: 0, role: "application", "aria-label": label, "aria-roledescription": "trace graph", "aria-describedby": "keys",
    });
    this.element = h("div", { class: "graph" }, this.canvas);
    this.behaviour = zoom<HTMLCanvasElement, unknown>()
      .filter((event) => (event.type === "wheel" ? !event.shiftKey : !event.button && !event.ctrlKey))
      .on("zoom", (event) => {
        this.transform = event.transform;
        this.move();
        if (event.sourceEvent) this.events.moved(this.transform);
      });
    select(this.canvas).call(this.behaviour).on("dblclick.zoom", null);
    this.canvas.addEventListener("wheel", (event) => {
      if (event.shiftKey) {
        event.preventDefault();
        this.pan(-(event.deltaX || event.deltaY), 0);
      }
    }, { passive: false });
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => this.setHover(null, 0, 0));
    this.canvas.addEventListener("click", (event) => {
      const place = this.pickAt(event);
      if (place && !("edge" in place)) this.cursor = place;
      this.events.select(place);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => {
      this.cursor ??= { row: this.scene.rows - 1, token: view.nTokens - 1 };
      this.schedule();
      this.events.say(this.events.describe(this.cursor));
    });
    this.canvas.addEventListener("blur", () => this.schedule());
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.element);
  }

  destroy(): void {
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.idle);
  }

  update(input: GraphInput): void {
    const before = this.input;
    this.input = input;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (before && before.importance === input.importance && input.n > before.n && !still)
      this.grew = { from: before.n, to: input.n, at: performance.now() };
    else if (before && input.n < before.n) this.grew = null;
    if (before && before.n !== input.n) this.move();
    else this.schedule();
  }

  resize(): void {
    const { clientWidth, clientHeight } = this.element;
    if (!clientWidth || !clientHeight) return;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = clientWidth * ratio;
    this.canvas.height = clientHeight * ratio;
    this.scene.resize(clientWidth, clientHeight);
    const { worldWidth, worldHeight } = this.scene;
    this.behaviour
      .extent([[0, 0], [clientWidth, clientHeight]])
      .translateExtent([[0, 0], [Math.max(worldWidth, clientWidth), Math.max(worldHeight, clientHeight)]])
      .scaleExtent([Math.min(1, clientWidth / worldWidth), 16]);
    this.setTransform(this.placed ? this.transform : (this.wanted ?? this.home()));
    this.placed = true;
    cancelAnimationFrame(this.frame);
    this.draw(); // at once: a canvas of a new size is black until it is drawn
  }

  /** The output in sight. */
  private home(): Transform {
    return { k: 1, x: Math.min(0, this.scene.width - this.scene.worldWidth), y: 0 };
  }

  reset(): void {
    this.setTransform(this.home());
    this.events.moved(this.transform);
  }

  /** The whole text in sight. */
  fit(): void {
    const k = Math.min(1, this.scene.width / this.scene.worldWidth);
    this.setTransform({ k, x: 0, y: 0 });
    this.events.moved(this.transform);
  }

  zoomBy(factor: number): void {
    select(this.canvas).call(this.behaviour.scaleBy, factor);
    this.events.moved(this.transform);
  }

  pan(dx: number, dy: number): void {
    select(this.canvas).call(this.behaviour.translateBy, dx / this.transform.k, dy / this.transform.k);
    this.events.moved(this.transform);
  }

  setTransform(t: Transform): void {
    select(this.canvas).call(this.behaviour.transform, zoomIdentity.translate(t.x, t.y).scale(t.k));
  }

  get drawnEdges(): number {
    return this.scene.drawnCount;
  }

  private move(): void {
    this.moving = performance.now();
    clearTimeout(this.idle);
    this.idle = window.setTimeout(() => this.schedule(), 140);
    this.schedule();
  }

  schedule(): void {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
  }

  private draw(): void {
    this.frame = 0;
    if (!this.input || !this.placed) return;
    const context = this.canvas.getContext("2d", { alpha: false })!;
    const ratio = this.canvas.width / this.scene.width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const now = performance.now();
    const moving = now - this.moving < 120;
    const gap = now - this.lastFrame;
    this.lastFrame = now;
    if (moving && gap < 1000) {
      if (gap > 1.1 * FRAME_MS) this.limit = Math.max(LEAST_LIMIT, this.limit * 0.7);
      else if (gap < 0.7 * FRAME_MS) this.limit = Math.min(MOVING_LIMIT, this.limit * 1.1);
    }
    const { importance, n, filter, palette, selected, component, shared } = this.input;
    const grew = this.grew && now - this.grew.at < FADE_MS ? this.grew : null;
    this.scene.draw(new CanvasSurface(context), this.transform, palette, importance, n, filter, {
      limit: moving ? this.limit : undefined,
      fresh: grew ? [grew.from, grew.to] : undefined,
      hover: this.hovered, selected, component, shared,
      cursor: this.focused() ? this.cursor : null,
    });
    this.frames++;
    this.atRest = !moving;
    if (grew) this.schedule();
  }

  private focused(): boolean {
    return (this.canvas.getRootNode() as ShadowRoot | Document).activeElement === this.canvas;
  }

  private pickAt(event: MouseEvent): Place | null {
    const box = this.canvas.getBoundingClientRect();
    return this.scene.pick(event.clientX - box.left, event.clientY - box.top, this.transform);
  }

  private hover(event: PointerEvent): void {
    if (event.buttons) return;
    this.setHover(this.pickAt(event), event.clientX, event.clientY);
  }

  private setHover(place: Place | null, x: number, y: number): void {
    const same = JSON.stringify(place) === JSON.stringify(this.hovered);
    this.hovered = place;
    this.canvas.style.cursor = place ? "pointer" : "grab";
    if (!same) this.schedule();
    this.events.hover(place, x, y);
  }

  /** Where a node is on the screen, in the canvas. Tests and the keyboard use it. */
  at(row: number, token: number): [number, number] {
    return [this.scene.x(token, this.transform), this.scene.y(row, this.transform)];
  }

  private key(event: KeyboardEvent): void {
    const arrows: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
    const step = arrows[event.key];
    if (step && !event.ctrlKey && !event.altKey && !event.metaKey) {
      event.preventDefault();
      if (event.shiftKey) return this.pan(-80 * step[1], 80 * step[0]);
      const now = this.cursor && !("edge" in this.cursor) ? this.cursor : { row: this.scene.rows - 1, token: this.view.nTokens - 1 };
      this.cursor = {
        row: Math.max(0, Math.min(this.scene.rows - 1, now.row + step[0])),
        token: Math.max(0, Math.min(this.view.nTokens - 1, now.token + step[1])),
      };
      this.edgeAt = -1;
      this.show(this.cursor);
      this.schedule();
      this.events.say(this.events.describe(this.cursor));
      return;
    }
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const actions: Record<string, () => void> = {
      "+": () => this.zoomBy(1.3), "=": () => this.zoomBy(1.3), "-": () => this.zoomBy(1 / 1.3), "0": () => this.reset(), f: () => this.fit(),
      Enter: () => this.events.select(this.cursor), " ": () => this.events.select(this.cursor),
      e: () => this.nextEdge(1), E: () => this.nextEdge(-1), Escape: () => this.events.select(null),
    };
    const action = actions[event.key];
    if (action) {
      event.preventDefault();
      action();
    } else if (this.events.key(event)) event.preventDefault();
  }

  /** Bring a node into sight. */
  private show(place: { row: number; token: number }): void {
    const [x, y] = this.at(place.row, place.token);
    const dx = x < 100 ? 100 - x : x > this.scene.width - 50 ? this.scene.width - 50 - x : 0;
    const dy = y < 30 ? 30 - y : y > this.scene.height - 100 ? this.scene.height - 100 - y : 0;
    if (dx || dy) this.pan(dx, dy);
  }

  /** The edges at the cursor, most important first, one after the other. */
  private nextEdge(step: number): void {
    const { cursor, view } = this;
    const edges = view.edges;
    if (!cursor || "edge" in cursor || !edges) return;
    const own: number[] = [];
    for (let d = 0; d < this.scene.drawnCount; d++) {
      const i = this.scene.drawn[d];
      if ((edges.level[i] + 1 === cursor.row && edges.target[i] === cursor.token) || (edges.level[i] === cursor.row && edges.source[i] === cursor.token)) own.push(i);
    }
    if (!own.length) return this.events.say("No edge is on at this node.");
    this.edgeAt = this.edgeAt < 0 ? (step > 0 ? 0 : own.length - 1) : (this.edgeAt + step + own.length) % own.length;
    this.events.select({ edge: edges.edge[own[this.edgeAt]] });
  }

  private render(surface: CanvasSurface | SvgSurface, palette: Palette): void {
    const { importance, n, filter, selected, component, shared } = this.input;
    this.scene.draw(surface, this.transform, palette, importance, n, filter, { selected, component, shared });
  }

  toSvg(): string {
    const surface = new SvgSurface(this.scene.width, this.scene.height);
    this.render(surface, this.input.palette);
    return surface.toString();
  }

  toPng(): Promise<Blob> {
    const canvas = document.createElement("canvas");
    canvas.width = 2 * this.scene.width;
    canvas.height = 2 * this.scene.height;
    const context = canvas.getContext("2d", { alpha: false })!;
    context.scale(2, 2);
    this.render(new CanvasSurface(context), this.input.palette);
    return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture could not be made"))), "image/png"));
  }
}

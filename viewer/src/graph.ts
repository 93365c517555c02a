// One trace on the screen: a canvas with zoom, pan, hover, click, and a cursor for the keyboard.

import { bandName } from "./bands";
import { Camera, HOME, type Zoom } from "./camera";
import { h } from "./dom";
import { listen } from "./gestures";
import { SmallMap } from "./map";
import type { View } from "./payload";
import { Scene, type Drawing, type Place } from "./scene";
import { CanvasSurface, SvgSurface } from "./surface";

export interface GraphInput extends Drawing {
  unfolded: ReadonlySet<number>; // layers that are not folded into a band
}

export interface GraphEvents {
  select(place: Place | null): void;
  hover(place: Place | null, x: number, y: number): void;
  moved(zoom: Zoom): void;
  laidOut(): void; // it has another size, or other bands
  fold(layers: readonly number[], open: boolean): void;
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
  readonly camera = new Camera();
  cursor: Place | null = null;
  private input!: GraphInput;
  private hovered: Place | null = null;
  private map: SmallMap;
  private frame = 0;
  private moving = -Infinity; // when it last moved
  private idle = 0;
  private limit = MOVING_LIMIT;
  private lastFrame = 0;
  private grew: { from: number; to: number; at: number } | null = null;
  private edgeAt = -1; // of the edges at the cursor
  private observer: ResizeObserver;
  private placed = false; // whether it has its size
  frames = 0; // drawn so far
  atRest = false; // whether the last frame drew everything that can be seen

  constructor(readonly view: View, label: string, private events: GraphEvents, zoom: Zoom | null) {
    this.scene = new Scene(view);
    if (zoom) this.camera.zoom = zoom;
    this.canvas = h("canvas", {
      tabIndex: 0, role: "application", "aria-label": label, "aria-roledescription": "trace graph", "aria-describedby": "keys",
    });
    const moved = () => {
      this.move();
      this.events.moved(this.camera.zoom);
    };
    this.map = new SmallMap(this.scene, this.camera, moved);
    this.element = h("div", { class: "graph" }, this.canvas, this.map.element);
    listen(this.canvas, this.camera, moved);
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => this.setHover(null, 0, 0));
    this.canvas.addEventListener("click", (event) => {
      const band = this.scene.bandAt(...this.pointOf(event), this.camera.transform);
      if (band) return this.events.fold(band.layers, !band.open);
      const place = this.pickAt(event);
      if (place && !("edge" in place)) this.cursor = place;
      this.setHover(null, 0, 0); // the details say what the hint did
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
    this.map.expire();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (before && before.importance === input.importance && input.n > before.n && !still)
      this.grew = { from: before.n, to: input.n, at: performance.now() };
    else if (before && input.n < before.n) this.grew = null;
    if (before && before.unfolded !== input.unfolded) this.layOut();
    if (before && before.n !== input.n) this.move();
    else this.schedule();
  }

  resize(): void {
    const { clientWidth, clientHeight } = this.element;
    if (!clientWidth || !clientHeight || !this.input) return;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = clientWidth * ratio;
    this.canvas.height = clientHeight * ratio;
    this.placed = true;
    this.layOut();
    cancelAnimationFrame(this.frame);
    this.draw(); // at once: a canvas of a new size is black until it is drawn
  }

  private layOut(): void {
    const { scene } = this;
    scene.resize(this.element.clientWidth, this.element.clientHeight, this.input.unfolded);
    this.camera.fit(scene.plot, scene.columnWidth, scene.rowHeight);
    this.map.expire();
    this.touch();
    this.events.laidOut();
  }

  /** The whole graph in sight. */
  fit(): void {
    this.show(HOME);
    this.events.moved(this.camera.zoom);
  }

  zoomBy(factor: number): void {
    const { left, top, width, height } = this.scene.plot;
    this.camera.zoomAt(factor, left + width / 2, top + height / 2);
    this.move();
    this.events.moved(this.camera.zoom);
  }

  pan(dx: number, dy: number): void {
    this.camera.pan(dx, dy);
    this.move();
    this.events.moved(this.camera.zoom);
  }

  show(zoom: Zoom): void {
    this.camera.show(zoom);
    this.move();
  }

  /** Whether the bands of layers open and fold. */
  get folds(): boolean {
    return this.scene.bands.some((band) => band.layers.length > 1);
  }

  get drawnEdges(): number {
    return this.scene.drawnCount;
  }

  /** A finger scrolls the page while all of the graph is in sight, and moves the graph otherwise. */
  private touch(): void {
    this.canvas.style.touchAction = this.camera.inside ? "none" : "pan-y";
  }

  private move(): void {
    this.touch();
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
    const grew = this.grew && now - this.grew.at < FADE_MS ? this.grew : null;
    this.scene.draw(new CanvasSurface(context), this.camera.transform, this.input, {
      limit: moving ? this.limit : undefined,
      fresh: grew ? [grew.from, grew.to] : undefined,
      hover: this.hovered,
      cursor: this.focused() ? this.cursor : null,
    });
    this.map.update(this.scene, this.input, this.input.unfolded, !moving);
    this.frames++;
    this.atRest = !moving;
    if (grew) this.schedule();
  }

  private focused(): boolean {
    return (this.canvas.getRootNode() as ShadowRoot | Document).activeElement === this.canvas;
  }

  private pointOf(event: MouseEvent): [number, number] {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  private pickAt(event: MouseEvent): Place | null {
    return this.scene.pick(...this.pointOf(event), this.camera.transform);
  }

  private hover(event: PointerEvent): void {
    if (event.buttons) return;
    const band = this.scene.bandAt(...this.pointOf(event), this.camera.transform);
    this.setHover(band ? null : this.pickAt(event), event.clientX, event.clientY);
    if (band) this.canvas.style.cursor = "pointer";
    this.canvas.title = band ? `Layers ${bandName(band)}: click to ${band.open ? "fold" : "open"}` : "";
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
    const t = this.camera.transform;
    return [this.scene.x(token, t), this.scene.y(row, t)];
  }

  /** Where a place is in the window. */
  placeOf(place: Place): [number, number] | null {
    const point = this.placed ? this.scene.at(place, this.camera.transform) : null;
    const box = this.canvas.getBoundingClientRect();
    const held = (value: number, most: number) => Math.max(0, Math.min(most, value));
    return point && [box.left + held(point[0], box.width), box.top + held(point[1], box.height)];
  }

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const arrows: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
    const step = arrows[event.key];
    if (step) {
      event.preventDefault();
      if (event.shiftKey) return this.pan(-80 * step[1], 80 * step[0]);
      const now = this.cursor && !("edge" in this.cursor) ? this.cursor : { row: this.scene.rows - 1, token: this.view.nTokens - 1 };
      this.cursor = {
        row: step[0] ? this.scene.nextRow(now.row, step[0]) : now.row,
        token: Math.max(0, Math.min(this.view.nTokens - 1, now.token + step[1])),
      };
      this.edgeAt = -1;
      this.bringIntoSight(this.cursor);
      this.schedule();
      this.events.say(this.events.describe(this.cursor));
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.events.select(this.cursor);
    }
  }

  /** Open or fold the band of layers at the cursor; without one, the last. */
  foldAtCursor(): void {
    const row = this.cursor && !("edge" in this.cursor) ? this.cursor.row : this.scene.rows - 1;
    const band = this.scene.bands.find(({ from, to }) => row > from && row <= to) ?? this.scene.bands[0];
    if (!band || band.layers.length < 2) return this.events.say("All layers are open.");
    this.events.fold(band.layers, !band.open);
    this.events.say(`Layers ${bandName(band)} ${band.open ? "folded" : "opened"}.`);
  }

  private bringIntoSight(place: { row: number; token: number }): void {
    const [x, y] = this.at(place.row, place.token);
    const { left, top, width, height } = this.scene.plot;
    const into = (v: number, from: number, to: number) => (v < from ? from - v : v > to ? to - v : 0);
    const [dx, dy] = [into(x, left + 14, left + width - 14), into(y, top + 8, top + height - 8)];
    if ((dx || dy) && this.camera.inside) this.pan(dx, dy);
  }

  /** The edges at the cursor, most important first, one after the other. */
  nextEdge(step: number): void {
    const { view } = this;
    const edges = view.edges;
    const cursor = (this.cursor ??= { row: this.scene.rows - 1, token: view.nTokens - 1 });
    if ("edge" in cursor || !edges) return;
    const own: number[] = [];
    for (let d = 0; d < this.scene.drawnCount; d++) {
      const i = this.scene.drawn[d];
      if ((edges.level[i] + 1 === cursor.row && edges.target[i] === cursor.token) || (edges.level[i] === cursor.row && edges.source[i] === cursor.token)) own.push(i);
    }
    if (!own.length) return this.events.say("No edge is on at this node.");
    this.edgeAt = this.edgeAt < 0 ? (step > 0 ? 0 : own.length - 1) : (this.edgeAt + step + own.length) % own.length;
    this.events.select({ edge: edges.edge[own[this.edgeAt]] });
  }

  private render(surface: CanvasSurface | SvgSurface): void {
    this.scene.draw(surface, this.camera.transform, this.input);
  }

  toSvg(): string {
    const surface = new SvgSurface(this.scene.width, this.scene.height);
    this.render(surface);
    return surface.toString();
  }

  toPng(): Promise<Blob> {
    const canvas = document.createElement("canvas");
    canvas.width = 2 * this.scene.width;
    canvas.height = 2 * this.scene.height;
    const context = canvas.getContext("2d", { alpha: false })!;
    context.scale(2, 2);
    this.render(new CanvasSurface(context));
    return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture could not be made"))), "image/png"));
  }
}

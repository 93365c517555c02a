// A small map of the whole graph, which shows what part of it is in sight. It is there only where some of it is not.

import { Camera, HOME, type Transform } from "./camera";
import { h } from "./dom";
import { Scene, type Drawing } from "./scene";
import { CanvasSurface } from "./surface";

const WIDTH = 148;
const LINES = 2_500;
const WHOLE: Transform = { kx: 1, ky: 1, cx: HOME[1], cy: HOME[2] };

export class SmallMap {
  private canvas = h("canvas", { "aria-hidden": "true" });
  private frame = h("div", { class: "seen" });
  readonly element = h("div", { class: "map", title: "The whole graph; click to go there", hidden: true }, this.canvas, this.frame);
  private scene: Scene;
  private stale = true;

  constructor(main: Scene, private camera: Camera, moved: () => void) {
    this.scene = new Scene(main.view);
    const go = (event: PointerEvent) => {
      const box = this.element.getBoundingClientRect();
      camera.show([camera.zoom[0], (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
      moved();
    };
    this.element.addEventListener("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      go(event);
    });
    this.element.addEventListener("pointermove", (event) => event.buttons && go(event));
  }

  /** What it shows has changed. */
  expire(): void {
    this.stale = true;
  }

  /** Show what is in sight; the picture of the whole is drawn anew only at rest. */
  update(main: Scene, what: Drawing, unfolded: ReadonlySet<number>, atRest: boolean): void {
    const { camera, element, frame, scene } = this;
    element.hidden = !camera.inside;
    if (element.hidden) return;
    const { plot } = main;
    const height = Math.round(Math.min(WIDTH, Math.max(48, (WIDTH * plot.height) / plot.width)));
    const { kx, ky, cx, cy } = camera.transform;
    element.style.width = `${WIDTH}px`;
    element.style.height = `${height}px`;
    frame.style.left = `${100 * (cx - 0.5 / kx)}%`;
    frame.style.top = `${100 * (cy - 0.5 / ky)}%`;
    frame.style.width = `${100 / kx}%`;
    frame.style.height = `${100 / ky}%`;
    if (!this.stale || !atRest) return;
    this.stale = false;
    scene.resize(main.width, main.height, unfolded);
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = WIDTH * ratio;
    this.canvas.height = height * ratio;
    const context = this.canvas.getContext("2d", { alpha: false })!;
    const [sx, sy] = [(WIDTH * ratio) / plot.width, (height * ratio) / plot.height];
    context.setTransform(sx, 0, 0, sy, -plot.left * sx, -plot.top * sy);
    scene.draw(new CanvasSurface(context), WHOLE, { ...what, selected: null }, { limit: LINES, bare: true });
  }
}

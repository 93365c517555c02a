// Which part of a graph is in sight: how much it is magnified, and which of its points is in the middle.

/** The magnification, and the point in the middle as shares of the graph's width and height. */
export type Zoom = readonly [number, number, number];

export const HOME: Zoom = [1, 0.5, 0.5]; // the whole graph

/** How a scene is seen: magnified by kx and ky, with the point (cx, cy) in the middle of its plot. */
export interface Transform {
  kx: number;
  ky: number;
  cx: number;
  cy: number;
}

/** The part of the screen that shows the graph, without its labels. */
export interface Plot {
  left: number;
  top: number;
  width: number;
  height: number;
}

const NARROW = 24; // px a token: below it, magnifying makes room for tokens first
const WIDE = 120; // px a token and px half a layer at the largest magnification
const TALL = 60;

export class Camera {
  zoom: Zoom = HOME;
  private plot: Plot = { left: 0, top: 0, width: 1, height: 1 };
  private column = NARROW;
  private row = TALL;

  /** Fit to a plot in which a token has so many pixels, and half a layer so many, with nothing magnified. */
  fit(plot: Plot, column: number, row: number): void {
    Object.assign(this, { plot, column, row });
    this.show(this.zoom);
  }

  get transform(): Transform {
    const [k, cx, cy] = this.zoom;
    return { kx: k, ky: this.tall(k), cx, cy };
  }

  /** Whether there is more than is in sight. */
  get inside(): boolean {
    return this.zoom[0] > 1.001;
  }

  show([k, cx, cy]: Zoom): void {
    const most = Math.max(8, WIDE / this.column, (TALL / this.row) * Math.max(1, NARROW / this.column));
    const to = Math.min(most, Math.max(1, k));
    const held = (c: number, by: number) => Math.min(1 - 0.5 / by, Math.max(0.5 / by, c));
    this.zoom = [to, held(cx, to), held(cy, this.tall(to))];
  }

  /** Magnify by a factor, about a point of the screen. */
  zoomAt(factor: number, px: number, py: number): void {
    const { kx, ky, cx, cy } = this.transform;
    const { left, top, width, height } = this.plot;
    const [sx, sy] = [(px - left) / width - 0.5, (py - top) / height - 0.5];
    const k = this.limited(kx * factor);
    this.show([k, cx + sx / kx - sx / k, cy + sy / ky - sy / this.tall(k)]);
  }

  pan(dx: number, dy: number): void {
    const { kx, ky, cx, cy } = this.transform;
    this.show([kx, cx - dx / (kx * this.plot.width), cy - dy / (ky * this.plot.height)]);
  }

  private limited(k: number): number {
    const before = this.zoom;
    this.show([k, before[1], before[2]]);
    const [to] = this.zoom;
    this.zoom = before;
    return to;
  }

  /** The vertical magnification. Of a long text the columns grow first, until a token's name has room. */
  private tall(k: number): number {
    return Math.max(1, k * Math.min(1, this.column / NARROW));
  }
}

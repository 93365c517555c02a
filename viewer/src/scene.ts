// Where nodes and edges are, which are on, and how they are drawn. Tokens run to the right, layers upwards.
//
// Forms: a residual edge is a straight line; an MLP bulges to the right and carries a square; attention is a curve from its
// source to its target, one colour a head.

import type { Edges, View } from "./payload";
import { visible } from "./dom";
import { keptIndex, kindOf } from "./names";
import { headColour, type Palette } from "./palette";
import type { PathBuilder, Surface } from "./surface";

export const MARGIN = { left: 74, right: 28, top: 40, bottom: 78 };
const DRAW_LIMIT = 40_000; // edges drawn at rest; fewer while things move
const WIDTHS = [0.9, 1.5, 2.3, 3.2]; // by strength
const ALPHAS = [0.55, 0.8, 1, 1];

export interface Transform {
  k: number;
  x: number;
  y: number;
}

export interface Filter {
  kinds: ReadonlySet<string>;
  layers: readonly [number, number] | null;
  heads: ReadonlySet<number> | null;
  hidden: ReadonlySet<number>;
  pinned: ReadonlySet<number>;
  hiddenComponents: ReadonlySet<string>;
}

export type Place = { edge: number } | { row: number; token: number };

export class Scene {
  readonly rows: number;
  columnWidth = 60;
  rowHeight = 30;
  width = 800;
  height = 600;
  drawn = new Int32Array(0); // kept edges on the screen, most important first
  drawnCount = 0;
  private heads: number;

  constructor(readonly view: View) {
    this.rows = view.levels.length + 1;
    this.heads = Math.max(1, ...view.levels.map((level) => level.n_heads));
  }

  resize(width: number, height: number): void {
    this.width = width;
    this.height = height;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    this.columnWidth = Math.min(110, Math.max(30, inner.width / Math.max(this.view.nTokens, 1)));
    this.rowHeight = Math.max(16, inner.height / Math.max(this.rows - 1, 1));
  }

  get worldWidth(): number {
    return MARGIN.left + MARGIN.right + this.columnWidth * this.view.nTokens;
  }

  get worldHeight(): number {
    return MARGIN.top + MARGIN.bottom + this.rowHeight * (this.rows - 1);
  }

  x(token: number, t: Transform): number {
    return t.x + t.k * (MARGIN.left + this.columnWidth * (token + 0.5));
  }

  y(row: number, t: Transform): number {
    const world = MARGIN.top + this.rowHeight * (this.rows - 1 - row);
    return t.k < 1 ? world + Math.min(0, t.y) : t.y + t.k * world;
  }

  rowLabel(row: number): string {
    if (row === 0) return "input";
    const level = this.view.levels[row - 1];
    const part = level.mlp && level.n_heads ? "" : level.mlp ? " MLP" : " attn";
    return `${level.layer}${part}`;
  }

  tokenLabel(token: number): string {
    return visible(this.view.input.tokens[token] ?? "");
  }

  /** Draw; `comparison` tells of a kept edge whether the other side has it too. */
  draw(
    surface: Surface, t: Transform, palette: Palette, importance: string, n: number, filter: Filter,
    options: { limit?: number; fresh?: [number, number]; hover?: Place | null; selected?: Place | null; cursor?: Place | null; component?: [number, number, number] | null; shared?: (edge: number) => boolean } = {},
  ): void {
    const { view } = this;
    surface.box(0, 0, this.width, this.height, palette.ground);
    const plot = { x: MARGIN.left - 8, y: 0, width: this.width - MARGIN.left + 8, height: this.height - MARGIN.bottom + 12 };
    surface.clip(plot.x, plot.y, plot.width, plot.height);
    this.drawGrid(surface, t, palette);
    const edges = view.edges;
    if (edges) this.drawEdges(surface, edges, t, palette, importance, n, filter, options);
    surface.unclip();
    this.drawLabels(surface, t, palette);
  }

  private visibleTokens(t: Transform): [number, number] {
    const step = t.k * this.columnWidth;
    const first = Math.floor((MARGIN.left - t.x - t.k * MARGIN.left) / step) - 1;
    const last = Math.ceil((this.width - t.x - t.k * MARGIN.left) / step) + 1;
    return [Math.max(0, first), Math.min(this.view.nTokens - 1, last)];
  }

  private drawGrid(surface: Surface, t: Transform, palette: Palette): void {
    const [first, last] = this.visibleTokens(t);
    const every = Math.max(1, Math.ceil(5 / (t.k * this.columnWidth)));
    const points: [number, number][] = [];
    for (let row = 0; row < this.rows; row++)
      for (let token = first; token <= last; token += every) points.push([this.x(token, t), this.y(row, t)]);
    surface.squares(points, 1, palette.faint);
  }

  private drawEdges(
    surface: Surface, edges: Edges, t: Transform, palette: Palette, importance: string, n: number, filter: Filter,
    options: { limit?: number; fresh?: [number, number]; hover?: Place | null; selected?: Place | null; cursor?: Place | null; component?: [number, number, number] | null; shared?: (edge: number) => boolean },
  ): void {
    const order = edges.orders[importance];
    const [first, last] = this.visibleTokens(t);
    const limit = options.limit ?? DRAW_LIMIT;
    const passes = this.passes(edges, filter);
    if (this.drawn.length < edges.kept) this.drawn = new Int32Array(edges.kept);
    let drawn = 0;
    const take = (i: number) => {
      if (drawn >= limit || edges.source[i] > last || edges.target[i] < first) return;
      this.drawn[drawn++] = i;
    };
    for (let j = 0; j < order.sorted.length && order.ranks[j] < n && drawn < limit; j++) {
      const i = order.sorted[j];
      if (passes(i) && !filter.hidden.has(edges.edge[i])) take(i);
    }
    if (filter.pinned.size)
      for (let i = 0; i < edges.kept; i++) if (filter.pinned.has(edges.edge[i]) && order.rank[i] >= n) take(i);
    this.drawnCount = drawn;

    if (options.fresh) {
      const [from, to] = options.fresh;
      surface.path(6, palette.accent, 0.28, (path) => {
        for (let d = 0; d < drawn; d++) {
          const rank = order.rank[this.drawn[d]];
          if (rank >= from && rank < to) this.trace(path, this.drawn[d], edges, t);
        }
      });
    }
    // few changes of style: edges of one colour and width are drawn together
    const scale = this.strengths(edges, importance);
    const groups = new Map<number, { colour: string; width: number; alpha: number; edges: number[] }>();
    const colours = Array.from({ length: this.heads }, (_, head) => headColour(head, this.heads, palette));
    const crowd = drawn > 4000 ? 0.45 : drawn > 1200 ? 0.65 : 0.9;
    for (let d = 0; d < drawn; d++) {
      const i = this.drawn[d];
      const strength = Math.min(WIDTHS.length - 1, Math.floor(scale(i) * WIDTHS.length));
      const residual = kindOf(this.view, edges.kind[i]) === "residual";
      const mlp = edges.head[i] < 0 && !residual;
      let colour = residual ? palette.residual : mlp ? palette.mlp : colours[edges.head[i]];
      let group = residual ? -1 : mlp ? -2 : edges.head[i];
      let alpha = residual ? 0.8 : crowd * ALPHAS[strength];
      if (options.shared) {
        const both = options.shared(i);
        colour = both ? palette.shared : palette.only;
        group = both ? -3 : -4;
        alpha = both ? 0.45 : 0.9;
      }
      const key = 4 * (group + 4) + strength;
      let own = groups.get(key);
      if (!own) groups.set(key, (own = { colour, width: WIDTHS[strength] * (residual ? 1.2 : 1) * Math.min(1.6, Math.max(0.7, Math.sqrt(t.k))), alpha, edges: [] }));
      own.edges.push(i);
    }
    // strongest last, on top
    const ordered = [...groups.entries()].sort(([a], [b]) => (a & 3) - (b & 3)).map(([, group]) => group);
    for (const { colour, width, alpha, edges: own } of ordered)
      surface.path(width, colour, alpha, (path) => {
        for (const i of own) this.trace(path, i, edges, t);
      });
    // squares on MLPs, dots on nodes that are reached
    const squares: [number, number][] = [];
    const nodes = new Set<number>();
    for (let d = 0; d < drawn; d++) {
      const i = this.drawn[d];
      const { nTokens } = this.view;
      nodes.add(edges.level[i] * nTokens + edges.source[i]).add((edges.level[i] + 1) * nTokens + edges.target[i]);
      if (edges.head[i] < 0 && kindOf(this.view, edges.kind[i]) !== "residual") squares.push(this.middle(i, edges, t));
    }
    const compact = t.k * this.columnWidth < 14;
    if (!compact) surface.squares(squares, Math.min(4, 0.12 * this.rowHeight * Math.max(1, t.k)), options.shared ? palette.shared : palette.mlp);
    const points: [number, number][] = [];
    for (const node of nodes) {
      const token = node % this.view.nTokens;
      if (token >= first && token <= last) points.push([this.x(token, t), this.y(Math.floor(node / this.view.nTokens), t)]);
    }
    if (compact) surface.squares(points, 1, palette.ink);
    else surface.dots(points, Math.min(4, 0.16 * this.rowHeight * Math.max(1, t.k)), palette.ink);
    const output: [number, number] = [this.x(this.view.nTokens - 1, t), this.y(this.rows - 1, t)];
    surface.dots([output], compact ? 3 : 5.5, palette.accent, palette.ground);

    const marked = (place: Place | null | undefined, width: number, colour: string) => {
      if (!place) return;
      if ("edge" in place) {
        const i = keptIndex(this.view, place.edge);
        if (i >= 0) surface.path(width, colour, 1, (path) => this.trace(path, i, edges, t));
        return;
      }
      surface.path(width * 0.6, colour, 0.9, (path) => {
        for (let d = 0; d < drawn; d++) {
          const i = this.drawn[d];
          const into = edges.level[i] + 1 === place.row && edges.target[i] === place.token;
          const from = edges.level[i] === place.row && edges.source[i] === place.token;
          if (into || from) this.trace(path, i, edges, t);
        }
      });
      surface.dots([[this.x(place.token, t), this.y(place.row, t)]], 7, "transparent", colour);
    };
    if (options.component) {
      const [level, kind, head] = options.component;
      surface.path(3.5, palette.accent, 0.8, (path) => {
        for (let d = 0; d < drawn; d++) {
          const i = this.drawn[d];
          if (edges.level[i] === level && edges.kind[i] === kind && edges.head[i] === head) this.trace(path, i, edges, t);
        }
      });
    }
    marked(options.hover, 4, palette.accent);
    marked(options.selected, 5, palette.accent);
    if (options.cursor && !("edge" in options.cursor)) {
      const { row, token } = options.cursor;
      const [cx, cy] = [this.x(token, t), this.y(row, t)];
      surface.path(2, palette.accent, 1, (path) => {
        path.moveTo(cx - 11, cy - 11);
        path.lineTo(cx + 11, cy - 11);
        path.lineTo(cx + 11, cy + 11);
        path.lineTo(cx - 11, cy + 11);
        path.lineTo(cx - 11, cy - 11);
      }, [3, 2]);
    }
  }

  /** Whether a kept edge passes the filter. */
  passes(edges: Edges, filter: Filter): (i: number) => boolean {
    const kinds = this.view.kinds.map((kind) => !filter.kinds.has(kind));
    const { layers, heads } = filter;
    const layerOf = this.view.levels.map((level) => level.layer);
    const off = new Set(filter.hiddenComponents);
    return (i) => {
      if (!kinds[edges.kind[i]]) return false;
      const layer = layerOf[edges.level[i]];
      if (layers && (layer < layers[0] || layer > layers[1])) return false;
      if (heads && edges.head[i] >= 0 && !heads.has(edges.head[i])) return false;
      return !(off.size && off.has(`${layer}/${this.view.kinds[edges.kind[i]]}/${edges.head[i]}`));
    };
  }

  private scaleCache = new Map<string, (i: number) => number>();

  /** An edge's strength in [0, 1): its importance among those kept, on a square-root scale of the largest. */
  private strengths(edges: Edges, importance: string): (i: number) => number {
    let scale = this.scaleCache.get(importance);
    if (!scale) {
      const values = edges.orders[importance].importance;
      const sorted = Float32Array.from(values).sort();
      const high = sorted[Math.floor(0.995 * (sorted.length - 1))] || 1;
      this.scaleCache.set(importance, (scale = (i) => Math.min(0.999, Math.sqrt(values[i] / high))));
    }
    return scale;
  }

  private trace(path: PathBuilder, i: number, edges: Edges, t: Transform): void {
    const [x0, y0, x1, y1, x2, y2, x3, y3] = this.curve(i, edges, t);
    path.moveTo(x0, y0);
    if (x1 === x0 && x2 === x0 && x3 === x0) path.lineTo(x3, y3);
    else path.bezierCurveTo(x1, y1, x2, y2, x3, y3);
  }

  /** The four control points of an edge. */
  private curve(i: number, edges: Edges, t: Transform): [number, number, number, number, number, number, number, number] {
    const row = edges.level[i];
    const head = edges.head[i];
    const y0 = this.y(row, t);
    const y3 = this.y(row + 1, t);
    const x0 = this.x(edges.source[i], t);
    if (head < 0) {
      if (kindOf(this.view, edges.kind[i]) === "residual") return [x0, y0, x0, y0, x0, y3, x0, y3];
      const bulge = Math.min(16, 0.3 * t.k * this.columnWidth);
      return [x0, y0, x0 + bulge, y0 + 0.3 * (y3 - y0), x0 + bulge, y0 + 0.7 * (y3 - y0), x0, y3];
    }
    const x3 = this.x(edges.target[i], t);
    const shift = (head - (this.heads - 1) / 2) * Math.min(2.4, (0.24 * t.k * this.columnWidth) / this.heads);
    if (edges.source[i] === edges.target[i]) {
      const bulge = Math.min(18, 0.3 * t.k * this.columnWidth) * (0.5 + (0.5 * (head + 1)) / this.heads);
      return [x0, y0, x0 - bulge, y0 + 0.3 * (y3 - y0), x0 - bulge, y0 + 0.7 * (y3 - y0), x0, y3];
    }
    const dx = x3 - x0;
    return [x0 + shift, y0, x0 + shift + 0.16 * dx, y0 + 0.46 * (y3 - y0), x0 + shift + 0.78 * dx, y0 + 0.66 * (y3 - y0), x3, y3];
  }

  private middle(i: number, edges: Edges, t: Transform): [number, number] {
    const [x0, y0, x1, , , , , y3] = this.curve(i, edges, t);
    return [x0 + 0.75 * (x1 - x0), (y0 + y3) / 2];
  }

  /** What is under the pointer: a node, or the nearest edge within a few pixels. */
  pick(px: number, py: number, t: Transform): Place | null {
    const { view } = this;
    if (px < MARGIN.left - 8 || py > this.height - MARGIN.bottom + 12) return null;
    const step = t.k * this.columnWidth;
    const token = Math.round((px - t.x - t.k * MARGIN.left) / step - 0.5);
    if (token >= 0 && token < view.nTokens && Math.abs(this.x(token, t) - px) < Math.min(9, step / 2))
      for (let row = 0; row < this.rows; row++) if (Math.abs(this.y(row, t) - py) < Math.min(7, this.rowHeight / 2.5)) return { row, token };
    const edges = view.edges;
    if (!edges) return null;
    let best = -1;
    let nearest = 6 * 6;
    for (let d = 0; d < this.drawnCount; d++) {
      const i = this.drawn[d];
      const [x0, y0, x1, y1, x2, y2, x3, y3] = this.curve(i, edges, t);
      if (py > y0 + 6 || py < y3 - 6) continue;
      if (px < Math.min(x0, x1, x3) - 6 || px > Math.max(x0, x1, x3) + 6) continue;
      for (let k = 0; k <= 24; k++) {
        const u = k / 24;
        const v = 1 - u;
        const dx = v * v * v * x0 + 3 * v * v * u * x1 + 3 * v * u * u * x2 + u * u * u * x3 - px;
        const dy = v * v * v * y0 + 3 * v * v * u * y1 + 3 * v * u * u * y2 + u * u * u * y3 - py;
        const distance = dx * dx + dy * dy;
        if (distance < nearest) [nearest, best] = [distance, i];
      }
    }
    return best < 0 ? null : { edge: edges.edge[best] };
  }

  private drawLabels(surface: Surface, t: Transform, palette: Palette): void {
    const bottom = this.height - MARGIN.bottom + 12;
    surface.clip(0, 0, this.width, bottom);
    let lastY = Infinity;
    for (let row = 0; row < this.rows; row++) {
      const y = this.y(row, t);
      if (y < 4 || y > bottom || lastY - y < 13) continue;
      surface.text(MARGIN.left - 14, y, this.rowLabel(row), palette.muted, { size: 11, align: "right" });
      lastY = y;
    }
    surface.unclip();
    const step = t.k * this.columnWidth;
    const [first, last] = this.visibleTokens(t);
    const flat = step >= 46;
    const every = Math.max(1, Math.ceil(15 / step));
    surface.clip(flat ? 0 : MARGIN.left - 40, bottom, this.width, MARGIN.bottom);
    for (let token = first; token <= last; token++) {
      if ((this.view.nTokens - 1 - token) % every) continue;
      const x = this.x(token, t);
      if (x < MARGIN.left - 8 || x > this.width) continue;
      const bold = token === this.view.nTokens - 1;
      if (flat) {
        const room = Math.max(3, Math.floor(step / 7.2));
        surface.text(x, bottom + 14, shorten(this.tokenLabel(token), room), palette.ink, { align: "center", bold });
        surface.text(x, bottom + 31, String(token), palette.muted, { size: 10, align: "center" });
      } else surface.text(x + 3, bottom + 6, shorten(this.tokenLabel(token), 11), palette.ink, { size: 11, align: "right", angle: -0.9, bold });
    }
    surface.unclip();
  }
}

function shorten(text: string, room: number): string {
  const characters = [...text];
  return characters.length <= room + 2 ? text : `${characters.slice(0, room).join("")}…\u2069`;
}

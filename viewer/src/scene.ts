// Where nodes and edges are, which are on, and how they are drawn. Tokens run to the right, layers upwards.
//
// Forms: a residual edge is a straight line; an MLP bulges to the right and carries a square; attention is a curve from its
// source to its target. In a folded band of layers an edge runs from the stream into the band to the stream out of it, and
// edges of one colour between the same tokens are drawn once.

import { bandName, bandsOf, rowPlaces, type Band } from "./bands";
import type { Plot, Transform } from "./camera";
import { coloursOf, headsOf, type Colouring } from "./colours";
import { visible } from "./dom";
import { keptIndex, kindOf, servesSink, SINKS } from "./names";
import type { Palette } from "./palette";
import type { Edges, View } from "./payload";
import { countBelow } from "./reading";
import type { PathBuilder, Surface } from "./surface";

const DRAW_LIMIT = 40_000; // edges drawn at rest; fewer while things move
const LOOKED_AT = 4; // edges that are looked at for each that may be drawn, while things move
const WIDEST_COLUMN = 120;
const FLAT_FROM = 46; // px a column, from which on the names of tokens lie flat
const WIDTHS = [0.9, 1.5, 2.3, 3.2]; // by strength
const ALPHAS = [0.55, 0.8, 1, 1];
const FEW = 500; // lines: the more there are, the paler the weak ones
const DIMMED = 0.16; // of what is beside the selection

export interface Filter {
  kinds: ReadonlySet<string>;
  layers: readonly [number, number] | null;
  heads: ReadonlySet<number> | null;
  hidden: ReadonlySet<number>;
  pinned: ReadonlySet<number>;
  hiddenComponents: ReadonlySet<string>;
}

export type Place = { edge: number } | { row: number; token: number };

/** Which edges are drawn, and how. */
export interface Drawing {
  importance: string;
  n: number;
  filter: Filter;
  palette: Palette;
  colouring: Colouring;
  selected: Place | null;
  component: readonly [number, number, number] | null; // level, kind, head
  shared?: (edge: number) => boolean; // in a comparison: whether the other side has a kept edge too
}

/** What a moment adds. */
export interface Marks {
  limit?: number;
  fresh?: [number, number]; // ranks that have just come on
  hover?: Place | null;
  cursor?: Place | null;
  bare?: boolean; // without labels
}

export class Scene {
  readonly rows: number;
  width = 800;
  height = 600;
  plot: Plot = { left: 0, top: 0, width: 1, height: 1 };
  columnWidth = 60;
  bands: Band[] = [];
  drawn = new Int32Array(0); // kept edges that are shown, most important first
  drawnCount = 0;
  lines = new Int32Array(0); // the edges that are drawn: of those that fall together, the most important
  lineCount = 0;
  private places = new Float64Array(0); // of rows, 0 at the top to 1 at the bottom
  private from = new Int32Array(0); // by level: the rows between which its edges are drawn
  private to = new Int32Array(0);
  private folded: boolean[] = []; // by level
  private shownRows: boolean[] = [];
  private heads: number;
  private sinks: ReadonlySet<number>;

  constructor(readonly view: View) {
    this.sinks = new Set(view.sinks?.map(({ token }) => token));
    this.rows = view.levels.length + 1;
    this.heads = headsOf(view);
  }

  resize(width: number, height: number, unfolded: ReadonlySet<number>): void {
    this.width = width;
    this.height = height;
    const left = width < 520 ? 52 : 70;
    const across = Math.max(60, width - left - (width < 520 ? 14 : 26));
    this.columnWidth = Math.min(WIDEST_COLUMN, across / Math.max(this.view.nTokens, 1));
    const foot = this.columnWidth < FLAT_FROM ? 84 : height < 420 ? 62 : 74; // slanted names of eleven letters take more
    const plot = { left, top: 16, width: across, height: Math.max(60, height - 16 - foot) };
    this.plot = plot;
    this.bands = bandsOf(this.view, plot.height, unfolded);
    this.places = rowPlaces(this.bands, plot.height);
    const { levels } = this.view;
    this.from = Int32Array.from(levels.keys());
    this.to = Int32Array.from(levels.keys(), (level) => level + 1);
    this.folded = levels.map(() => false);
    this.shownRows = Array(this.rows).fill(true);
    for (const band of this.bands) {
      if (band.open) continue;
      this.from.fill(band.from, band.from, band.to);
      this.to.fill(band.to, band.from, band.to);
      this.folded.fill(true, band.from, band.to);
      this.shownRows.fill(false, band.from + 1, band.to);
    }
  }

  /** Px half a layer where layers are drawn one by one, with nothing magnified; of a graph of folded bands, px a band. */
  get rowHeight(): number {
    const band = this.bands.find((b) => b.open) ?? this.bands[0];
    const steps = band?.open ? band.to - band.from : 1;
    return band ? ((this.places[band.from] - this.places[band.to]) * this.plot.height) / steps : 30;
  }

  x(token: number, t: Transform): number {
    const { left, width } = this.plot;
    const share = 0.5 + ((token + 0.5 - this.view.nTokens / 2) * this.columnWidth) / width;
    return left + width * (t.kx * (share - t.cx) + 0.5);
  }

  y(row: number, t: Transform): number {
    const { top, height } = this.plot;
    return top + height * (t.ky * (this.places[row] - t.cy) + 0.5);
  }

  private get bottom(): number {
    return this.plot.top + this.plot.height + 10;
  }

  /** The next row that is drawn. */
  nextRow(row: number, step: number): number {
    let next = row + step;
    while (this.shownRows[next] === false) next += step;
    return Math.max(0, Math.min(this.rows - 1, next));
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

  draw(surface: Surface, t: Transform, what: Drawing, marks: Marks = {}): void {
    surface.box(0, 0, this.width, this.height, what.palette.ground);
    surface.clip(this.plot.left - 10, 0, this.width - this.plot.left + 10, this.bottom);
    this.drawGrid(surface, t, what.palette);
    const { edges } = this.view;
    if (edges) this.drawEdges(surface, edges, t, what, marks);
    surface.unclip();
    if (!marks.bare) this.drawLabels(surface, t, what.palette);
  }

  private visibleTokens(t: Transform): [number, number] {
    const step = t.kx * this.columnWidth;
    const zero = this.x(0, t);
    return [Math.max(0, Math.floor((this.plot.left - zero) / step) - 1), Math.min(this.view.nTokens - 1, Math.ceil((this.width - zero) / step) + 1)];
  }

  private drawGrid(surface: Surface, t: Transform, palette: Palette): void {
    const [first, last] = this.visibleTokens(t);
    const every = Math.max(1, Math.ceil(5 / (t.kx * this.columnWidth)));
    const points: [number, number][] = [];
    for (let row = 0; row < this.rows; row++)
      if (this.shownRows[row]) for (let token = first; token <= last; token += every) points.push([this.x(token, t), this.y(row, t)]);
    surface.squares(points, 1, palette.faint);
  }

  /** Choose the edges that are shown, and of those that fall together in a folded band the one that is drawn. */
  private choose(edges: Edges, t: Transform, { importance, n, filter }: Drawing, group: (i: number) => number, limit: number, most: number): void {
    const order = edges.orders[importance];
    const [first, last] = this.visibleTokens(t);
    const passes = this.passes(edges, filter);
    if (this.drawn.length < edges.kept) {
      this.drawn = new Int32Array(edges.kept);
      this.lines = new Int32Array(edges.kept);
    }
    const together = new Set<number>();
    const { nTokens } = this.view;
    let drawn = 0;
    let lines = 0;
    const take = (i: number) => {
      if (edges.source[i] > last || edges.target[i] < first) return;
      this.drawn[drawn++] = i;
      const level = edges.level[i];
      if (this.folded[level]) {
        const key = ((this.from[level] * 4096 + group(i)) * nTokens + edges.source[i]) * nTokens + edges.target[i];
        if (together.has(key)) return;
        together.add(key);
      }
      this.lines[lines++] = i;
    };
    const end = Math.min(countBelow(order.ranks, n), most);
    for (let j = 0; j < end && lines < limit; j++) {
      const i = order.sorted[j];
      if (passes(i) && !filter.hidden.has(edges.edge[i])) take(i);
    }
    if (filter.pinned.size)
      for (let i = 0; i < edges.kept; i++) if (filter.pinned.has(edges.edge[i]) && order.rank[i] >= n) take(i);
    this.drawnCount = drawn;
    this.lineCount = lines;
  }

  private drawEdges(surface: Surface, edges: Edges, t: Transform, what: Drawing, marks: Marks): void {
    const { importance, palette, shared, component, selected } = what;
    const order = edges.orders[importance];
    const strength = this.strengths(edges, importance);
    const colours = coloursOf(this.view, what.colouring, palette, strength);
    // while things move only the first edges are looked at: in a folded band most of the others fall on lines that are there
    this.choose(edges, t, what, colours.group, marks.limit ?? DRAW_LIMIT, marks.limit === undefined ? Infinity : LOOKED_AT * marks.limit);
    const { lines, lineCount } = this;
    const kinds = this.view.kinds.map((_, kind) => kindOf(this.view, kind));

    if (marks.fresh) {
      const [from, to] = marks.fresh;
      surface.path(6, palette.accent, 0.28, (path) => {
        for (let d = 0; d < lineCount; d++) {
          const rank = order.rank[lines[d]];
          if (rank >= from && rank < to) this.trace(path, lines[d], edges, t);
        }
      });
    }
    // what is selected is lit, and the rest stands back
    const off = component && what.filter.hiddenComponents.has(this.nameOf(component));
    const lit = component && !off ? (i: number) => edges.level[i] === component[0] && edges.kind[i] === component[1] && edges.head[i] === component[2]
      : selected && !("edge" in selected) ? this.touching(edges, selected) : null;
    // few changes of style: edges of one colour and width are drawn together
    const groups = new Map<number, { colour: string; width: number; alpha: number; edges: number[] }>();
    const crowd = 0.9 * Math.min(1, (FEW / Math.max(1, lineCount)) ** 0.42);
    const wide = Math.min(1.6, Math.max(0.7, Math.sqrt(Math.min(t.ky, (t.kx * this.columnWidth) / 24))));
    for (let d = 0; d < lineCount; d++) {
      const i = lines[d];
      const step = Math.min(WIDTHS.length - 1, Math.floor(strength(i) * WIDTHS.length));
      const residual = kinds[edges.kind[i]] === "residual";
      const both = shared?.(i);
      const group = shared ? (both ? 0 : 1) : colours.group(i);
      const key = 8 * group + 2 * step + (residual ? 1 : 0);
      let own = groups.get(key);
      if (!own) {
        const alpha = (shared ? (both ? 0.45 : 0.9) : residual ? 0.8 : ALPHAS[step] * (step < 2 ? crowd : Math.max(crowd, 0.75))) * (lit ? DIMMED : 1);
        const colour = shared ? (both ? palette.shared : palette.only) : colours.colour(group);
        groups.set(key, (own = { colour, width: WIDTHS[step] * (residual ? 1.2 : 1) * wide, alpha, edges: [] }));
      }
      own.edges.push(i);
    }
    // strongest last, on top
    const ordered = [...groups.entries()].sort(([a], [b]) => (a & 6) - (b & 6)).map(([, group]) => group);
    for (const { colour, width, alpha, edges: own } of ordered)
      surface.path(width, colour, alpha, (path) => {
        for (const i of own) this.trace(path, i, edges, t);
      });
    this.drawNodes(surface, edges, t, what, kinds, lit !== null);
    if (lit)
      surface.path(2.4, palette.accent, 0.9, (path) => {
        for (let d = 0; d < this.drawnCount; d++) if (lit(this.drawn[d])) this.trace(path, this.drawn[d], edges, t);
      });
    this.mark(surface, edges, t, marks.hover, 4, palette.accent);
    this.mark(surface, edges, t, selected, 5, palette.accent);
    if (marks.cursor && !("edge" in marks.cursor)) {
      const { row, token } = marks.cursor;
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

  /** Squares on MLPs, dots on nodes that are reached, and the output. */
  private drawNodes(surface: Surface, edges: Edges, t: Transform, { palette, shared }: Drawing, kinds: string[], dimmed: boolean): void {
    const { nTokens } = this.view;
    const squares: [number, number][] = [];
    const nodes = new Set<number>();
    for (let d = 0; d < this.lineCount; d++) {
      const i = this.lines[d];
      const level = edges.level[i];
      nodes.add(this.from[level] * nTokens + edges.source[i]).add(this.to[level] * nTokens + edges.target[i]);
      if (edges.head[i] < 0 && kinds[edges.kind[i]] !== "residual") squares.push(this.middle(i, edges, t));
    }
    const [first, last] = this.visibleTokens(t);
    const points: [number, number][] = [];
    for (const node of nodes) {
      const token = node % nTokens;
      if (token >= first && token <= last) points.push([this.x(token, t), this.y(Math.floor(node / nTokens), t)]);
    }
    const compact = t.kx * this.columnWidth < 14;
    const size = Math.min(t.kx * this.columnWidth * 0.12, this.rowHeight * t.ky * 0.16);
    if (!dimmed && !compact) surface.squares(squares, Math.min(4, Math.max(1.2, size)), shared ? palette.shared : palette.mlp);
    if (compact) surface.squares(points, 1, palette.ink);
    else surface.dots(points, Math.min(4, Math.max(1.4, size)), dimmed ? palette.muted : palette.ink);
    surface.dots([[this.x(nTokens - 1, t), this.y(this.rows - 1, t)]], compact ? 3 : 5.5, palette.accent, palette.ground);
  }

  private nameOf([level, kind, head]: readonly [number, number, number]): string {
    return `${this.view.levels[level].layer}/${this.view.kinds[kind]}/${head}`;
  }

  private touching(edges: Edges, { row, token }: { row: number; token: number }): (i: number) => boolean {
    return (i) => (this.to[edges.level[i]] === row && edges.target[i] === token) || (this.from[edges.level[i]] === row && edges.source[i] === token);
  }

  private mark(surface: Surface, edges: Edges, t: Transform, place: Place | null | undefined, width: number, colour: string): void {
    if (!place) return;
    if ("edge" in place) {
      const i = keptIndex(this.view, place.edge);
      if (i >= 0) surface.path(width, colour, 1, (path) => this.trace(path, i, edges, t));
      return;
    }
    const touching = this.touching(edges, place);
    surface.path(width * 0.6, colour, 0.9, (path) => {
      for (let d = 0; d < this.lineCount; d++) if (touching(this.lines[d])) this.trace(path, this.lines[d], edges, t);
    });
    surface.dots([[this.x(place.token, t), this.y(place.row, t)]], 7, "transparent", colour);
  }

  /** Whether a kept edge passes the filter. */
  passes(edges: Edges, filter: Filter): (i: number) => boolean {
    const kinds = this.view.kinds.map((kind) => !filter.kinds.has(kind));
    const { layers, heads } = filter;
    const layerOf = this.view.levels.map((level) => level.layer);
    const off = new Set(filter.hiddenComponents);
    const sinks = filter.kinds.has(SINKS) ? servesSink(this.view) : null;
    return (i) => {
      if (sinks?.(i)) return false;
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
    const level = edges.level[i];
    const head = edges.head[i];
    const y0 = this.y(this.from[level], t);
    const y3 = this.y(this.to[level], t);
    const x0 = this.x(edges.source[i], t);
    const step = t.kx * this.columnWidth;
    if (head < 0) {
      if (this.view.kinds[edges.kind[i]] !== "mlp") return [x0, y0, x0, y0, x0, y3, x0, y3];
      const bulge = Math.min(16, 0.3 * step);
      return [x0, y0, x0 + bulge, y0 + 0.3 * (y3 - y0), x0 + bulge, y0 + 0.7 * (y3 - y0), x0, y3];
    }
    const x3 = this.x(edges.target[i], t);
    const shift = (head - (this.heads - 1) / 2) * Math.min(2.4, (0.24 * step) / this.heads);
    if (edges.source[i] === edges.target[i]) {
      const bulge = Math.min(18, 0.3 * step) * (0.5 + (0.5 * (head + 1)) / this.heads);
      return [x0, y0, x0 - bulge, y0 + 0.3 * (y3 - y0), x0 - bulge, y0 + 0.7 * (y3 - y0), x0, y3];
    }
    const dx = x3 - x0;
    return [x0 + shift, y0, x0 + shift + 0.16 * dx, y0 + 0.46 * (y3 - y0), x0 + shift + 0.78 * dx, y0 + 0.66 * (y3 - y0), x3, y3];
  }

  private middle(i: number, edges: Edges, t: Transform): [number, number] {
    const [x0, y0, x1, , x2, , x3, y3] = this.curve(i, edges, t);
    return [(x0 + 3 * x1 + 3 * x2 + x3) / 8, (y0 + y3) / 2];
  }

  /** Where a place is: a node, or the middle of an edge. */
  at(place: Place, t: Transform): [number, number] | null {
    if (!("edge" in place)) return [this.x(place.token, t), this.y(place.row, t)];
    const i = keptIndex(this.view, place.edge);
    return i < 0 ? null : this.middle(i, this.view.edges!, t);
  }

  /** The kept edges that are drawn on the line of one of them, itself included. */
  onLine(edge: number): number[] {
    const e = this.view.edges!;
    const i = keptIndex(this.view, edge);
    if (i < 0 || !this.folded[e.level[i]]) return i < 0 ? [] : [i];
    const kind = (k: number) => (e.head[k] >= 0 ? "attention" : kindOf(this.view, e.kind[k]));
    const same = (k: number) => this.from[e.level[k]] === this.from[e.level[i]] && e.source[k] === e.source[i] && e.target[k] === e.target[i] && kind(k) === kind(i);
    return Array.from(this.drawn.subarray(0, this.drawnCount)).filter(same);
  }

  /** The band whose name is under the pointer. */
  bandAt(px: number, py: number, t: Transform): Band | null {
    if (px > this.plot.left - 10 || py > this.bottom) return null;
    return this.bands.find((band) => band.layers.length > 1 && py <= this.y(band.from, t) && py >= this.y(band.to, t)) ?? null;
  }

  /** What is under the pointer: a node, or the nearest edge within a few pixels. */
  pick(px: number, py: number, t: Transform): Place | null {
    const { view } = this;
    if (px < this.plot.left - 10 || py > this.bottom) return null;
    const step = t.kx * this.columnWidth;
    const token = Math.round((px - this.x(0, t)) / step);
    if (token >= 0 && token < view.nTokens && Math.abs(this.x(token, t) - px) < Math.min(9, step / 2))
      for (let row = 0; row < this.rows; row++)
        if (this.shownRows[row] && Math.abs(this.y(row, t) - py) < Math.min(7, (this.rowHeight * t.ky) / 2.5)) return { row, token };
    const edges = view.edges;
    if (!edges) return null;
    let best = -1;
    let nearest = 6 * 6;
    for (let d = 0; d < this.lineCount; d++) {
      const i = this.lines[d];
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
    const { bottom } = this;
    surface.clip(0, 0, this.width, bottom);
    this.drawRowLabels(surface, t, palette);
    surface.unclip();
    const step = t.kx * this.columnWidth;
    const [first, last] = this.visibleTokens(t);
    const flat = step >= FLAT_FROM;
    const every = Math.max(1, Math.ceil(15 / step));
    surface.clip(flat ? 0 : this.plot.left - 40, bottom, this.width, this.height - bottom);
    for (let token = first; token <= last; token++) {
      if ((this.view.nTokens - 1 - token) % every) continue;
      const x = this.x(token, t);
      if (x < this.plot.left - 8 || x > this.width) continue;
      const bold = token === this.view.nTokens - 1;
      if (flat) {
        const room = Math.max(3, Math.floor(step / 7.2));
        surface.text(x, bottom + 14, shorten(this.tokenLabel(token), room), palette.ink, { align: "center", bold });
        surface.text(x, bottom + 31, this.sinks.has(token) ? `${token} · sink` : String(token), palette.muted, { size: 10, align: "center" });
      } else surface.text(x + 3, bottom + 6, shorten(this.tokenLabel(token), 11), palette.ink, { size: 11, align: "right", angle: -0.9, bold });
    }
    surface.unclip();
  }

  /** Names of rows, or of layers where rows are close, and of bands. */
  private drawRowLabels(surface: Surface, t: Transform, palette: Palette): void {
    const right = this.plot.left - 14;
    const label = (y: number, text: string, colour = palette.muted) => {
      if (y > 4 && y < this.bottom) surface.text(right, y, text, colour, { size: 11, align: "right" });
    };
    const bands = this.bands.some((band) => band.layers.length > 1);
    const row = this.bands.some((band) => band.open) ? this.rowHeight * t.ky : Infinity;
    const narrow = this.plot.left < 60;
    label(this.y(0, t), "input");
    let last = this.y(0, t);
    for (const band of this.bands) {
      if (!band.open) {
        label((this.y(band.from, t) + this.y(band.to, t)) / 2, narrow ? bandName(band) : `▸ ${bandName(band)}`, palette.ink);
        last = this.y(band.to, t) + 2;
        continue;
      }
      for (let r = band.from + 1; r <= band.to; r++) {
        const end = r === band.to || this.view.levels[r].layer !== this.view.levels[r - 1].layer;
        const each = row >= 13 && !narrow;
        const y = this.y(r, t);
        if ((!each && !end) || last - y < 12.5) continue;
        label(y, each ? this.rowLabel(r) : String(this.view.levels[r - 1].layer));
        last = y;
      }
      if (bands) surface.text(narrow ? 2 : 12, this.y(band.to, t) + 2, "▾", palette.ink, { size: 11 });
    }
  }
}

function shorten(text: string, room: number): string {
  const characters = [...text];
  return characters.length <= room + 2 ? text : `${characters.slice(0, room).join("")}…\u2069`;
}

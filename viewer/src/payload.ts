// The payload (densitometer/viewer/payload.py) as typed data, read with care: it may be cut, damaged or of another version.

export const SCHEMA = "densitometer.payload/1";

export type Numbers = Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | Float32Array | Float64Array;

interface Packed {
  dtype: string;
  shape: number[];
  data: string;
  delta?: boolean;
}

export interface TokenProbability {
  token: string;
  probability: number;
}

export interface Point {
  size: number;
  n_edges: number;
  tv: number;
  kl: number;
  js: number;
  top1: boolean;
  entropy: number;
  flops_share: number;
  parameter_share: number;
  target?: number; // of measurements with a target: its value, and the share of it that is kept
  faithfulness?: number;
  top: TokenProbability[];
}

export interface Level {
  layer: number;
  residual: string;
  n_heads: number;
  mlp: boolean;
}

export interface Order {
  rank: Int32Array; // by kept edge: its place in best-first growth
  importance: Float32Array;
  sorted: Int32Array; // kept edges, first added first
  ranks: Int32Array; // their ranks, rising
}

export interface Edges {
  kept: number;
  exactTo: number; // the first so many edges of every order are all kept
  edge: Int32Array;
  level: Uint16Array;
  kind: Uint8Array;
  head: Int16Array;
  source: Uint32Array;
  target: Uint32Array;
  orders: Record<string, Order>;
}

export interface Components {
  level: number[];
  kind: number[];
  head: number[];
  n_edges: number[];
  counts: Record<string, Int32Array | Float64Array>; // grid x components; more than 31 bits as floats
}

export interface Histogram {
  from: number;
  to: number;
  all: number[];
  kept: number[];
  zero: number;
}

export interface Readings {
  tokens: string[];
  nodes: Map<string, [number[], number[]]>; // "row,token" -> tokens, probabilities
  writers: Map<string, [number[], number[]]>; // "level,head,source,target or -1"
}

export interface View {
  id?: string;
  model: { name: string; architecture: string; dtype: string };
  input: { text: string | null; ids: number[]; tokens: string[]; position: number };
  graph: { n_edges: number; n_layers: number; n_heads: number; n_tokens: number; landmarks: Record<string, number> };
  summary: string;
  prediction: TokenProbability[];
  entropy: number;
  next_token: { token: string; surprisal: number; rank: number } | null;
  noise_floor: number;
  importances: string[];
  density: Record<string, { auc_log: number; auc_linear: number; size_at: number | null; faithful_at?: number | null }>;
  target?: { name: string; kind: string; full: number; nothing: number } | null; // what is measured besides the whole prediction
  counterfactual?: { tokens: string[] } | null; // the input that edges which are off carry what they carry in
  curves: Record<string, Point[]>;
  baselines: Record<string, Record<string, { size: number; tv: number }[]>>;
  sinks?: { token: number; heads: number }[]; // and the share of the heads that attend to each
  provenance: Record<string, unknown>;
  edges: Edges | null;
  nTokens: number; // tokens that were run: up to the position
  levels: Level[];
  kinds: string[];
  grid: Int32Array | Float64Array;
  components: Components;
  costs: Record<string, { flops: Float32Array; parameters: Float32Array }>;
  histograms: Record<string, Histogram>;
  readings: Readings | null;
}

export interface TokenTable {
  position: number[];
  token: string[];
  importance: string[];
  [column: string]: (number | string | null)[];
}

/** A view as it is written: its arrays packed, and what is made of them still missing. */
type RawView = Omit<View, "edges" | "grid" | "components" | "costs" | "readings" | "nTokens" | "levels" | "kinds"> & {
  n_tokens_run?: number;
  levels?: Level[];
  kinds?: string[];
} & ({ edges?: null } | {
  edges: Record<"edge" | "level" | "kind" | "head" | "source" | "target", Packed> & {
    kept: number;
    exact_to: number;
    orders: Record<string, { rank: Packed; importance: Packed }>;
  };
  grid: Packed;
  components: Omit<Components, "counts"> & { counts: Record<string, Packed> };
  costs: Record<string, { flops: Packed; parameters: Packed }>;
  readings: Record<"nodes" | "node_tokens" | "node_probabilities" | "writers" | "writer_tokens" | "writer_changes", Packed> & { tokens: string[] } | null;
});

interface RawTraces {
  schema: string;
  kind: "traces";
  views: RawView[];
  offers?: { importances?: string[] }; // what a server can measure
}

interface RawTokens {
  schema: string;
  kind: "tokens";
  label?: string;
  columns: TokenTable;
  views?: Record<string, RawView>; // by position
  id?: string;
}

export interface Traces {
  kind: "traces";
  views: View[];
  raw: RawTraces;
}

export interface Tokens {
  kind: "tokens";
  label: string;
  columns: TokenTable;
  views: Map<number, View>;
  raw: RawTokens;
}

export type Payload = Traces | Tokens;

export class PayloadError extends Error {}

const CUT = "The data of this page is cut short or damaged. Write it again with densitometer, or copy the whole file.";

/** Gzipped JSON, or plain JSON, to a payload. */
export async function decodeBytes(bytes: Uint8Array<ArrayBuffer>): Promise<Payload> {
  let text: string;
  if (bytes[0] === 0x1f && bytes[1] === 0x8b) {
    try {
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      text = await new Response(stream).text();
    } catch {
      throw new PayloadError(CUT);
    }
  } else {
    text = new TextDecoder().decode(bytes);
  }
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    throw new PayloadError(CUT);
  }
  return decode(document);
}

export async function decodeBase64(text: string): Promise<Payload> {
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    bytes = fromBase64(text.trim());
  } catch {
    throw new PayloadError(CUT);
  }
  if (!bytes.length) throw new PayloadError(CUT);
  return decodeBytes(bytes);
}

export function decode(document: unknown): Payload {
  const raw = document as RawTraces | RawTokens | null;
  const schema = raw?.schema;
  if (raw === null || schema !== SCHEMA) {
    throw new PayloadError(
      `This data has the schema ${JSON.stringify(schema ?? null)}; this page reads ${JSON.stringify(SCHEMA)}. ` +
        "Open it with the version of densitometer that wrote it, or measure again.",
    );
  }
  try {
    if (raw.kind === "tokens") {
      const views = new Map<number, View>();
      for (const [position, view] of Object.entries(raw.views ?? {})) views.set(Number(position), viewOf(view));
      return { kind: "tokens", label: String(raw.label ?? ""), columns: raw.columns, views, raw };
    }
    return { kind: "traces", views: raw.views.map(viewOf), raw };
  } catch (error) {
    if (error instanceof PayloadError) throw error;
    throw new PayloadError(CUT);
  }
}

function viewOf(raw: RawView): View {
  for (const points of Object.values(raw.curves)) if (!points.length) throw new PayloadError(CUT);
  const common = { ...raw, nTokens: raw.n_tokens_run ?? raw.input.position + 1, levels: raw.levels ?? [], kinds: raw.kinds ?? [] };
  if (!raw.edges) {
    const sizes = new Set(Object.values(raw.curves).flat().map((point) => point.n_edges));
    // nothing is drawn, so nothing asks for the parts that are missing
    return { ...common, edges: null, readings: null, grid: Int32Array.from(sizes).filter((n) => n > 0).sort() } as View;
  }
  const e = raw.edges;
  const orders: Record<string, Order> = {};
  for (const [name, order] of Object.entries(e.orders)) {
    const rank = unpack(order.rank) as Int32Array;
    const sorted = Int32Array.from(rank.keys()).sort((a, b) => rank[a] - rank[b]);
    orders[name] = { rank, importance: unpack(order.importance) as Float32Array, sorted, ranks: sorted.map((i) => rank[i]) };
  }
  const r = raw.readings;
  return {
    ...common,
    edges: {
      kept: e.kept,
      exactTo: e.exact_to,
      edge: unpack(e.edge) as Int32Array,
      level: unpack(e.level) as Uint16Array,
      kind: unpack(e.kind) as Uint8Array,
      head: unpack(e.head) as Int16Array,
      source: unpack(e.source) as Uint32Array,
      target: unpack(e.target) as Uint32Array,
      orders,
    },
    grid: unpack(raw.grid) as View["grid"],
    components: { ...raw.components, counts: each(raw.components.counts, unpack) as Components["counts"] },
    costs: each(raw.costs, (c) => ({ flops: unpack(c.flops), parameters: unpack(c.parameters) })) as View["costs"],
    readings: r ? {
      tokens: r.tokens,
      nodes: table(unpack(r.nodes), 2, unpack(r.node_tokens), unpack(r.node_probabilities)),
      writers: table(unpack(r.writers), 4, unpack(r.writer_tokens), unpack(r.writer_changes)),
    } : null,
  };
}

function table(keys: Numbers, width: number, tokens: Numbers, values: Numbers): Map<string, [number[], number[]]> {
  const n = keys.length / width;
  const found = new Map<string, [number[], number[]]>();
  if (!n) return found;
  const m = tokens.length / n;
  for (let i = 0; i < n; i++) {
    const key = Array.from(keys.subarray(i * width, (i + 1) * width)).join(",");
    found.set(key, [Array.from(tokens.subarray(i * m, (i + 1) * m)), Array.from(values.subarray(i * m, (i + 1) * m))]);
  }
  return found;
}

function each<A, B>(record: Record<string, A>, map: (value: A) => B): Record<string, B> {
  return Object.fromEntries(Object.entries(record).map(([name, value]) => [name, map(value)]));
}

const ARRAYS: Record<string, new (buffer: ArrayBuffer) => Numbers> = {
  i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array,
};

function unpack(packed: Packed): Numbers {
  const make = ARRAYS[packed.dtype];
  if (!make) throw new PayloadError(CUT);
  const values = new make(fromBase64(packed.data).buffer);
  if (values.length !== packed.shape.reduce((a, b) => a * b, 1)) throw new PayloadError(CUT);
  if (packed.delta) {
    const row = packed.shape.slice(1).reduce((a, b) => a * b, 1);
    for (let i = row; i < values.length; i++) values[i] += values[i - row];
  }
  return values;
}

function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

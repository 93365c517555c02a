// Edges, nodes and components: which of the kept ones they are, and what they are called.

import { visible } from "./dom";
import type { View } from "./payload";
import type { Place } from "./scene";
import type { Look, Side } from "./state";

/** The kind of an edge, one name for every residual edge. */
export function kindOf(view: View, kind: number): string {
  const name = view.kinds[kind];
  return name.startsWith("residual") ? "residual" : name;
}

/** Whether its edges were measured tile by tile. */
export function isLong(view: View): boolean {
  return view.provenance.edges === "tiled";
}

/** Stands among the kinds for the edges that serve sinks: those from a sink, and those into one. */
export const SINKS = "sinks";

const served = new WeakMap<View, (i: number) => boolean>();

/** Whether the i-th of the kept edges serves a sink. */
export function servesSink(view: View): (i: number) => boolean {
  let found = served.get(view);
  if (!found) {
    const sinks = new Set(view.sinks?.map(({ token }) => token));
    const e = view.edges!;
    served.set(view, (found = (i) => sinks.has(e.source[i]) || sinks.has(e.target[i])));
  }
  return found;
}

const byEdge = new WeakMap<View, Map<number, number>>();

/** The place of a row of graph.edges() among the kept edges; -1 where it is not kept. */
export function keptIndex(view: View, edge: number): number {
  let found = byEdge.get(view);
  if (!found) byEdge.set(view, (found = new Map(Array.from(view.edges?.edge ?? [], (e, i) => [e, i]))));
  return found.get(edge) ?? -1;
}

/** The i-th of the kept edges. */
export function edgeName(view: View, i: number): string {
  const e = view.edges!;
  const layer = view.levels[e.level[i]].layer;
  const source = `${visible(view.input.tokens[e.source[i]])} (${e.source[i]})`;
  if (kindOf(view, e.kind[i]) === "residual") return `Layer ${layer}, residual stream of ${source}${past(view, e.kind[i], ", ")}`;
  if (e.head[i] < 0) return `Layer ${layer}, MLP at ${source}`;
  return `Layer ${layer}, head ${e.head[i]}: ${source} → ${visible(view.input.tokens[e.target[i]])} (${e.target[i]})`;
}

/** Where the i-th of the kept edges leads, without the component that it belongs to. */
export function edgeWay(view: View, i: number): string {
  const { source, target } = view.edges!;
  const token = (t: number) => `${visible(view.input.tokens[t])} (${t})`;
  return source[i] === target[i] ? `at ${token(source[i])}` : `${token(source[i])} → ${token(target[i])}`;
}

export function placeName(view: View, place: Place): string {
  if ("edge" in place) {
    const i = keptIndex(view, place.edge);
    return i < 0 ? `edge ${place.edge}, not kept` : edgeName(view, i);
  }
  const { row, token } = place;
  const lens = view.readings?.nodes.get(`${row},${token}`);
  return `${nodeName(view, row, token)}${lens ? `, reads ${visible(view.readings!.tokens[lens[0][0]])}` : ""}`;
}

export function nodeName(view: View, row: number, token: number): string {
  const level = view.levels[row - 1];
  const where = row === 0 ? "input" : `layer ${level.layer}, after ${level.mlp && level.n_heads ? "the block" : level.mlp ? "the MLP" : "attention"}`;
  return `Token ${token}, ${visible(view.input.tokens[token])}, ${where}`;
}

export function componentName(view: View, c: number): string {
  const { components } = view;
  const layer = view.levels[components.level[c]].layer;
  if (components.head[c] >= 0) return `Layer ${layer}, head ${components.head[c]}`;
  if (view.kinds[components.kind[c]] === "mlp") return `Layer ${layer}, MLP`;
  return `Layer ${layer}, residual stream${past(view, components.kind[c], " ")}`;
}

function past(view: View, kind: number, before: string): string {
  const name = view.kinds[kind];
  return name === "residual_mlp" ? `${before}past the MLP` : name === "residual_attention" ? `${before}past attention` : "";
}

/** The component that the i-th of the kept edges belongs to. */
export function componentOf(view: View, i: number): number {
  const e = view.edges!;
  const { components } = view;
  return components.level.findIndex((level, c) => level === e.level[i] && components.kind[c] === e.kind[i] && components.head[c] === e.head[i]);
}

/** What the i-th of the kept edges writes, where the page has it: tokens and by how much their logits change. */
export function writesOf(view: View, i: number): [number[], number[]] | undefined {
  const e = view.edges!;
  const start = `${e.level[i]},${e.head[i]},${e.source[i]}`;
  const writers = view.readings?.writers;
  return writers?.get(`${start},-1`) ?? writers?.get(`${start},${e.target[i]}`);
}

export function sideName(views: readonly View[], side: Side): string {
  const view = views[side.view];
  const text = textOf(view);
  return `${view.model.name} · ${side.importance} · ${visible(text.length > 60 ? `${text.slice(0, 60)}…` : text)}`;
}

export function textOf(view: View): string {
  return view.input.text ?? view.input.tokens.join("");
}

/** "the logit difference of ␣John against ␣Mary"; null where the whole prediction is measured. Python quotes the tokens. */
export function spokenTarget({ target }: View): string | null {
  if (!target) return null;
  const quoted = /'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"/g;
  const name = target.kind === "function" ? visible(target.name) : target.name.replace(quoted, (_, one, two) => visible(one ?? two));
  return target.kind === "function" ? `the ${name}` : `the ${target.kind} of ${name}`;
}

const MOST_DIFFERENT = 3;

/** The tokens that the counterfactual has others for, and what it has for them. */
export function spokenDifferences(view: View): string {
  const other = view.counterfactual?.tokens ?? [];
  const at = other.flatMap((token, i) => (token === view.input.tokens[i] ? [] : [`${visible(view.input.tokens[i])} → ${visible(token)} (${i})`]));
  return at.length > MOST_DIFFERENT ? `${at.slice(0, MOST_DIFFERENT - 1).join(", ")} and ${at.length - MOST_DIFFERENT + 1} more tokens` : at.join(", ");
}

/** "attention head 5 of layer 22", from "22/attention/5". */
export function spokenComponent(name: string): string {
  const [layer, kind, head] = name.split("/");
  const of = `of layer ${layer}`;
  if (kind === "attention") return `attention head ${head} ${of}`;
  if (kind === "mlp") return `the MLP ${of}`;
  const where = kind === "residual_attention" ? " past attention" : kind === "residual_mlp" ? " past the MLP" : "";
  return `the residual stream${where} ${of}`;
}

function spokenEdge(view: View, edge: number): string {
  const i = keptIndex(view, edge);
  return i < 0 ? `edge ${edge}` : `the edge “${edgeName(view, i)}”`;
}

/** The first few of a list, and how many more. */
function someOf(names: string[]): string {
  const most = 3;
  return names.length <= most ? names.join(", ") : `${names.slice(0, most - 1).join(", ")} and ${names.length - most + 1} more`;
}

/** What was taken out, what was pinned, and what is not drawn, a sentence each. */
export function spokenChoices(view: View, { hidden, pinned, hiddenComponents, kinds, layers, heads }: Look): string[] {
  const edges = (set: ReadonlySet<number>) => [...set].map((edge) => spokenEdge(view, edge));
  const off = [...[...hiddenComponents].map(spokenComponent), ...edges(hidden)];
  const drawn = [
    ...(layers ? [layers[0] === layers[1] ? `layer ${layers[0]}` : `layers ${layers[0]} to ${layers[1]}`] : []),
    ...(heads ? [`attention head${heads.size === 1 ? "" : "s"} ${[...heads].join(", ")}`] : []),
    ...(kinds.size ? [`no ${[...kinds].map((kind) => (kind === SINKS ? "edges that serve sinks" : kind.replace("_", " past ").replace("mlp", "MLP"))).join(", no ")}`] : []),
  ];
  return [
    ...(off.length ? [`Off: ${someOf(off)}.`] : []),
    ...(pinned.size ? [`Pinned: ${someOf(edges(pinned))}.`] : []),
    ...(drawn.length ? [`Drawn: ${drawn.join(", ")}.`] : []),
  ];
}

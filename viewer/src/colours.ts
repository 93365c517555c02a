// What the colours of edges stand for: the kind, the head, the token that an edge comes from, or the importance.

import { interpolateYlGnBu } from "d3-scale-chromatic";
import { kindOf } from "./names";
import { hueColour, type Palette } from "./palette";
import type { View } from "./payload";

export const COLOURINGS = ["kind", "head", "source", "importance"] as const;
export type Colouring = (typeof COLOURINGS)[number];

export const STEPS = 8; // colours of a scale of importance

/** Edges in groups of one colour. */
export interface Colours {
  group(i: number): number; // of the i-th of the kept edges
  colour(group: number): string;
}

const RESIDUAL = 0;
const MLP = 1;
const FIRST = 2; // the first head, token or step

export function headsOf(view: View): number {
  return Math.max(1, ...view.levels.map((level) => level.n_heads));
}

/** The colours of a view's edges; `strength` is an edge's importance in [0, 1). */
export function coloursOf(view: View, colouring: Colouring, palette: Palette, strength: (i: number) => number): Colours {
  const e = view.edges!;
  const kinds = view.kinds.map((_, kind) => kindOf(view, kind));
  const base = (i: number) => (kinds[e.kind[i]] === "residual" ? RESIDUAL : e.head[i] < 0 ? MLP : FIRST);
  const named = (own: (value: number) => string) => (group: number) => (group === RESIDUAL ? palette.residual : group === MLP ? palette.mlp : own(group - FIRST));
  switch (colouring) {
    case "head":
      return { group: (i) => (base(i) === FIRST ? FIRST + e.head[i] : base(i)), colour: named((head) => hueColour(head, headsOf(view), palette)) };
    case "source":
      return { group: (i) => (base(i) === FIRST ? FIRST + e.source[i] : base(i)), colour: named((token) => hueColour(token, view.nTokens, palette)) };
    case "kind":
      return { group: base, colour: named(() => palette.attention) };
    case "importance":
      return { group: (i) => Math.floor(strength(i) * STEPS), colour: (step) => rampColour(step / (STEPS - 1), palette) };
  }
}

/** From the least important, pale, to the most important. */
export function rampColour(share: number, palette: Palette): string {
  return interpolateYlGnBu(palette.dark ? 0.85 - 0.7 * share : 0.3 + 0.7 * share);
}

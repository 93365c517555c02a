// Layers side by side that are drawn as one band, where there is no room for each. A band opens and folds.

import type { View } from "./payload";

export interface Band {
  layers: readonly number[];
  from: number; // the rows of the streams into it and out of it
  to: number;
  open: boolean;
}

const LEAST_ROW = 12; // px half a layer: below it layers are folded
const BAND = 52; // px of a folded band, about
const OPEN_ROW = 16; // px half a layer of an open band beside folded ones

/** The bands of a graph that is so many pixels high; those with an unfolded layer are open. */
export function bandsOf(view: View, height: number, unfolded: ReadonlySet<number>): Band[] {
  const layers = [...new Set(view.levels.map((level) => level.layer))];
  const fits = height / Math.max(1, view.levels.length) >= LEAST_ROW;
  const each = fits ? 1 : Math.max(2, Math.ceil(layers.length / Math.max(2, Math.floor(height / BAND))));
  const bands: Band[] = [];
  for (let i = 0; i < layers.length; i += each) {
    const own = layers.slice(i, i + each);
    const levels = view.levels.flatMap((level, l) => (own.includes(level.layer) ? [l] : []));
    bands.push({ layers: own, from: levels[0], to: levels[levels.length - 1] + 1, open: each === 1 || own.some((layer) => unfolded.has(layer)) });
  }
  return bands;
}

/** Where each row is, from 0 at the top to 1 at the bottom. Rows inside a folded band are there too, though nothing is drawn at them. */
export function rowPlaces(bands: readonly Band[], height: number): Float64Array<ArrayBuffer> {
  const rows = bands.length ? bands[bands.length - 1].to : 0;
  const places = new Float64Array(rows + 1);
  const open = bands.reduce((sum, band) => sum + (band.open ? band.to - band.from : 0), 0);
  const folded = bands.filter((band) => !band.open).length;
  const row = folded && open ? Math.min(OPEN_ROW, (0.7 * height) / open) : height / Math.max(1, open);
  const band = folded ? (height - open * row) / folded : 0;
  let y = height;
  for (const own of bands) {
    const step = own.open ? row : band / (own.to - own.from);
    places[own.from] = y / height;
    for (let r = own.from + 1; r <= own.to; r++) places[r] = (y -= step) / height;
  }
  return places;
}

/** "6" or "6–8". */
export function bandName({ layers }: Band): string {
  return layers.length > 1 ? `${layers[0]}–${layers[layers.length - 1]}` : String(layers[0]);
}

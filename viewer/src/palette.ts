// Colours of canvas and SVG, dark and light. Text colours hold WCAG AA on their ground.

import { hcl, rgb } from "d3-color";

export interface Palette {
  ground: string;
  ink: string;
  muted: string;
  faint: string;
  accent: string;
  only: string; // in a comparison: edges of one side alone
  shared: string;
  residual: string;
  attention: string;
  mlp: string;
  dark: boolean;
}

export const LIGHT: Palette = {
  ground: "#ffffff", ink: "#1b1f24", muted: "#57606a", faint: "#dfe3e8", accent: "#0b57d0", only: "#c2185b", shared: "#8c98a4",
  residual: "#6e7781", attention: "#1f7a4d", mlp: "#b35900", dark: false,
};
export const DARK: Palette = {
  ground: "#0f1419", ink: "#e6edf3", muted: "#9aa7b4", faint: "#2a323b", accent: "#7ab8ff", only: "#ff7eb6", shared: "#6b7783",
  residual: "#8b98a5", attention: "#5cc98f", mlp: "#ffa657", dark: true,
};

/** One hue for each of a number of heads or tokens, away from the MLP's orange. Neighbours of few differ in lightness too. */
export function hueColour(index: number, number: number, palette: Palette): string {
  const hue = 100 + (250 * (index + 0.5)) / Math.max(number, 1);
  const step = number > 16 ? 0 : index % 2 ? 7 : -7;
  return hcl(hue, 58, (palette.dark ? 70 : 48) + step).formatHex();
}

const SERIES_LIGHT = ["#0b57d0", "#a3197d", "#00796b", "#8e24aa", "#6d5a00"];
const SERIES_DARK = ["#7ab8ff", "#ff8fd0", "#56d4bc", "#c9a4ff", "#e3c341"];

export function seriesColour(index: number, palette: Palette): string {
  const series = palette.dark ? SERIES_DARK : SERIES_LIGHT;
  return series[index % series.length];
}

/** Black or white, whichever reads better on a colour. */
export function inkOn(colour: string): string {
  const { r, g, b } = rgb(colour);
  const linear = (v: number) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  return luminance > 0.179 ? "#000000" : "#ffffff";
}

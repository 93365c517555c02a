// The help of both pages: of traces, and along a text.

import { h } from "./dom";

const KEYS: [string, string][] = [
  ["Tab", "from one part to the next"],
  ["← → on the size", "smaller, larger; Page keys in larger steps, Home and End to the ends"],
  ["arrows on the graph", "move the cursor between nodes; with Shift, pan"],
  ["E, Shift+E", "step through the edges at the cursor"],
  ["Enter", "select the node at the cursor; Escape lets go"],
  ["P, H", "pin or hide the selected edge; the model is run with exactly what is on, where the page has one"],
  ["[ ]", "smaller, larger; { } in larger steps"],
  ["+ −", "zoom in, out; so do the wheel and two fingers"],
  ["0 F", "the whole graph; 0 also folds the layers as they were at first"],
  ["O", "open or fold the band of layers at the cursor"],
];

export function helpDialog(): HTMLDialogElement {
  return h("dialog", { "aria-labelledby": "help-title" },
    h("h2", { id: "help-title" }, "What this shows"),
    h("p", {}, "The graph shows how the model computes one next token. Each column is a token, each row is half a layer, and the output is at the top right. Edges carry vectors, and each edge has an importance. A trace takes the most important edges first, starting at the output. The model then runs with those edges alone."),
    h("p", {}, "Move the size and watch the prediction come back. The curve shows how far the trace's prediction is from the model's at each size. The triangle marks the size from which on it stays within 0.1. Below the sizes at the dashed lines, not even the output token's own path fits."),
    h("h2", {}, "Keys"),
    h("dl", { class: "facts keys" }, ...KEYS.flatMap(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])),
    h("form", { method: "dialog" }, h("button", {}, "Close")));
}

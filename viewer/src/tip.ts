// Lines beside the pointer.

import { h } from "./dom";

export class Tip {
  readonly element = h("div", { class: "tip", role: "tooltip", hidden: true });

  /** Show lines beside a point of the window; null hides them. */
  show(lines: string[] | null, x: number, y: number): void {
    const { element } = this;
    element.hidden = lines === null;
    const page = element.parentElement;
    if (lines === null || !page) return;
    element.replaceChildren(...lines.map((text, k) => h("div", { class: k ? "small" : "" }, text)));
    const box = page.getBoundingClientRect();
    const width = Math.min(360, element.offsetWidth || 300);
    element.style.left = `${Math.max(4, Math.min(box.width - width - 8, x - box.left + 14))}px`;
    element.style.top = `${Math.min(box.height - 60, y - box.top + 16)}px`;
  }
}

// Small helpers: elements without innerHTML (every text is text), numbers and tokens as people read them.

type Child = Node | string | null | undefined | false;
type Properties = Record<string, unknown>;

export function h<K extends keyof HTMLElementTagNameMap>(tag: K, properties: Properties = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  apply(element, properties);
  element.append(...(children.filter((c) => c !== null && c !== undefined && c !== false) as (Node | string)[]));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function s(tag: string, attributes: Record<string, string | number> = {}, ...children: (Node | string)[]): SVGElement {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

function apply(element: HTMLElement, properties: Properties): void {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value as EventListener);
    else if (name === "class") element.className = String(value);
    else if (name.includes("-") || name === "role" || name === "for" || name === "colspan" || name === "scope") element.setAttribute(name, String(value));
    else (element as any)[name] = value;
  }
}

/** A token as visible text: spaces, line ends and control characters can be seen, and its direction stays its own. */
export function visible(token: string): string {
  let shown = "";
  for (const character of token) {
    const code = character.codePointAt(0)!;
    if (character === "\n") shown += "⏎";
    else if (character === "\t") shown += "⇥";
    else if (code < 0x20) shown += String.fromCodePoint(0x2400 + code);
    else if (code === 0x7f) shown += "␡";
    else if ((code >= 0x80 && code < 0xa0) || (code >= 0x200b && code <= 0x200f) || (code >= 0x202a && code <= 0x202e) ||
             (code >= 0x2066 && code <= 0x2069) || code === 0xfeff || (code >= 0xd800 && code <= 0xdfff))
      shown += `\\u${code.toString(16).padStart(4, "0")}`;
    else shown += character;
  }
  shown = shown.replace(/^ +| +$/g, (spaces) => "\u2423".repeat(spaces.length));
  return `\u2068${shown === "" ? "∅" : shown}\u2069`;
}

export function percent(share: number): string {
  const value = 100 * share;
  if (value === 0) return "0 %";
  if (value >= 99.95 && value < 100) return `${value.toFixed(2)} %`;
  return `${Number(value.toPrecision(value >= 10 ? 3 : 2))} %`;
}

export function count(n: number): string {
  return n.toLocaleString("en");
}

export function fixed(value: number, digits = 3): string {
  return value.toFixed(digits);
}

export function download(name: string, blob: Blob): void {
  const address = URL.createObjectURL(blob);
  const link = h("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

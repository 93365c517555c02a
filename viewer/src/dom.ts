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
    else Reflect.set(element, name, value);
  }
}

/**
 * Make an element's children those given, touching only what differs: nodes of one kind stay and are changed. A node that is
 * there already stays as it is. For parts whose new nodes have no listeners.
 */
export function patch(parent: Element, ...children: (Node | string)[]): void {
  const fresh = children.map((child) => (typeof child === "string" ? document.createTextNode(child) : child));
  fresh.forEach((child, i) => {
    const old = parent.childNodes[i];
    if (!old) parent.append(child);
    else if (old !== child) become(old as ChildNode, child);
  });
  while (parent.childNodes.length > fresh.length) parent.lastChild!.remove();
}

function become(old: ChildNode, fresh: Node): void {
  if (old.nodeName !== fresh.nodeName || fresh.isConnected) return old.replaceWith(fresh);
  if (!(old instanceof Element) || !(fresh instanceof Element)) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  const isStyle = (name: string) => name === "style"; // set as an attribute, the page's policy would refuse it
  for (const { name } of [...old.attributes]) if (!isStyle(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (!isStyle(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [own, wanted] = [old, fresh].map((element) => (element as HTMLElement | SVGElement).style);
  if (own.cssText !== wanted.cssText) own.cssText = wanted.cssText;
  patch(old, ...fresh.childNodes);
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

/** Three digits. */
export function significant(value: number): string {
  const shown = value.toPrecision(3);
  return (shown.includes("e") ? String(Number(shown)) : shown).replace("-", "−");
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

/** A bar as long as a value's share of the largest, behind the number of a table's cell. */
export function barOf(value: number | null, most: number): HTMLElement {
  const bar = h("i", { "aria-hidden": "true" });
  bar.style.width = `${(100 * (value ?? 0)) / most}%`;
  return bar;
}

/** A heading row of a table. */
export function columnHeads(...names: string[]): HTMLElement {
  return h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name))));
}

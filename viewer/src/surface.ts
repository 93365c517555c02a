// Where a scene is drawn: a canvas on the screen, or SVG for a file. Both take the same few calls.

export interface Surface {
  path(width: number, colour: string, alpha: number, build: (path: PathBuilder) => void, dash?: number[]): void;
  dots(points: [number, number][], radius: number, fill: string, stroke?: string): void;
  squares(points: [number, number][], half: number, fill: string): void;
  text(x: number, y: number, text: string, colour: string, options?: { size?: number; align?: CanvasTextAlign; angle?: number; bold?: boolean }): void;
  box(x: number, y: number, width: number, height: number, fill: string): void;
  clip(x: number, y: number, width: number, height: number): void;
  unclip(): void;
}

export interface PathBuilder {
  moveTo(x: number, y: number): void;
  lineTo(x: number, y: number): void;
  bezierCurveTo(a: number, b: number, c: number, d: number, x: number, y: number): void;
}

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";

export class CanvasSurface implements Surface {
  constructor(private c: CanvasRenderingContext2D) {}
  path(width: number, colour: string, alpha: number, build: (path: PathBuilder) => void, dash: number[] = []) {
    const { c } = this;
    c.globalAlpha = alpha;
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.setLineDash(dash);
    c.beginPath();
    build(c);
    c.stroke();
    c.globalAlpha = 1;
    c.setLineDash([]);
  }
  dots(points: [number, number][], radius: number, fill: string, stroke?: string) {
    const { c } = this;
    c.fillStyle = fill;
    c.strokeStyle = stroke ?? fill;
    c.lineWidth = 2;
    for (const [x, y] of points) {
      c.beginPath();
      c.arc(x, y, radius, 0, 2 * Math.PI);
      c.fill();
      if (stroke) c.stroke();
    }
  }
  squares(points: [number, number][], half: number, fill: string) {
    this.c.fillStyle = fill;
    for (const [x, y] of points) this.c.fillRect(x - half, y - half, 2 * half, 2 * half);
  }
  text(x: number, y: number, text: string, colour: string, { size = 12, align = "left", angle = 0, bold = false }: { size?: number; align?: CanvasTextAlign; angle?: number; bold?: boolean } = {}) {
    const { c } = this;
    c.save();
    c.translate(x, y);
    c.rotate(angle);
    c.font = `${bold ? 600 : 400} ${size}px ${FONT}`;
    c.textAlign = align;
    c.textBaseline = "middle";
    c.direction = "ltr";
    c.fillStyle = colour;
    c.fillText(text, 0, 0);
    c.restore();
  }
  box(x: number, y: number, width: number, height: number, fill: string) {
    this.c.fillStyle = fill;
    this.c.fillRect(x, y, width, height);
  }
  clip(x: number, y: number, width: number, height: number) {
    this.c.save();
    this.c.beginPath();
    this.c.rect(x, y, width, height);
    this.c.clip();
  }
  unclip() {
    this.c.restore();
  }
}

const escape = (text: string) =>
  text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`).replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd");
const n = (value: number) => Number(value.toFixed(2));

export class SvgSurface implements Surface {
  private parts: string[] = [];
  private clips = 0;
  constructor(private width: number, private height: number) {}
  path(width: number, colour: string, alpha: number, build: (path: PathBuilder) => void, dash: number[] = []) {
    const d: string[] = [];
    build({
      moveTo: (x, y) => d.push(`M${n(x)} ${n(y)}`),
      lineTo: (x, y) => d.push(`L${n(x)} ${n(y)}`),
      bezierCurveTo: (a, b, e, f, x, y) => d.push(`C${n(a)} ${n(b)} ${n(e)} ${n(f)} ${n(x)} ${n(y)}`),
    });
    if (!d.length) return;
    const dashes = dash.length ? ` stroke-dasharray="${dash.join(" ")}"` : "";
    this.parts.push(`<path d="${d.join("")}" fill="none" stroke="${colour}" stroke-width="${n(width)}" stroke-opacity="${n(alpha)}"${dashes}/>`);
  }
  dots(points: [number, number][], radius: number, fill: string, stroke?: string) {
    const line = stroke ? ` stroke="${stroke}" stroke-width="2"` : "";
    for (const [x, y] of points) this.parts.push(`<circle cx="${n(x)}" cy="${n(y)}" r="${n(radius)}" fill="${fill}"${line}/>`);
  }
  squares(points: [number, number][], half: number, fill: string) {
    for (const [x, y] of points)
      this.parts.push(`<rect x="${n(x - half)}" y="${n(y - half)}" width="${n(2 * half)}" height="${n(2 * half)}" fill="${fill}"/>`);
  }
  text(x: number, y: number, text: string, colour: string, { size = 12, align = "left", angle = 0, bold = false }: { size?: number; align?: CanvasTextAlign; angle?: number; bold?: boolean } = {}) {
    const anchor = { left: "start", right: "end", center: "middle", start: "start", end: "end" }[align];
    const turn = angle ? ` rotate(${n((angle * 180) / Math.PI)})` : "";
    this.parts.push(
      `<text transform="translate(${n(x)} ${n(y)})${turn}" font-size="${size}" font-weight="${bold ? 600 : 400}" text-anchor="${anchor}" ` +
        `dominant-baseline="central" fill="${colour}" xml:space="preserve">${escape(text)}</text>`,
    );
  }
  box(x: number, y: number, width: number, height: number, fill: string) {
    this.parts.push(`<rect x="${n(x)}" y="${n(y)}" width="${n(width)}" height="${n(height)}" fill="${fill}"/>`);
  }
  clip(x: number, y: number, width: number, height: number) {
    const id = `clip${++this.clips}`;
    this.parts.push(`<clipPath id="${id}"><rect x="${n(x)}" y="${n(y)}" width="${n(width)}" height="${n(height)}"/></clipPath><g clip-path="url(#${id})">`);
  }
  unclip() {
    this.parts.push("</g>");
  }
  toString(): string {
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" viewBox="0 0 ${this.width} ${this.height}" ` +
      `font-family="${escape(FONT)}">${this.parts.join("")}</svg>\n`
    );
  }
}

// What a panel is, and what the page gives it. A file in panels/ whose default export is a `PanelKind` is on the page.

import type { Graph } from "./graph";
import type { Host } from "./host";
import type { Payload, Traces } from "./payload";
import type { Action, State } from "./state";

export interface Panel {
  readonly element: HTMLElement;

  /**
   * Show a state.
   *
   * @param before the state at this panel's last update; null the first time.
   */
  update(state: State, before: State | null): void;

  /** The graph has moved or has another size. */
  moved?(): void;

  /** What keys do, wherever on the page the focus is, but where one types. */
  readonly keys?: Readonly<Record<string, () => void>>;
  destroy?(): void;
}

export interface PanelKind {
  /** Above everything, left beside the panels, in the column of panels, or over the page. */
  place: "top" | "left" | "side" | "over";

  /** Panels of one place stand in this order; steps of ten leave room. */
  order: number;

  /** How it follows while only the size moves: at each frame, a few times a second, or (the default) when the size rests. */
  follows?: "live" | "soon" | "rest";
  create(page: Page): Panel;
}

export interface PageOptions {
  address: boolean; // keep the state in the page's address
  back?: () => void;
  along?: (traces: Traces) => Promise<void>; // open the density along this text
}

/** What a panel can see and do. */
export interface Page {
  readonly state: State;
  readonly host: Host;
  readonly options: PageOptions;
  readonly graphs: Graph[]; // on the stage now, the left one first
  dispatch(action: Action): void;

  /** Say something to those who listen to the page. */
  say(text: string): void;

  /** Tell every panel that the graph has moved or has another size. */
  shifted(): void;

  /** Show lines beside the pointer; null hides them. */
  point(lines: string[] | null, x: number, y: number): void;

  /** Do what a key does; whether it does anything. */
  press(key: string): boolean;

  /** Work that a button started and the model does; errors go to the notice. */
  busy(button: HTMLButtonElement, label: string, work: () => Promise<void>): Promise<void>;

  /** An address that brings this view back. */
  link(): string;

  /** Show something else instead of this page. */
  replace(payload: Payload): void;
}

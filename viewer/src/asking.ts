// What the model is asked for while one looks: the exact reading of the size at which the slider rests, and a run of exactly the
// edges that were chosen.

import { chosenKey, hasChoices, plainReading, ranNow, sizeKey, viewOf } from "./derived";
import { isLong } from "./names";
import type { Page } from "./panel";
import type { Point } from "./payload";
import type { Action, State } from "./state";

const ASK_AFTER_MS = 220; // what is looked at rests so long before the model is asked

interface Question {
  key: string;
  parameters: object;
  answered(point: Point): Action;
}

/** Whether the model can be run with edges that were chosen. */
export function canRun({ host }: Page, state: State): boolean {
  const view = viewOf(state);
  return host.kind !== "file" && view.edges !== null && view.id !== undefined && !isLong(view);
}

export class Asking {
  private timer = 0;
  private asked = false; // whether an answer is awaited
  private ended = false;
  private failed = ""; // what the model could not answer is not asked again

  constructor(private page: Page) {}

  follow(): void {
    this.stop();
    if (this.asked || this.ended) return; // one after the other: what is wanted then is asked for afterwards
    const question = this.next();
    if (question && question.key !== this.failed) this.timer = window.setTimeout(() => void this.ask(question), ASK_AFTER_MS);
  }

  end(): void {
    this.ended = true;
    this.stop();
  }

  private stop(): void {
    clearTimeout(this.timer);
  }

  private next(): Question | null {
    const { page } = this;
    const { host, state } = page;
    const view = viewOf(state);
    if (host.kind === "file" || !view.edges || !view.id) return null;
    const { importance, n } = state;
    const common = { id: view.id, importance, n_edges: n };
    if (hasChoices(state) && !ranNow(state) && canRun(page, state)) {
      const key = chosenKey(state);
      const hidden_components = [...state.hiddenComponents].map((name) => {
        const [layer, kind, head] = name.split("/");
        return [Number(layer), kind, Number(head)];
      });
      const parameters = { ...common, pinned: [...state.pinned], hidden: [...state.hidden], hidden_components };
      return { key, parameters, answered: (point) => ({ type: "ran", key, point }) };
    }
    const key = sizeKey(state);
    return plainReading(state).exact ? null : { key, parameters: common, answered: (point) => ({ type: "asked", key, point }) };
  }

  private async ask({ key, parameters, answered }: Question): Promise<void> {
    const { page } = this;
    this.asked = true;
    try {
      page.dispatch(answered(await page.host.ask<Point>("run", parameters)));
    } catch (error) {
      this.failed = key;
      page.dispatch({ type: "notice", notice: (error as Error).message });
    } finally {
      this.asked = false;
      this.follow();
    }
  }
}

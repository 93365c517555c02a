// Who answers what the page cannot know by itself: nobody (a file), a local server, or a notebook's kernel.

export interface Host {
  kind: "file" | "server" | "notebook";

  /** The answer is trusted to be what the method gives: both sides are of one version. */
  ask<Answer = unknown>(method: string, parameters: object): Promise<Answer>;
}

export const fileHost: Host = {
  kind: "file",
  ask: () => Promise.reject(new Error("This page is a file: it has no model behind it. Open it with `densitometer explore`.")),
};

const STOPPED = "The server has stopped answering. Start it again with `densitometer explore` and open the address that it prints.";
const PATIENCE_MS = 600_000;

export const serverHost: Host = {
  kind: "server",
  async ask<Answer>(method: string, parameters: object) {
    let response: Response;
    try {
      response = await fetch(`ask/${method}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(parameters),
        signal: AbortSignal.timeout(PATIENCE_MS),
      });
    } catch {
      throw new Error(STOPPED);
    }
    let answer: Answer & { error?: string };
    try {
      answer = await response.json();
    } catch {
      throw new Error(response.ok ? STOPPED : `The server answered with ${response.status}.`);
    }
    if (!response.ok) throw new Error(answer?.error ?? `The server answered with ${response.status}.`);
    return answer;
  },
};

/** What this page uses of an anywidget model. */
export interface WidgetModel {
  get(name: "payload"): DataView;
  send(content: object): void;
  on(event: "msg:custom", callback: (message: Message | null) => void): void;
}

interface Message {
  number: number;
  answer?: unknown;
  error?: string;
}

export function notebookHost(model: WidgetModel): Host {
  const waiting = new Map<number, { resolve: (answer: unknown) => void; reject: (error: Error) => void }>();
  let number = 0;
  model.on("msg:custom", (message) => {
    const entry = message && waiting.get(message.number);
    if (!entry) return;
    waiting.delete(message.number);
    if (message.error) entry.reject(new Error(message.error));
    else entry.resolve(message.answer);
  });
  return {
    kind: "notebook",
    ask: <Answer>(method: string, parameters: object) =>
      new Promise<Answer>((resolve, reject) => {
        waiting.set(++number, { resolve: (answer) => resolve(answer as Answer), reject });
        const own = number;
        model.send({ number: own, method, parameters });
        setTimeout(() => {
          if (waiting.delete(own)) reject(new Error("The notebook's kernel does not answer. Run the cell again."));
        }, PATIENCE_MS);
      }),
  };
}

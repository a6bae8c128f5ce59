/** The task manager's API, as the page uses it. */

export type State = "open" | "done";

export interface Task {
  readonly id: number;
  readonly title: string;
  readonly notes: string;
  readonly state: State;
}

export interface TaskPage {
  readonly items: readonly Task[];
  /** What to give as `before` for the next page; null on the last one. */
  readonly next_before: number | null;
}

/** A request that did not succeed, in words for the person in front of the page. */
export class Problem extends Error {
  override readonly name = "Problem";

  /** The HTTP status; 0 when there was no answer. */
  readonly status: number;
  /** Names of the fields that must be put right. */
  readonly fields: readonly string[];
  /** Under which the server knows this failure; "" when it never saw the request. */
  readonly traceId: string;

  constructor(message: string, status: number, fields: readonly string[] = [], traceId = "") {
    super(message);
    this.status = status;
    this.fields = fields;
    this.traceId = traceId;
  }
}

export type Method = "GET" | "POST" | "PATCH" | "DELETE";
export type Ask = <Answer>(method: Method, path: string, body?: object) => Promise<Answer>;

/** Ask the API. Throws a Problem for every answer but a good one. Starts the request before it returns. */
export const ask: Ask = async <Answer>(method: Method, path: string, body?: object): Promise<Answer> => {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      ...(body && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
    });
  } catch {
    throw new Problem("The server cannot be reached. Try again in a moment.", 0);
  }
  const content: unknown = response.status === 204 ? null : await response.json().catch(() => undefined);
  if (response.ok && content !== undefined) return content as Answer;
  throw problemOf(response.status, content);
};

/** Read a problem+json answer (RFC 9457); a proxy in between may answer with anything else. */
export function problemOf(status: number, content: unknown): Problem {
  const given = (typeof content === "object" && content !== null ? content : {}) as Record<string, unknown>;
  const errors = (Array.isArray(given["errors"]) ? given["errors"] : []) as { field?: unknown }[];
  const message = typeof given["detail"] === "string" ? given["detail"] : `The server answered with error ${status}.`;
  const traceId = typeof given["trace_id"] === "string" ? given["trace_id"] : "";
  return new Problem(message, status, errors.map((error) => String(error.field)), traceId);
}

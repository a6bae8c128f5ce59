/** What a person does in the page, as the span that everything it causes hangs below. */

import { type Context, context, ROOT_CONTEXT, SpanStatusCode, trace } from "@opentelemetry/api";
import { ask, type Ask, Problem } from "./api.ts";

const tracer = trace.getTracer("taskboard-web");

/** Why an interaction failed. */
export interface Failure {
  readonly message: string;
  readonly fields: readonly string[];
  /** Of the trace that shows what happened; "" without telemetry. */
  readonly traceId: string;
}

/**
 * Do what a person asked for, in a span of that name, and return why it failed, or null.
 *
 * A browser does not carry a context across `await`. So the action is handed an `ask` that belongs to its span: it
 * makes that span current just while the request is started, which is when its traceparent is written.
 *
 * @param name low in cardinality, such as "create task"; never what the person typed
 * @param unexpected is told of an error that no person can do anything about, with the span's context
 */
export async function interact(
  name: string,
  action: (ask: Ask) => Promise<void>,
  unexpected: (error: unknown, where: Context) => void,
  parent: Context = ROOT_CONTEXT,
): Promise<Failure | null> {
  const span = tracer.startSpan(name, {}, parent);
  const where = trace.setSpan(parent, span);
  const askInside: Ask = <Answer>(...question: Parameters<Ask>) => context.with(where, () => ask<Answer>(...question));
  try {
    await action(askInside);
    return null;
  } catch (error) {
    const problem = error instanceof Problem ? error : new Problem("Something in this page went wrong.", 0);
    if (problem !== error) unexpected(error, where);
    span.setStatus({ code: SpanStatusCode.ERROR });
    span.setAttribute("error.type", problem === error && problem.status ? String(problem.status) : nameOf(error));
    const ownTraceId = span.isRecording() ? span.spanContext().traceId : "";
    return { message: problem.message, fields: problem.fields, traceId: problem.traceId || ownTraceId };
  } finally {
    span.end();
  }
}

function nameOf(error: unknown): string {
  return error instanceof Error ? error.name : typeof error;
}

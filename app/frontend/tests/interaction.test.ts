import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { type Context, context, trace } from "@opentelemetry/api";
import { InMemorySpanExporter, SimpleSpanProcessor, WebTracerProvider } from "@opentelemetry/sdk-trace-web";
import { interact } from "../src/interaction.ts";

const spans = new InMemorySpanExporter();
new WebTracerProvider({ spanProcessors: [new SimpleSpanProcessor(spans)] }).register();

/** The span in whose context each request was started. */
let parents: (string | undefined)[] = [];
let unexpected: [unknown, Context][] = [];
const note = (error: unknown, where: Context): void => void unexpected.push([error, where]);

function answer(status: number, body: unknown): void {
  globalThis.fetch = () => {
    parents.push(trace.getSpanContext(context.active())?.spanId);
    return Promise.resolve(new Response(typeof body === "string" ? body : JSON.stringify(body), { status }));
  };
}

beforeEach(() => {
  spans.reset();
  parents = [];
  unexpected = [];
});

void test("every request of an interaction is its child, also after an await", async () => {
  answer(200, {});
  await interact("x", async (ask) => {
    await ask("GET", "a");
    await ask("GET", "b");
  }, note);
  const [span] = spans.getFinishedSpans();
  assert.deepEqual(parents, [span?.spanContext().spanId, span?.spanContext().spanId]);
});

void test("two interactions at once do not mix", async () => {
  answer(200, {});
  const both = ["x", "y"].map((name) => interact(name, async (ask) => {
    await ask("GET", "a");
    await ask("GET", "b");
  }, note));
  await Promise.all(both);
  const ids = spans.getFinishedSpans().map((span) => span.spanContext().spanId);
  assert.deepEqual(parents.sort(), [...ids, ...ids].sort());
});

void test("a refusal tells the server's reason, its fields and its trace id", async () => {
  answer(422, { detail: "title: must not be empty", errors: [{ field: "title", message: "…" }], trace_id: "a".repeat(32) });
  const failure = await interact("x", (ask) => ask("POST", "a", {}), note);
  assert.deepEqual(failure, { message: "title: must not be empty", fields: ["title"], traceId: "a".repeat(32) });
  assert.equal(spans.getFinishedSpans()[0]?.attributes["error.type"], "422");
  assert.deepEqual(unexpected, []);
});

void test("a proxy's error page is a failure with the interaction's own trace id", async () => {
  answer(502, "<html>Bad Gateway</html>");
  const failure = await interact("x", (ask) => ask("GET", "a"), note);
  assert.equal(failure?.message, "The server answered with error 502.");
  assert.equal(failure.traceId, spans.getFinishedSpans()[0]?.spanContext().traceId);
});

void test("a server that cannot be reached is said so", async () => {
  globalThis.fetch = () => Promise.reject(new TypeError("Failed to fetch"));
  const failure = await interact("x", (ask) => ask("GET", "a"), note);
  assert.match(failure?.message ?? "", /cannot be reached/);
});

void test("a mistake of the page is reported where it happened, and not shown raw", async () => {
  const mistake = new RangeError("Jane's own text");
  const failure = await interact("x", () => Promise.reject(mistake), note);
  assert.doesNotMatch(failure?.message ?? "", /Jane/);
  const [span] = spans.getFinishedSpans();
  assert.deepEqual(
    unexpected.map(([error, where]) => [error, trace.getSpanContext(where)?.spanId]),
    [[mistake, span?.spanContext().spanId]],
  );
  assert.doesNotMatch(JSON.stringify(span?.attributes), /Jane/);
});

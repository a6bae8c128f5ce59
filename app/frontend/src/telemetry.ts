/**
 * OpenTelemetry in the page: the load of the document, every request with its traceparent, web vitals, and errors.
 *
 * Everything leaves in batches, as OTLP in JSON, to the page's own origin, and waits in bounded queues: without a
 * Collector a batch is tried for ten seconds and then dropped, and the page does not notice. Nothing is stored in the
 * browser, nobody gets an id, and no text that a person typed is put into any attribute.
 */

import { type Context, propagation, ROOT_CONTEXT, type Span } from "@opentelemetry/api";
import { type Logger, SeverityNumber } from "@opentelemetry/api-logs";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { OTLPLogExporter } from "@opentelemetry/exporter-logs-otlp-http";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { registerInstrumentations } from "@opentelemetry/instrumentation";
import { DocumentLoadInstrumentation } from "@opentelemetry/instrumentation-document-load";
import { FetchInstrumentation } from "@opentelemetry/instrumentation-fetch";
import { defaultResource, resourceFromAttributes } from "@opentelemetry/resources";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";
import { BatchSpanProcessor, WebTracerProvider } from "@opentelemetry/sdk-trace-web";
import { type Metric, onCLS, onFCP, onINP, onLCP, onTTFB } from "web-vitals";
import { publicAddress, publicText } from "./address.ts";

const SEND_EVERY_MS = 2000;
/** An error in a loop must not become a flood. */
const MOST_ERRORS = 20;
/** Longer stack traces are cut: a log store refuses records with very long attributes. */
const LONGEST_STACK = 4000;

let logger: Logger | undefined;
let errorsLeft = MOST_ERRORS;

/** The context in which the server made this page, from its `meta` element; the root context if there is none. */
export function contextOfPage(): Context {
  return propagation.extract(ROOT_CONTEXT, { traceparent: meta("traceparent") });
}

function meta(name: string): string {
  return document.querySelector<HTMLMetaElement>(`meta[name="${name}"]`)?.content ?? "";
}

/** Start. The page works the same when this throws. */
export function start(): void {
  const resource = defaultResource().merge(
    resourceFromAttributes({
      "service.name": "taskboard-web",
      "service.namespace": "watchpost",
      "service.version": meta("version"),
    }),
  );
  const to = (signal: string): { url: string } => ({ url: new URL(`otlp/v1/${signal}`, document.baseURI).href });
  const batches = { scheduledDelayMillis: SEND_EVERY_MS };

  new WebTracerProvider({
    resource,
    spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter(to("traces")), batches)],
  }).register({ propagator: new W3CTraceContextPropagator() });

  const logs = new LoggerProvider({
    resource,
    processors: [new BatchLogRecordProcessor({ exporter: new OTLPLogExporter(to("logs")), ...batches })],
  });
  logger = logs.getLogger("taskboard-web");

  const hideQuery = (url: string) => (span: Span) => void span.setAttribute("url.full", publicAddress(url, location.origin));
  registerInstrumentations({
    instrumentations: [
      new FetchInstrumentation({ ignoreNetworkEvents: true }), // traceparent goes to the own origin only: the default
      new DocumentLoadInstrumentation({
        applyCustomAttributesOnSpan: {
          documentLoad: hideQuery(location.href),
          documentFetch: hideQuery(location.href),
          resourceFetch: (span, resource) => { hideQuery(resource.name)(span); },
        },
      }),
    ],
  });

  for (const onVital of [onCLS, onFCP, onINP, onLCP, onTTFB]) onVital(reportVital);
  // Some are known only when the page goes away. They are reported by listeners of the document; the window's come after
  // them, so that all of them leave together: while a batch is under way, a second one waits, and the page is gone.
  addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") void logs.forceFlush();
  });
  addEventListener("error", (event) => {
    // Scripts of other origins, such as a browser extension's, are not ours to report.
    if (event.filename.startsWith(location.origin)) reportError(event.error ?? event.message);
  });
  addEventListener("unhandledrejection", (event) => { reportError(event.reason); });
}

/** Web vitals leave as events, not as metrics: each page view would be a metric series of its own. */
function reportVital({ name, value, rating, navigationType }: Metric): void {
  logger?.emit({
    eventName: "browser.web_vital",
    severityNumber: SeverityNumber.INFO,
    severityText: "INFO",
    body: `${name} ${name === "CLS" ? value.toFixed(3) : `${value.toFixed(0)} ms`}, ${rating}`,
    attributes: {
      "event.name": "browser.web_vital",
      "browser.web_vital.name": name.toLowerCase(),
      "browser.web_vital.value": Number(value.toFixed(4)), // more digits tell nothing, and may look like a card number
      "browser.web_vital.rating": rating,
      "browser.web_vital.navigation_type": navigationType,
    },
  });
}

/** Report an error that the page did not expect, as part of a span if its context is given. */
export function reportError(error: unknown, where?: Context): void {
  if (errorsLeft-- <= 0) return;
  const { name, message, stack } = error instanceof Error ? error : new Error(String(error));
  const text = publicText(message, location.origin);
  logger?.emit({
    eventName: "exception",
    severityNumber: SeverityNumber.ERROR,
    severityText: "ERROR",
    body: `${name}: ${text}`,
    attributes: {
      "event.name": "exception",
      "exception.type": name,
      "exception.message": text,
      "exception.stacktrace": publicText(stack ?? "", location.origin).slice(0, LONGEST_STACK),
    },
    ...(where && { context: where }),
  });
}

"""Traces: who calls whom, what is slow, what fails, and the very traces of it."""

from __future__ import annotations

from watchpost.dashboards import look
from watchpost.dashboards.look import Page, to
from watchpost.dashboards.names import ERROR_STEPS, LOGS, SLOW_SECONDS, TRACES, quantile

CALLS, LATENCY = "traces_spanmetrics_calls_total", "traces_spanmetrics_latency"
OF = 'service_name=~"$service", span_name=~"$operation"'
EDGE = "client, server"
_WITH = 'resource.service.name=~"$service" && name=~"$operation"'
_OPERATION = to(
    "Traces with it",
    TRACES,
    "slower",
    service="${__field.labels.service_name}",
    operation="${__field.labels.span_name}",
)
_LOGS = to("Log lines of the failures", LOGS, level="error", service="${__field.labels.service_name}")


def page() -> Page:
    """Return the dashboard."""
    return Page(
        uid=TRACES,
        title="Traces",
        question="Who calls whom, which calls are slow or fail, and which traces show it?",
        variables=[
            look.prom_variable(
                "service", "Service", "Services whose spans are looked at", CALLS, "service_name", every=True
            ),
            look.prom_variable(
                "operation", "Span", "Names of spans", f'{CALLS}{{service_name=~"$service"}}', "span_name", every=True
            ),
            look.choice_variable(
                "slower",
                "Slower than",
                "From which duration on a span is slow",
                ["500ms", "100ms", "250ms", "1s", "2s", "5s"],
            ),
        ],
        rows=[
            (
                "Traces",
                [
                    look.found_traces(
                        "Failed",
                        "Traces with a span of the chosen service and name that ended with an error. A trace id opens it.",
                        f"{{{_WITH} && status=error}}",
                        size=(12, 9),
                    ),
                    look.found_traces(
                        "Slow",
                        "Traces with such a span that took longer than the chosen time.",
                        f"{{{_WITH} && duration>$slower}}",
                        size=(12, 9),
                    ),
                ],
            ),
            (
                "Who calls whom",
                [
                    look.service_map(
                        "Service map",
                        "Each circle is a service, a database or a user: requests a second and average time, red for what fails. "
                        "Click one for its metrics and traces.",
                    ),
                    look.lines(
                        "Calls a second",
                        "By who calls whom; `user` is whoever sends no trace of its own.",
                        look.prom(
                            f"sum by ({EDGE}) (rate(traces_service_graph_request_total[$__rate_interval]))",
                            "{{client}} → {{server}}",
                        ),
                        unit="reqps",
                        size=(8, 8),
                    ),
                    look.lines(
                        "Share of calls that fail",
                        "By who calls whom. Empty while nobody calls.",
                        look.prom(
                            f"(sum by ({EDGE}) (rate(traces_service_graph_request_failed_total[$__rate_interval]))"
                            f" or 0 * sum by ({EDGE}) (rate(traces_service_graph_request_total[$__rate_interval])))"
                            f" / (sum by ({EDGE}) (rate(traces_service_graph_request_total[$__rate_interval])) > 0)",
                            "{{client}} → {{server}}",
                        ),
                        unit="percentunit",
                        steps=ERROR_STEPS,
                        size=(8, 8),
                        links=[to("Failed traces", TRACES)],
                    ),
                    look.lines(
                        "95th percentile of calls",
                        "As the called one measures it.",
                        look.prom(
                            quantile(0.95, "traces_service_graph_request_server_seconds", "", EDGE),
                            "{{client}} → {{server}}",
                        ),
                        unit="s",
                        size=(8, 8),
                        links=[to("Slow traces", TRACES)],
                    ),
                ],
            ),
            (
                "Spans by name",
                [
                    look.lines(
                        "Spans a second",
                        "The ten most frequent.",
                        look.prom(
                            f"topk(10, sum by (service_name, span_name) (rate({CALLS}{{{OF}}}[$__rate_interval])))",
                            "{{service_name}}: {{span_name}}",
                        ),
                        unit="ops",
                        size=(8, 9),
                        links=[_OPERATION],
                    ),
                    look.lines(
                        "Share of spans that fail",
                        "Of those that fail at all.",
                        look.prom(
                            f'sum by (service_name, span_name) (rate({CALLS}{{{OF}, status_code="STATUS_CODE_ERROR"}}[$__rate_interval]))'
                            f" / sum by (service_name, span_name) (rate({CALLS}{{{OF}}}[$__rate_interval]))",
                            "{{service_name}}: {{span_name}}",
                        ),
                        unit="percentunit",
                        steps=ERROR_STEPS,
                        empty="none fail",
                        size=(8, 9),
                        links=[_OPERATION, _LOGS],
                    ),
                    look.lines(
                        "95th percentile of spans",
                        "The ten slowest. Each dot is one span: it leads to its trace.",
                        look.prom(
                            f"topk(10, {quantile(0.95, LATENCY, OF, 'service_name, span_name')})",
                            "{{service_name}}: {{span_name}}",
                            exemplars=True,
                        ),
                        unit="s",
                        steps=[("transparent", None), ("red", SLOW_SECONDS)],
                        size=(8, 9),
                        links=[_OPERATION],
                    ),
                ],
            ),
        ],
    )

"""Service: what one service is asked, how it answers by route, and what it needs for that."""

from __future__ import annotations

from watchpost.dashboards import look
from watchpost.dashboards.look import Column, Page, to
from watchpost.dashboards.names import (
    ERROR_STEPS,
    LATENCY_STEPS,
    LOGS,
    REQUESTS,
    SERVICE,
    SLOW_SECONDS,
    TRACES,
    failing,
    quantile,
)

OF = 'service_name=~"$service", http_route=~"$route"'
ROUTE = "http_request_method, http_route"
DATABASE = 'client=~"$service", connection_type="database"'
#: Calls that are not HTTP: those to a database or a queue.
STATEMENTS = 'service_name=~"$service", span_kind="SPAN_KIND_CLIENT", http_request_method=""'
_TRACES = to(
    "Its slow traces", TRACES, "service", operation="${__field.labels.http_request_method} ${__field.labels.http_route}"
)
_LOGS = to("Log lines of the failures", LOGS, "service", level="error", search="${__field.labels.http_route}")
_SLOW = [("transparent", None), ("red", SLOW_SECONDS)]


def page() -> Page:
    """Return the dashboard."""
    return Page(
        uid=SERVICE,
        title="Service",
        question="What is this service asked, how fast and how well does it answer, route by route, and what does it need for that?",
        variables=[
            look.prom_variable("service", "Service", "The service to look at", f"{REQUESTS}_count", "service_name"),
            look.prom_variable(
                "route",
                "Route",
                "Routes to look at",
                f'{REQUESTS}_count{{service_name=~"$service"}}',
                "http_route",
                every=True,
            ),
        ],
        rows=[
            (
                "Rate, errors, duration",
                [
                    look.lines(
                        "Requests a second, by route",
                        "What is asked for, method and route; unknown addresses have no route.",
                        look.prom(
                            f"sum by ({ROUTE}) (rate({REQUESTS}_count{{{OF}}}[$__rate_interval]))",
                            "{{http_request_method}} {{http_route}}",
                        ),
                        unit="reqps",
                        stacked=True,
                        size=(8, 9),
                        links=[_TRACES],
                    ),
                    look.lines(
                        "Share of answers that fail, by route",
                        "Answers with status 500 or more. Empty while nobody asks.",
                        look.prom(failing(OF, ROUTE), "{{http_request_method}} {{http_route}}"),
                        unit="percentunit",
                        steps=ERROR_STEPS,
                        size=(8, 9),
                        links=[_LOGS, to("Failed traces", TRACES, "service")],
                    ),
                    look.lines(
                        "95th percentile, by route",
                        "Nineteen of twenty answers come faster. Each dot is one request: it leads to its trace.",
                        look.prom(
                            quantile(0.95, REQUESTS, OF, ROUTE),
                            "{{http_request_method}} {{http_route}}",
                            exemplars=True,
                        ),
                        unit="s",
                        steps=_SLOW,
                        size=(8, 9),
                        links=[_TRACES],
                    ),
                    look.lines(
                        "Percentiles of all answers",
                        "Half, 95 and 99 of 100 answers come faster. Each dot leads to a trace.",
                        look.prom(quantile(0.5, REQUESTS, OF), "P50"),
                        look.prom(quantile(0.95, REQUESTS, OF), "P95"),
                        look.prom(quantile(0.99, REQUESTS, OF), "P99", exemplars=True),
                        unit="s",
                        steps=_SLOW,
                        size=(8, 8),
                        links=[to("Slow traces", TRACES, "service")],
                    ),
                    look.lines(
                        f"Share answered within {SLOW_SECONDS * 1000:.0f} ms",
                        "The rest was too slow. Empty while nobody asks.",
                        look.prom(
                            f'sum(rate({REQUESTS}_bucket{{{OF}, le="{SLOW_SECONDS}"}}[$__rate_interval]))'
                            f" / (sum(rate({REQUESTS}_count{{{OF}}}[$__rate_interval])) > 0)",
                            "fast enough",
                        ),
                        unit="percentunit",
                        minimum=None,
                        maximum=1,
                        steps=[("transparent", None), ("red", 0.99)],
                        size=(8, 8),
                        links=[to("Slow traces", TRACES, "service")],
                    ),
                    look.lines(
                        "Answers a second, by status",
                        "4xx is the caller's mistake, 5xx is ours.",
                        look.prom(
                            f"sum by (http_response_status_code) (rate({REQUESTS}_count{{{OF}}}[$__rate_interval]))",
                            "{{http_response_status_code}}",
                        ),
                        unit="reqps",
                        stacked=True,
                        size=(8, 8),
                        links=[to("Log lines", LOGS, "service", search="${__field.labels.http_response_status_code}")],
                    ),
                    look.listing(
                        "Routes",
                        "Each route in the last five minutes.",
                        look.prom_table(f"sum by ({ROUTE}) (rate({REQUESTS}_count{{{OF}}}[5m]))"),
                        look.prom_table(
                            f'sum by ({ROUTE}) (rate({REQUESTS}_count{{{OF}, http_response_status_code=~"5.."}}[5m]))'
                            f" / sum by ({ROUTE}) (rate({REQUESTS}_count{{{OF}}}[5m]))"
                        ),
                        look.prom_table(
                            f"histogram_quantile(0.5, sum by (le, {ROUTE}) (rate({REQUESTS}_bucket{{{OF}}}[5m])))"
                        ),
                        look.prom_table(
                            f"histogram_quantile(0.95, sum by (le, {ROUTE}) (rate({REQUESTS}_bucket{{{OF}}}[5m])))"
                        ),
                        columns=[
                            Column("http_request_method", "Method"),
                            Column("http_route", "Route"),
                            Column("Value #A", "Requests", "reqps"),
                            Column(
                                "Value #B",
                                "Fail",
                                "percentunit",
                                steps=ERROR_STEPS,
                                links=[
                                    to(
                                        "Their log lines",
                                        LOGS,
                                        "service",
                                        level="error",
                                        search="${__data.fields.Route}",
                                    )
                                ],
                            ),
                            Column("Value #C", "Half within", "s"),
                            Column(
                                "Value #D",
                                "95 % within",
                                "s",
                                steps=LATENCY_STEPS,
                                links=[
                                    to(
                                        "Slow traces",
                                        TRACES,
                                        "service",
                                        operation="${__data.fields.Method} ${__data.fields.Route}",
                                    )
                                ],
                            ),
                        ],
                        sort="95 % within",
                        empty="nobody asks",
                        size=(24, 8),
                    ),
                ],
            ),
            (
                "Database",
                [
                    look.lines(
                        "Statements a second, by kind",
                        "What the service says to its database, from its spans.",
                        look.prom(
                            f"topk(10, sum by (span_name) (rate(traces_spanmetrics_calls_total{{{STATEMENTS}}}[$__rate_interval])))",
                            "{{span_name}}",
                        ),
                        unit="ops",
                        stacked=True,
                        size=(8, 8),
                        links=[to("Traces with it", TRACES, "service", operation="${__field.labels.span_name}")],
                    ),
                    look.lines(
                        "95th percentile of statements, by kind",
                        "Each dot is one statement: it leads to its trace.",
                        look.prom(
                            f"topk(10, {quantile(0.95, 'traces_spanmetrics_latency', STATEMENTS, 'span_name')})",
                            "{{span_name}}",
                            exemplars=True,
                        ),
                        unit="s",
                        steps=_SLOW,
                        size=(8, 8),
                        links=[to("Slow traces with it", TRACES, "service", operation="${__field.labels.span_name}")],
                    ),
                    look.lines(
                        "Share of statements that fail",
                        "Empty while there are none.",
                        look.prom(
                            f"(sum by (server) (rate(traces_service_graph_request_failed_total{{{DATABASE}}}[$__rate_interval]))"
                            f" or 0 * sum by (server) (rate(traces_service_graph_request_total{{{DATABASE}}}[$__rate_interval])))"
                            f" / (sum by (server) (rate(traces_service_graph_request_total{{{DATABASE}}}[$__rate_interval])) > 0)",
                            "{{server}}",
                        ),
                        unit="percentunit",
                        steps=ERROR_STEPS,
                        size=(8, 8),
                        links=[to("Failed traces", TRACES, "service"), to("Log lines", LOGS, "service", level="error")],
                    ),
                    look.lines(
                        "Connections of the pool, by state",
                        "When none is idle, requests wait for one.",
                        look.prom(
                            'sum by (state) (db_client_connections_usage{service_name=~"$service"})', "{{state}}"
                        ),
                        unit="none",
                        stacked=True,
                        size=(8, 7),
                    ),
                    look.lines(
                        "Statements for each request",
                        "A number that grows with the data is a loop of queries.",
                        look.prom(
                            f'sum(rate(traces_spanmetrics_calls_total{{{STATEMENTS}, span_name!="connect"}}[$__rate_interval]))'
                            f' / (sum(rate({REQUESTS}_count{{service_name=~"$service"}}[$__rate_interval])) > 0)',
                            "statements",
                        ),
                        unit="none",
                        size=(8, 7),
                        links=[to("Slow traces", TRACES, "service")],
                    ),
                    look.lines(
                        "Tasks, by state",
                        "The task manager's own figure: what its users have done and what is left.",
                        look.prom('sum by (task_state) (taskboard_tasks{service_name=~"$service"})', "{{task_state}}"),
                        unit="none",
                        stacked=True,
                        size=(8, 7),
                    ),
                ],
            ),
            (
                "Runtime",
                [
                    look.lines(
                        "Requests in work",
                        "All at once; many of them mean that answers take long, or that more is asked than can be done.",
                        look.prom(
                            'sum by (http_request_method) (http_server_active_requests{service_name=~"$service"})',
                            "{{http_request_method}}",
                        ),
                        unit="none",
                        stacked=True,
                        size=(6, 7),
                    ),
                    look.lines(
                        "Processor, by worker",
                        "1 is one processor in full.",
                        look.prom(
                            'sum by (service_instance_id) (rate(process_cpu_time_seconds_total{service_name=~"$service"}[$__rate_interval]))',
                            "{{service_instance_id}}",
                        ),
                        unit="none",
                        stacked=True,
                        size=(6, 7),
                    ),
                    look.lines(
                        "Memory, by worker",
                        "A line that only climbs is a leak; a new line is a worker that was started anew.",
                        look.prom(
                            'sum by (service_instance_id) (process_memory_usage_bytes{service_name=~"$service"})',
                            "{{service_instance_id}}",
                        ),
                        unit="bytes",
                        stacked=True,
                        size=(6, 7),
                    ),
                    look.lines(
                        "Threads and open files",
                        "Of all workers together.",
                        look.prom('sum(process_thread_count{service_name=~"$service"})', "threads"),
                        look.prom('sum(process_open_file_descriptor_count{service_name=~"$service"})', "open files"),
                        unit="none",
                        size=(6, 7),
                    ),
                ],
            ),
            (
                "What it says",
                [
                    look.log_lines(
                        "Warnings and errors",
                        "Open a line to see all it holds, and to go to its trace.",
                        look.loki_lines(
                            '{service_name=~"$service", service_name!=""} | detected_level=~"warn|error|critical|fatal"'
                        ),
                    ),
                ],
            ),
        ],
    )

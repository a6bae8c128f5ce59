"""Start here: is everything all right, and where to look when it is not."""

from __future__ import annotations

from watchpost.dashboards import look
from watchpost.dashboards.look import Column, Page, runbook, to
from watchpost.dashboards.names import (
    APPLIANCE,
    BROWSER,
    BUDGET_STEPS,
    COMPONENTS,
    ERROR_STEPS,
    FIRING,
    LATENCY_STEPS,
    LOGS,
    REQUESTS,
    SERVICE,
    SLO,
    SLOW_SECONDS,
    START,
    TRACES,
    UP,
    failing,
    quantile,
)

ROUTE = "service_name, http_request_method, http_route"
_ONE_ROUTE = {"service": "${__data.fields.Service}", "route": "${__data.fields.Route}"}


def page() -> Page:
    """Return the dashboard."""
    return Page(
        uid=START,
        title="Start here",
        question="Is everything all right? If not: what is wrong, since when, and where do I look next?",
        rows=[
            (
                "Is everything all right?",
                [
                    look.number(
                        "Components",
                        "Each service of the appliance: down when systemd does not run it, or it does not answer Prometheus.",
                        look.prom_now(COMPONENTS, "{{component}}"),
                        unit="none",
                        steps=[("red", None), ("green", 1)],
                        words=UP,
                        empty="nothing reports",
                        links=[to("The appliance's own state", APPLIANCE)],
                        size=(12, 5),
                    ),
                    look.number(
                        "Alerts that fire",
                        "How many alerts call for somebody. The table below names them.",
                        look.prom_now(f"count({FIRING}) or vector(0)"),
                        unit="none",
                        steps=[("green", None), ("red", 1)],
                        size=(4, 5),
                        links=[to("The appliance's own state", APPLIANCE)],
                    ),
                    look.number(
                        "Error budget that is left",
                        "Of each objective: 100 % is untouched, below 0 % more has failed than was promised.",
                        look.prom_now("slo:budget_left:ratio", "{{slo}}"),
                        unit="percentunit",
                        steps=BUDGET_STEPS,
                        empty="no objective yet",
                        decimals=1,
                        links=[to("How fast it is spent", SLO, slo="${__field.labels.slo}")],
                        size=(8, 5),
                    ),
                    look.listing(
                        "What fires",
                        "The alerts that fire now, those that wake somebody up first. Each leads to its runbook.",
                        look.prom_table(FIRING),
                        columns=[
                            Column("alertname", "Alert", links=[runbook("${__data.fields.Alert}")]),
                            Column("severity", "Severity"),
                            Column("slo", "Objective"),
                            Column("service", "Service"),
                            Column("job", "Component"),
                            Column("instance", "On"),
                        ],
                        sort="Severity",
                        descending=False,
                        empty="nothing: all is well",
                        size=(18, 7),
                    ),
                    look.dashboards_list(
                        "Where to look next", "All of Watchpost's dashboards, over the same time.", size=(6, 7)
                    ),
                ],
            ),
            (
                "What users get",
                [
                    look.lines(
                        "Requests a second",
                        "What the services are asked for. A fall to nothing is a failure too.",
                        look.prom(
                            f"sum by (service_name) (rate({REQUESTS}_count[$__rate_interval]))", "{{service_name}}"
                        ),
                        unit="reqps",
                        size=(8, 8),
                        links=[to("By route", SERVICE, service="${__field.labels.service_name}")],
                    ),
                    look.lines(
                        "Share of answers that fail",
                        "Answers with status 500 or more. Empty while nobody asks.",
                        look.prom(failing("", "service_name"), "{{service_name}}"),
                        unit="percentunit",
                        steps=ERROR_STEPS,
                        size=(8, 8),
                        links=[
                            to(
                                "Log lines of the failures",
                                LOGS,
                                service="${__field.labels.service_name}",
                                level="error",
                            ),
                            to("Failed traces", TRACES, service="${__field.labels.service_name}"),
                        ],
                    ),
                    look.lines(
                        "95th percentile of latency",
                        "Nineteen of twenty answers come faster. Each dot is one request: it leads to its trace.",
                        look.prom(quantile(0.95, REQUESTS, "", "service_name"), "{{service_name}}", exemplars=True),
                        unit="s",
                        steps=[("transparent", None), ("red", SLOW_SECONDS)],
                        size=(8, 8),
                        links=[
                            to("Slow traces", TRACES, service="${__field.labels.service_name}"),
                            to("By route", SERVICE, service="${__field.labels.service_name}"),
                        ],
                    ),
                    look.listing(
                        "Slowest routes",
                        "By the 95th percentile of the last five minutes.",
                        look.prom_table(
                            f"topk(10, histogram_quantile(0.95, sum by (le, {ROUTE}) (rate({REQUESTS}_bucket[5m]))) > 0)"
                        ),
                        look.prom_table(f"sum by ({ROUTE}) (rate({REQUESTS}_count[5m]))"),
                        look.prom_table(
                            f'sum by ({ROUTE}) (rate({REQUESTS}_count{{http_response_status_code=~"5.."}}[5m]))'
                        ),
                        columns=[
                            Column("service_name", "Service"),
                            Column("http_request_method", "Method"),
                            Column("http_route", "Route", links=[to("This route", SERVICE, **_ONE_ROUTE)]),
                            Column(
                                "Value #A",
                                "95th percentile",
                                "s",
                                steps=LATENCY_STEPS,
                                links=[
                                    to(
                                        "Its slow traces",
                                        TRACES,
                                        service="${__data.fields.Service}",
                                        operation="${__data.fields.Method} ${__data.fields.Route}",
                                    )
                                ],
                            ),
                            Column("Value #B", "Requests", "reqps"),
                            Column(
                                "Value #C",
                                "Failures",
                                "reqps",
                                links=[to("Their log lines", LOGS, service="${__data.fields.Service}", level="error")],
                            ),
                        ],
                        sort="95th percentile",
                        empty="nobody asks",
                        size=(16, 8),
                    ),
                    look.number(
                        "Pages that load well",
                        "Of the web vitals that browsers have measured in this time, the share that is good.",
                        look.loki_now(
                            'sum(count_over_time({service_name=~".+"} | event_name=`browser.web_vital` | browser_web_vital_rating=`good` [$__range]))'
                            ' / sum(count_over_time({service_name=~".+"} | event_name=`browser.web_vital` [$__range]))'
                        ),
                        unit="percentunit",
                        steps=[("red", None), ("orange", 0.5), ("green", 0.75)],
                        empty="no visits",
                        size=(4, 8),
                        links=[to("What browsers measure", BROWSER)],
                    ),
                    look.number(
                        "Errors logged",
                        "Log lines of level error or worse, in this time.",
                        look.loki_now(
                            'sum(count_over_time({service_name=~".+"} | detected_level=~"error|critical|fatal" [$__range]))'
                        ),
                        unit="short",
                        steps=[("green", None), ("orange", 1), ("red", 100)],
                        empty="none",
                        size=(4, 8),
                        links=[to("Read them", LOGS, level="error")],
                    ),
                ],
            ),
        ],
    )

"""Browser: what users of the page get, measured where they are."""

from __future__ import annotations

from watchpost.dashboards import look
from watchpost.dashboards.look import Page, Steps, to
from watchpost.dashboards.names import BROWSER, ERROR_STEPS, LOGS, SLOW_SECONDS, TRACES, quantile

# Loki wants a matcher that the empty text does not meet, which is what $service is before the first visit.
VITAL = '{service_name=~"$service", service_name!=""} | event_name=`browser.web_vital`'
ERRORS = '{service_name=~"$service", service_name!=""} | event_name=`exception`'
SPANS, LATENCY = "traces_spanmetrics_calls_total", "traces_spanmetrics_latency"
LOADS = 'service_name=~"$service", span_name="documentLoad"'
FETCHES = 'service_name=~"$service", span_kind="SPAN_KIND_CLIENT"'
#: What a person does; the spans of loading have fixed names.
CLICKS = (
    'service_name=~"$service", span_kind="SPAN_KIND_INTERNAL", span_name!~"documentLoad|documentFetch|resourceFetch"'
)

#: Name, what it tells, unit, and from where on it is no longer good, and poor (https://web.dev/articles/vitals).
VITALS = [
    ("lcp", "Largest contentful paint", "Until the largest part of the page is seen", "ms", 2500, 4000),
    ("inp", "Interaction to next paint", "From a click or key until the page shows its effect", "ms", 200, 500),
    (
        "cls",
        "Cumulative layout shift",
        "How much the page jumps while it is read; a number without unit",
        "none",
        0.1,
        0.25,
    ),
    ("fcp", "First contentful paint", "Until anything of the page is seen", "ms", 1800, 3000),
    ("ttfb", "Time to first byte", "Until the server's answer begins", "ms", 800, 1800),
]
_RATINGS = {"good": "green", "needs-improvement": "orange", "poor": "red"}


def _steps(needs_work: float, poor: float) -> Steps:
    return [("green", None), ("orange", needs_work), ("red", poor)]


def page() -> Page:
    """Return the dashboard."""
    return Page(
        uid=BROWSER,
        title="Browser",
        question="What do people get in their browsers: does the page load fast, react at once, hold still, and work?",
        span="6h",
        variables=[
            look.prom_variable(
                "service", "Page", "The page to look at", f'{SPANS}{{span_name="documentLoad"}}', "service_name"
            ),
        ],
        rows=[
            (
                "Web vitals: three of four visits are better than this",
                [
                    *(
                        look.number(
                            title,
                            f"{tells}. Good up to {good:g}, poor from {poor:g}{' ms' if unit == 'ms' else ''}.",
                            look.loki_now(
                                f"quantile_over_time(0.75, {VITAL} | browser_web_vital_name=`{name}` | unwrap browser_web_vital_value | __error__=`` [$__range]) by ()"
                            ),
                            unit=unit,
                            steps=_steps(good, poor),
                            empty="no visits",
                            decimals=2 if unit == "none" else 0,
                            size=(4, 5),
                            links=[to("Single measurements", LOGS, "service", search=name.upper())],
                        )
                        for name, title, tells, unit, good, poor in VITALS
                    ),
                    look.number(
                        "Visits",
                        "How often the page was loaded in this time.",
                        look.prom_now(f"sum(increase({SPANS}{{{LOADS}}}[$__range]))"),
                        unit="short",
                        steps=[("blue", None)],
                        decimals=0,
                        empty="none",
                        size=(4, 5),
                        links=[to("Their traces", TRACES, "service", operation="documentLoad")],
                    ),
                    look.lines(
                        "Times, three of four visits are faster",
                        "The vitals that are times.",
                        look.loki_metric(
                            f"quantile_over_time(0.75, {VITAL} | browser_web_vital_name!=`cls` | unwrap browser_web_vital_value | __error__=`` [$__interval]) by (browser_web_vital_name)",
                            "{{browser_web_vital_name}}",
                        ),
                        unit="ms",
                        links=[
                            to(
                                "Single measurements",
                                LOGS,
                                "service",
                                search="${__field.labels.browser_web_vital_name}",
                            )
                        ],
                    ),
                    look.lines(
                        "Measurements by how good they are",
                        "Each visit gives up to five.",
                        look.loki_metric(
                            f"sum by (browser_web_vital_rating) (count_over_time({VITAL} [$__interval]))",
                            "{{browser_web_vital_rating}}",
                        ),
                        unit="short",
                        stacked=True,
                        bars=True,
                        colors=_RATINGS,
                        links=[
                            to(
                                "Single measurements",
                                LOGS,
                                "service",
                                search="${__field.labels.browser_web_vital_rating}",
                            )
                        ],
                    ),
                ],
            ),
            (
                "Loading",
                [
                    look.lines(
                        "Page loads a minute",
                        "How often the page was opened.",
                        look.prom(f"60 * sum(rate({SPANS}{{{LOADS}}}[$__rate_interval]))", "loads"),
                        unit="none",
                        links=[to("Their traces", TRACES, "service", operation="documentLoad")],
                    ),
                    look.lines(
                        "How long loading takes",
                        "From the navigation to the end of loading. Each dot is one visit: it leads to its trace.",
                        look.prom(quantile(0.5, LATENCY, LOADS), "P50"),
                        look.prom(quantile(0.95, LATENCY, LOADS), "P95", exemplars=True),
                        unit="s",
                        links=[to("Slow loads", TRACES, "service", operation="documentLoad")],
                    ),
                ],
            ),
            (
                "Requests of the page, as its users see them",
                [
                    look.lines(
                        "Latency, network and all",
                        "From the request to the answer, in the browser. Each dot leads to its trace.",
                        look.prom(quantile(0.5, LATENCY, FETCHES), "P50"),
                        look.prom(quantile(0.95, LATENCY, FETCHES), "P95", exemplars=True),
                        unit="s",
                        steps=[("transparent", None), ("red", SLOW_SECONDS)],
                        size=(8, 8),
                        links=[to("Slow traces", TRACES, "service")],
                    ),
                    look.lines(
                        "Answers a second, by status",
                        "None at all is a network that failed.",
                        look.prom(
                            f"sum by (http_request_method, http_response_status_code) (rate({SPANS}{{{FETCHES}}}[$__rate_interval]))",
                            "{{http_request_method}} {{http_response_status_code}}",
                        ),
                        unit="reqps",
                        stacked=True,
                        size=(8, 8),
                        links=[to("Traces", TRACES, "service", operation="${__field.labels.http_request_method}")],
                    ),
                    look.lines(
                        "Share of what people did that failed",
                        "By what they did: whatever showed them an error.",
                        look.prom(
                            f'(sum by (span_name) (rate({SPANS}{{{CLICKS}, status_code="STATUS_CODE_ERROR"}}[$__rate_interval]))'
                            f" or 0 * sum by (span_name) (rate({SPANS}{{{CLICKS}}}[$__rate_interval])))"
                            f" / (sum by (span_name) (rate({SPANS}{{{CLICKS}}}[$__rate_interval])) > 0)",
                            "{{span_name}}",
                        ),
                        unit="percentunit",
                        steps=ERROR_STEPS,
                        size=(8, 8),
                        links=[to("Failed traces", TRACES, "service", operation="${__field.labels.span_name}")],
                    ),
                ],
            ),
            (
                "JavaScript errors",
                [
                    look.lines(
                        "Errors, by kind",
                        "What the page did not expect.",
                        look.loki_metric(
                            f"sum by (exception_type) (count_over_time({ERRORS} [$__interval]))", "{{exception_type}}"
                        ),
                        unit="short",
                        stacked=True,
                        bars=True,
                        empty="none",
                        size=(8, 9),
                        links=[
                            to(
                                "Their log lines",
                                LOGS,
                                "service",
                                level="error",
                                search="${__field.labels.exception_type}",
                            )
                        ],
                    ),
                    look.log_lines(
                        "Errors",
                        "Open a line for its stack, and for the trace of what the person did.",
                        look.loki_lines(ERRORS),
                        size=(16, 9),
                    ),
                ],
            ),
        ],
    )

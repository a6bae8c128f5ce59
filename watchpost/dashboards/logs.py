"""Logs: how much is said, how loudly, and where a word is found."""

from __future__ import annotations

from watchpost.dashboards import look
from watchpost.dashboards.look import Page, to
from watchpost.dashboards.names import LOGS

FOUND = '{service_name=~"$service"} | detected_level=~"$level" | trace_id=~"$trace.*" |~ `(?i)$search`'
ERRORS = '{service_name=~"$service"} | detected_level=~"error|critical|fatal" | trace_id=~"$trace.*" |~ `(?i)$search`'
#: Loki's words for levels, whatever the program calls them.
LEVELS = {
    "critical": "purple",
    "fatal": "dark-purple",
    "error": "red",
    "warn": "orange",
    "info": "green",
    "debug": "blue",
    "trace": "light-blue",
    "unknown": "gray",
}


def page() -> Page:
    """Return the dashboard."""
    return Page(
        uid=LOGS,
        title="Logs",
        question="What do the services say, how much of it and how loudly, and which line and trace tell of this failure?",
        variables=[
            look.loki_variable("service", "Service", "Services whose lines are shown", "service_name", every=True),
            look.choice_variable("level", "Level", "Levels that are shown", list(LEVELS), every=True),
            look.text_variable("search", "Search", "A regular expression in the line's text; capitals do not matter"),
            look.text_variable("trace", "Trace", "A trace id, or its beginning: only that trace's lines are shown"),
        ],
        rows=[
            (
                "How much, how loudly",
                [
                    look.lines(
                        "Lines by level",
                        "Of what is chosen above.",
                        look.loki_metric(
                            f"sum by (detected_level) (count_over_time({FOUND} [$__interval]))", "{{detected_level}}"
                        ),
                        unit="short",
                        stacked=True,
                        bars=True,
                        colors=LEVELS,
                        links=[to("Only these", LOGS, "service", "search", level="${__field.labels.detected_level}")],
                    ),
                    look.lines(
                        "Lines by service",
                        "Who says how much.",
                        look.loki_metric(
                            f"sum by (service_name) (count_over_time({FOUND} [$__interval]))", "{{service_name}}"
                        ),
                        unit="short",
                        stacked=True,
                        bars=True,
                        links=[to("Only these", LOGS, "level", "search", service="${__field.labels.service_name}")],
                    ),
                    look.number(
                        "Errors",
                        "Lines of level error or worse.",
                        look.loki_now(f"sum(count_over_time({ERRORS} [$__range]))"),
                        unit="short",
                        steps=[("green", None), ("orange", 1), ("red", 100)],
                        empty="none",
                        size=(4, 8),
                        links=[to("Only these", LOGS, "service", "search", level="error")],
                    ),
                    look.lines(
                        "Errors by kind",
                        "By the exception's type, where a line has one.",
                        look.loki_metric(
                            f'topk(10, sum by (service_name, exception_type) (count_over_time({ERRORS} | exception_type!="" [$__interval])))',
                            "{{service_name}} {{exception_type}}",
                        ),
                        unit="short",
                        stacked=True,
                        bars=True,
                        empty="none",
                        size=(20, 8),
                        links=[
                            to(
                                "Only these",
                                LOGS,
                                level="error",
                                service="${__field.labels.service_name}",
                                search="${__field.labels.exception_type}",
                            )
                        ],
                    ),
                ],
            ),
            (
                "Lines",
                [
                    look.log_lines(
                        "Errors",
                        "Open a line to see all it holds; its trace id leads to its trace.",
                        look.loki_lines(ERRORS),
                    ),
                    look.log_lines(
                        "All lines that are chosen",
                        "Open a line to see all it holds; its trace id leads to its trace.",
                        look.loki_lines(FOUND),
                        size=(24, 14),
                    ),
                ],
            ),
        ],
    )

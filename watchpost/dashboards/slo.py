"""SLO: what was promised, how much of the error budget is left, how fast it is spent, and when it will be gone."""

from __future__ import annotations

from watchpost.dashboards import look
from watchpost.dashboards.look import Column, Page, to
from watchpost.dashboards.names import BUDGET_STEPS, LOGS, SLO, TRACES

OF = 'slo=~"$slo"'
#: Windows of burn rates, and from which rate on each pair alerts (watchpost.slo.rules, POLICY).
BURN = [
    ("5m", "1h", 14.4, "page"),
    ("30m", "6h", 6.0, "page"),
    ("2h", "1d", 3.0, "ticket"),
    ("6h", "3d", 1.0, "ticket"),
]
#: Not to the dashboard of services: an objective may be of one that serves nobody, as a page is.
_TRACES = to("Failed and slow traces", TRACES, service="${__field.labels.service}")


def page() -> Page:
    """Return the dashboard."""
    return Page(
        uid=SLO,
        title="SLO",
        question="Do we keep what we promised? How much may still fail, how fast is that spent, and when will it be gone?",
        span="7d",
        variables=[
            look.prom_variable("slo", "Objective", "Objectives to look at", "slo:objective:ratio", "slo", every=True)
        ],
        rows=[
            (
                "Now",
                [
                    look.number(
                        "Promised",
                        "The share of events that is to be good, over the objective's window.",
                        look.prom_now(f"slo:objective:ratio{{{OF}}}", "{{slo}}"),
                        unit="percentunit",
                        steps=[("blue", None)],
                        decimals=2,
                        empty="no objective",
                        size=(8, 5),
                        links=[_TRACES],
                    ),
                    look.number(
                        "Error budget that is left",
                        "100 % is untouched; below 0 % more has failed than was promised.",
                        look.prom_now(f"slo:budget_left:ratio{{{OF}}}", "{{slo}}"),
                        unit="percentunit",
                        steps=BUDGET_STEPS,
                        decimals=1,
                        empty="no objective",
                        size=(8, 5),
                        links=[
                            _TRACES,
                            to("Log lines of the failures", LOGS, service="${__field.labels.service}", level="error"),
                        ],
                    ),
                    look.number(
                        "Budget will be gone in",
                        "If it goes on as in the last hour. Nothing is shown while nothing is spent.",
                        look.prom_now(f"slo:time_to_exhaustion:seconds{{{OF}}}", "{{slo}}"),
                        unit="s",
                        steps=[("red", None), ("orange", 86400), ("green", 2592000)],
                        empty="nothing is spent",
                        size=(8, 5),
                        links=[_TRACES],
                    ),
                    look.listing(
                        "Objectives",
                        "Each with its present figures.",
                        look.prom_table(f"max by (slo, service) (slo:objective:ratio{{{OF}}})"),
                        look.prom_table(f"max by (slo, service) (slo:budget_left:ratio{{{OF}}})"),
                        look.prom_table(f"max by (slo, service) (slo:burn_rate:ratio1h{{{OF}}})"),
                        look.prom_table(f"max by (slo, service) (slo:error_ratio:rate1h{{{OF}}})"),
                        columns=[
                            Column("slo", "Objective"),
                            Column(
                                "service",
                                "Service",
                                links=[to("Failed and slow traces", TRACES, service="${__data.fields.Service}")],
                            ),
                            Column("Value #A", "Promised", "percentunit"),
                            Column("Value #B", "Budget left", "percentunit", steps=BUDGET_STEPS),
                            Column(
                                "Value #C",
                                "Burn rate, 1 h",
                                "none",
                                steps=[("green", None), ("orange", 1), ("red", 14.4)],
                            ),
                            Column(
                                "Value #D",
                                "Bad, 1 h",
                                "percentunit",
                                links=[
                                    to(
                                        "Log lines of the failures",
                                        LOGS,
                                        service="${__data.fields.Service}",
                                        level="error",
                                    ),
                                ],
                            ),
                        ],
                        sort="Burn rate, 1 h",
                        empty="no objective",
                        size=(24, 6),
                    ),
                ],
            ),
            (
                "Burn-down",
                [
                    look.lines(
                        "Error budget that is left",
                        "It falls while too much fails and recovers as failures leave the window. Choose the whole window above.",
                        look.prom(f"slo:budget_left:ratio{{{OF}}}", "{{slo}}"),
                        unit="percentunit",
                        minimum=None,
                        maximum=1,
                        steps=[("transparent", None), ("red", 0)],
                        size=(24, 9),
                        links=[_TRACES],
                    ),
                ],
            ),
            (
                "How fast it is spent: 1 spends the budget in exactly the window",
                [
                    look.lines(
                        f"Burn rate over {short} and {long}: {severity} from {factor:g}",
                        f"Of an objective over 30 days (docs/slo.md has other windows) an alert ({severity}) fires when both are above {factor:g} and enough has failed: the long one says that it matters, the short one that it still goes on.",
                        look.prom(f"slo:burn_rate:ratio{short}{{{OF}}}", f"{{{{slo}}}}, {short}"),
                        look.prom(f"slo:burn_rate:ratio{long}{{{OF}}}", f"{{{{slo}}}}, {long}"),
                        unit="none",
                        steps=[("transparent", None), ("red", factor)],
                        links=[_TRACES],
                    )
                    for short, long, factor, severity in BURN
                ],
            ),
            (
                "Events",
                [
                    look.lines(
                        "Share that is bad",
                        "Over one hour.",
                        look.prom(f"slo:error_ratio:rate1h{{{OF}}}", "{{slo}}"),
                        unit="percentunit",
                        links=[
                            to("Log lines of the failures", LOGS, service="${__field.labels.service}", level="error"),
                            _TRACES,
                        ],
                    ),
                    look.lines(
                        "95th percentile of latency",
                        "Of objectives of latency, over five minutes.",
                        look.prom(f"slo:latency_seconds:p95{{{OF}}}", "{{slo}}"),
                        unit="s",
                        links=[_TRACES],
                    ),
                    look.lines(
                        "Events a second",
                        "All that count, and those that are good.",
                        look.prom(f"slo:sli_total:rate5m{{{OF}}}", "{{slo}}, all"),
                        look.prom(f"slo:sli_good:rate5m{{{OF}}}", "{{slo}}, good"),
                        unit="ops",
                        links=[_TRACES],
                    ),
                ],
            ),
        ],
    )

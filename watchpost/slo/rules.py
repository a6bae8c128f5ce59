"""Turn objectives into Prometheus's recording and alerting rules.

Sources, named in the docstrings below by what stands in brackets:

- [workbook] Google, *The Site Reliability Workbook*, chapter 5 "Alerting on SLOs",
  https://sre.google/workbook/alerting-on-slos/
- [budget] the same, chapter 2 "Implementing SLOs", https://sre.google/workbook/implementing-slos/
- [rate] Prometheus, "Query functions", https://prometheus.io/docs/prometheus/latest/querying/functions/#rate
- [histograms] Prometheus, "Histograms and summaries", https://prometheus.io/docs/practices/histograms/
- [practices] Prometheus, "Recording rules", https://prometheus.io/docs/practices/rules/

Recorded, each with the labels `slo` and `service` (W is one of `WINDOWS`, or the objective's own window in days):

    slo:sli_total:rateW           events a second over W; 0 without traffic
    slo:sli_good:rateW            good events a second over W
    slo:error_ratio:rateW         bad events / events over W; 0 without traffic
    slo:burn_rate:ratioW          how many times as fast as allowed the budget is spent; 1 spends it in one window
    slo:objective:ratio           what was promised, such as 0.99
    slo:window:days               how far back the budget looks, such as 30
    slo:budget_left:ratio         share of the error budget that is left; 1 is untouched, below 0 is overspent
    slo:time_to_exhaustion:seconds   until nothing is left at the last hour's burn rate; absent while nothing burns
    slo:latency_seconds:p95       95th percentile over 5 minutes, of latency objectives; absent without traffic
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from watchpost.slo.spec import DAY, EVENTS, Availability, Latency, Objective, Objectives, Ratio, outside_strings, show

#: The windows that alerts look at, in seconds. Those up to an hour are counted from the raw series.
WINDOWS = {"5m": 300, "30m": 1800, "1h": 3600, "2h": 7200, "6h": 21_600, "1d": DAY, "3d": 3 * DAY}
RAW_WINDOWS = ("5m", "30m", "1h")
#: Longer ones are added up from this one's values.
BASE = "5m"
#: How often a rule is evaluated within the base window: so many values make up each event's weight.
EVALUATIONS = 20
#: Objectives below this would have the plain alert on the 95th percentile fire while they are met.
P95 = 0.95

Rule = dict[str, Any]


@dataclass(frozen=True)
class Burn:
    """One pair of windows of the alerts on burn rate.

    It fires when more than `share` of the budget would be spent within `long`, and `short` shows that it goes on:
    the short window is a twelfth of the long one, so that the alert ends soon after its cause. [workbook, "6:
    Multiwindow, Multi-Burn-Rate Alerts": its example of rules has all four pairs, its table 5-8 not that of a day]
    """

    severity: str
    long: str
    short: str
    share: float

    def rate(self, window_days: int) -> float:
        """Return the burn rate from which the pair fires, for an objective's window in days.

        rate = share of the budget * objective's window / long window [workbook, "5: Multiple Burn Rate Alerts"]: 14.4,
        6, 3 and 1 for 30 days. Never below 1: what burns slower than 1 does not spend the budget within the window.
        """
        return max(1.0, round(self.share * window_days * DAY / WINDOWS[self.long], 6))


POLICY = (
    Burn("page", "1h", "5m", 0.02),
    Burn("page", "6h", "30m", 0.05),
    Burn("ticket", "1d", "2h", 0.10),
    Burn("ticket", "3d", "6h", 0.10),
)
#: Severity -> the alert's name.
ALERTS = {"page": "SloBurnFast", "ticket": "SloBurnSlow"}
P95_ALERT = "SloLatencyHigh"


def burns(slo: Objective) -> dict[str, list[Burn]]:
    """Return the pairs of each severity that can fire for an objective.

    No burn rate exceeds 1 / budget: that is when every event is bad. A pair that asks for more could never fire.
    """
    return {
        severity: [b for b in POLICY if b.severity == severity and b.rate(slo.window) * slo.budget < 1]
        for severity in ALERTS
    }


def problems(objectives: Objectives, retention_days: float) -> list[str]:
    """Say which objectives could not be watched: no outage would page, or metrics go before their window ends."""
    found = []
    for number, slo in enumerate(objectives.slos):
        if not burns(slo)["page"]:
            lowest = 1 - 1 / min(pair.rate(slo.window) for pair in POLICY if pair.severity == "page")
            found.append(
                f"watchpost_slos[{number}].objective: {slo.objective:g} over {slo.window} days spares so many "
                f"bad events that not even a whole outage would page; it must be above {lowest:.4g}"
            )
        if slo.window / objectives.time_scale > retention_days:
            found.append(
                f"prometheus_retention_days is {retention_days:g}, but watchpost_slos[{number}] ({slo.name}) counts "
                f"over {slo.window} days; keep metrics longer, or make its window shorter"
            )
    return found


def queries(objectives: Objectives) -> Iterator[tuple[str, str]]:
    """Return each field of the objectives that holds PromQL, and an expression in which it stands as in the rules."""
    for number, slo in enumerate(objectives.slos):
        path = f"watchpost_slos[{number}].{slo.kind}"
        if isinstance(sli := slo.sli, Ratio):
            written = {"good": sli.good, "bad": sli.bad, "total": sli.total}
            with_range = _Rules(slo, objectives.time_scale, "")
            yield from ((f"{path}.{name}", with_range.query(text, BASE)) for name, text in written.items() if text)
        else:
            written = {"where": sli.where, "bad": sli.bad if isinstance(sli, Availability) else ""}
            yield from ((f"{path}.{name}", f"events{{{text}}}") for name, text in written.items() if text)


def rule_groups(objectives: Objectives, public_url: str = "") -> list[dict[str, Any]]:
    """Return one group of rules for each objective, as Prometheus's rule files have them.

    `public_url` is where people reach the appliance, for the alerts' links to the dashboard.
    """
    return [_Rules(slo, objectives.time_scale, public_url).group() for slo in objectives.slos]


def interval(time_scale: float) -> float:
    """Return the seconds between two evaluations: a twentieth of the shortest window, and at least one."""
    return max(1.0, WINDOWS[BASE] / EVALUATIONS / time_scale)


def duration(length: float) -> str:
    """Write a length in seconds as PromQL does, in its largest whole unit."""
    milliseconds = round(length * 1000)
    for unit, size in (("d", DAY * 1000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def number(value: float) -> str:
    """Write a number as PromQL reads it, with all digits that were meant."""
    return f"{value:.12g}"


def _quoted(text: str) -> str:
    """Write a text as PromQL, TraceQL and templates of Go read it."""
    return json.dumps(text, ensure_ascii=False)


def _shown(query: str, text: str, otherwise: str = "?") -> str:
    """Return a template that Prometheus fills in when an alert fires: a text about what a query finds, if anything."""
    return f"{{{{ with query {_quoted(query)} }}}}{text}{{{{ else }}}}{otherwise}{{{{ end }}}}"


class _Rules:
    """The rules of one objective."""

    def __init__(self, slo: Objective, time_scale: float, public_url: str) -> None:
        self.slo = slo
        self.scale = time_scale
        self.dashboard = f"{public_url}/grafana/d/watchpost-slo?var-slo={slo.name}"
        self.windows = {**WINDOWS, f"{slo.window}d": slo.window * DAY}
        self.own = f"{slo.window}d"
        self.labels = {"slo": slo.name, "service": slo.service}

    def group(self) -> dict[str, Any]:
        """Return the group: what is recorded first, so that the alerts see values of the same moment."""
        recorded = [*self._counts(), *self._ratios(), *self._budget(), *self._percentile()]
        return {
            "name": f"slo-{self.slo.name}",
            "interval": duration(interval(self.scale)),
            "rules": [{**rule, "labels": self.labels} for rule in recorded] + list(self._alerts()),
        }

    def _seconds(self, window: str) -> float:
        """How long a window is, with the drills' clock taken into account."""
        return self.windows[window] / self.scale

    def _range(self, window: str) -> str:
        return duration(self._seconds(window))

    def _of(self, record: str) -> str:
        """The objective's own series of what is recorded: those of a service that had its name before are not."""
        return f"{record}{{{', '.join(f'{name}={_quoted(value)}' for name, value in self.labels.items())}}}"

    def _counts(self) -> Iterator[Rule]:
        """Record good and all events a second, apart, over each window.

        Apart, because the share over a window is good / total of the whole window: each event weighs the same. A
        mean of ratios gives a quiet night's few events the weight of a busy day's. [budget, "Calculating the SLIs",
        divides sums of events; practices: "when aggregating up ratios, aggregate up the numerator and denominator
        separately"]

        *Raw windows*: `sum(rate(...))`. rate() takes each series' resets out before they are added up; the sum
        first would take a restart of one worker for a reset of all. [rate: "always take a rate() first, then
        aggregate"]. What a sum has no series for is 0: no traffic, or no error yet.

        *Longer windows*: the sum of the values over 5 minutes, each multiplied by the time that it stands for (the
        interval of evaluation). With n evaluations in 5 minutes, each event stands in n values, in each as 1/300 a
        second, and each stands for 300/n seconds: the event counts as 1, as in rate() over the whole window, for a
        small part of the work. Exactly so while a series goes on and its samples come as often as the rules are
        evaluated; when they come at other times, to within (sample interval / 5 minutes). Events of the last five
        minutes are not all in yet, those that leave the window go within five minutes, and of a time in which no
        rule was evaluated neither good nor bad events count.

        *Where a series begins or ends*: with n samples in 5 minutes, n - 1 values see an event (both samples that it
        lies between). While the series goes on rate() takes the n - 1 gaps that it has for n, so the event counts as
        n / n = 1. It guesses nothing before a beginning with 0: the event counts as (n - 1) / n or more. Behind an
        end it takes half a gap for granted, and up to one in front: L gaps for L + 1.5. At worst the series is but a
        0 and one more sample, so L is always 1, and nothing is in front: 1, 2 (an end one gap away still passes for
        the bound) and n - 3 times 1.5, over n, make 1.5 - 1.5 / n. A series of five minutes or more that ends has all
        in all 1 - 1.5 / n intervals' worth of events too many, one that begins half an interval's worth too few.
        [rate; the factors are those of extrapolatedRate in Prometheus's promql/functions.go]

        *The first sample of a series*: rate() sees no increase before it. A series that begins with 1, as one of
        errors does, would hide that error. Watchpost's Prometheus puts a 0 in front of it, at the start that OTLP
        tells (created-timestamp-zero-ingestion); without such a start one event for each new series is missed.
        """
        for window in RAW_WINDOWS:
            yield {"record": f"slo:sli_total:rate{window}", "expr": f"{self._total(window)} or vector(0)"}
            yield {"record": f"slo:sli_good:rate{window}", "expr": self._good(window)}
        for window in self.windows:
            if window not in RAW_WINDOWS:
                for side in ("total", "good"):
                    values = f"{self._of(f'slo:sli_{side}:rate{BASE}')}[{self._range(window)}]"
                    share = number(interval(self.scale) / self._seconds(window))
                    yield {"record": f"slo:sli_{side}:rate{window}", "expr": f"sum_over_time({values}) * {share}"}

    def _selector(self, metric: str, *matchers: str) -> str:
        given = [f"service_name={_quoted(self.slo.service)}", *(m for m in matchers if m)]
        return f"{metric}{{{', '.join(given)}}}"

    def _rate(self, selector: str, window: str) -> str:
        return f"sum(rate({selector}[{self._range(window)}]))"

    def _total(self, window: str) -> str:
        sli = self.slo.sli
        if isinstance(sli, Ratio):
            return self.query(sli.total, window)
        return self._rate(self._selector(f"{EVENTS[sli.of][0]}_count", sli.where), window)

    def _good(self, window: str) -> str:
        """Good events, or all but the bad ones, whichever is told; what is not there is 0."""
        sli = self.slo.sli
        if isinstance(sli, Latency):
            # Of a whole number some exporters write "1", others "1.0".
            bound = f"{number(sli.threshold)}"
            matcher = f'le=~"{bound}|{bound}[.]0"' if sli.threshold.is_integer() else f'le="{bound}"'
            return (
                self._rate(self._selector(f"{EVENTS[sli.of][0]}_bucket", sli.where, matcher), window) + " or vector(0)"
            )
        if isinstance(sli, Ratio) and sli.good is not None:
            return f"{self.query(sli.good, window)} or vector(0)"
        if isinstance(sli, Availability):
            bad = self._rate(
                self._selector(f"{EVENTS[sli.of][0]}_count", sli.where, sli.bad or EVENTS[sli.of][1]), window
            )
        else:
            bad = self.query(sli.bad or "", window)
        return f"clamp_min({self._of(f'slo:sli_total:rate{window}')} - on () ({bad} or vector(0)), 0)"

    def query(self, query: str, window: str) -> str:
        """Put a window into a query of the user's own, and add up what it finds."""
        return f"sum({outside_strings(query, lambda code: code.replace('$window', self._range(window)))})"

    def _ratios(self) -> Iterator[Rule]:
        """Record the error ratio of each window, and how fast it burns the budget.

        error ratio = (total - good) / total [budget, "Calculating the SLIs"]; where there was no event there was no
        bad one, so 0 and not 0/0. burn rate = error ratio / (1 - objective) [workbook, "4: Alert on Burn Rate"]
        """
        for window in self.windows:
            total, good = self._of(f"slo:sli_total:rate{window}"), self._of(f"slo:sli_good:rate{window}")
            yield {
                "record": f"slo:error_ratio:rate{window}",
                "expr": f"clamp_min({total} - {good}, 0) / ({total} > 0) or {total} * 0",
            }
            yield {
                "record": f"slo:burn_rate:ratio{window}",
                "expr": f"{self._of(f'slo:error_ratio:rate{window}')} / {number(self.slo.budget)}",
            }

    def _budget(self) -> Iterator[Rule]:
        """Record what was promised and over how many days, what is left of the budget, and how long that will do.

        budget left = 1 - bad events / (events * (1 - objective)) = 1 - burn rate over the objective's window
        [budget: the budget of a window is (1 - objective) * its events]

        time to exhaustion = budget left * window / burn rate [workbook, "4: Alert on Burn Rate": a whole budget is
        gone after window / burn rate], at the burn rate of the last hour and the window's mean traffic. It looks at
        what is spent only, not at what leaves the window meanwhile: the worst case. 0 when nothing is left.
        """
        yield {"record": "slo:objective:ratio", "expr": f"vector({number(self.slo.objective)})"}
        yield {"record": "slo:window:days", "expr": f"vector({number(self._seconds(self.own) / DAY)})"}
        yield {"record": "slo:budget_left:ratio", "expr": f"1 - {self._of(f'slo:burn_rate:ratio{self.own}')}"}
        yield {
            "record": "slo:time_to_exhaustion:seconds",
            "expr": f"clamp_min({self._of('slo:budget_left:ratio')}, 0) * {number(self._seconds(self.own))}"
            f" / ({self._of('slo:burn_rate:ratio1h')} > 0)",
        }

    def _percentile(self) -> Iterator[Rule]:
        """Record the 95th percentile of a latency objective, in seconds [histograms, "Quantiles"].

        Between two bounds it is interpolated, and beyond the highest it is said to be that bound [histograms, "Errors
        of quantile estimation"]. So the alert asks the same by the events, which is exact as the threshold is a bound:
        the percentile exceeds it when more than 5 % took longer.
        """
        if isinstance(sli := self.slo.sli, Latency):
            buckets = self._selector(f"{EVENTS[sli.of][0]}_bucket", sli.where)
            quantile = f"histogram_quantile({P95}, sum by (le) (rate({buckets}[{self._range('5m')}])))"
            yield {"record": "slo:latency_seconds:p95", "expr": f"{quantile} >= 0"}  # without traffic it is NaN

    def _bad_events(self, window: str) -> str:
        """The bad events of a window, with room for rate()'s extrapolation."""
        total, good = self._of(f"slo:sli_total:rate{window}"), self._of(f"slo:sli_good:rate{window}")
        return f"({total} - {good}) * {number(self._seconds(window))} > {self.slo.min_bad_events - 0.5:g}"

    def _alerts(self) -> Iterator[Rule]:
        """Alert when the budget burns too fast: a page for what cannot wait, a ticket for what can; see `Burn`.

        The longer window must hold `min_bad_events` bad events: at ten requests an hour a single bad one would be a
        burn rate of 10. [workbook, "Low-Traffic Services and Error Budget Alerting"]
        """
        what = self.slo.impact or f"What {self.slo.service} does is not as good as promised."
        for severity, pairs in burns(self.slo).items():
            if not pairs:
                continue
            conditions = [
                f"({self._of(f'slo:burn_rate:ratio{pair.long}')} > {number(pair.rate(self.slo.window))}"
                f" and {self._of(f'slo:burn_rate:ratio{pair.short}')} > {number(pair.rate(self.slo.window))}"
                f" and {self._bad_events(pair.long)})"
                for pair in pairs
            ]
            yield {
                "alert": ALERTS[severity],
                "expr": " or ".join(conditions),
                "labels": {"severity": severity, **self.labels},
                "annotations": {
                    "summary": "{{ $labels.service }} spends the error budget of {{ $labels.slo }} "
                    "{{ $value | humanize }} times as fast as it may.",
                    "description": what,
                    "budget_left": self._left(),
                    "dashboard": self.dashboard,
                    **self._examples(),
                },
            }
        sli = self.slo.sli
        if isinstance(sli, Latency) and self.slo.objective >= P95:
            yield {
                "alert": P95_ALERT,
                "expr": f"{self._of('slo:error_ratio:rate5m')} > {number(1 - P95)} and {self._bad_events('5m')}",
                "for": self._range("5m"),
                "labels": {"severity": "ticket", **self.labels},
                "annotations": {
                    "summary": "{{ $labels.service }} is slow: the 95th percentile of {{ $labels.slo }} is "
                    + _shown(self._of("slo:latency_seconds:p95"), "{{ . | first | value | humanizeDuration }}")
                    + f"; {{{{ $value | humanizePercentage }}}} took longer than {show(sli.threshold)}.",
                    "description": what,
                    "budget_left": self._left(),
                    "dashboard": self.dashboard,
                    **self._examples(),
                },
            }

    def _examples(self) -> dict[str, str]:
        """Say in TraceQL which traces are examples, where they are others than the failed ones of the service."""
        if not isinstance(sli := self.slo.sli, Latency):
            return {}
        service, longer = _quoted(self.slo.service), f"{sli.threshold * 1000:g}ms"
        return {"traceql": f"{{ resource.service.name = {service} && duration > {longer} }}"}

    def _left(self) -> str:
        """Say what is left of the budget and how long that will do: a template, filled in when the alert fires."""
        left, window = self._of("slo:budget_left:ratio"), f"of that of {self.slo.window} days"
        share = "{{ . | first | value | humanizePercentage }}"
        lasts = _shown(
            self._of("slo:time_to_exhaustion:seconds"),
            "at the last hour's rate it is gone in {{ . | first | value | humanizeDuration }}",
            "in the last hour nothing was spent",
        )
        overspent = _shown(f"-{left} >= 0", f"none {window}; overspent by {share}")
        return _shown(f"{left} > 0", f"{share} {window}; {lasts}", overspent)

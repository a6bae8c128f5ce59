"""What several dashboards name: each other, and the thresholds that mean the same everywhere."""

from __future__ import annotations

START, SERVICE, BROWSER, LOGS = "watchpost-start", "watchpost-service", "watchpost-browser", "watchpost-logs"
SLO, APPLIANCE, TRACES = "watchpost-slo", "watchpost-appliance", "watchpost-traces"

#: Seconds within which a request is to be answered: as the objective tasks-fast has it (group_vars/all/slo.yml).
SLOW_SECONDS = 0.5
#: Share of answers that fail (HTTP 500 or more).
ERROR_STEPS = [("green", None), ("orange", 0.001), ("red", 0.01)]
LATENCY_STEPS = [("green", None), ("orange", SLOW_SECONDS / 2), ("red", SLOW_SECONDS)]
#: Share of something that must not become full.
FILL_STEPS = [("green", None), ("orange", 0.7), ("red", 0.9)]
#: What is left of an error budget, as a share of it.
BUDGET_STEPS = [("red", None), ("orange", 0.001), ("yellow", 0.25), ("green", 0.5)]
UP = {"0": ("down", "red"), "1": ("up", "green")}

#: Each of Watchpost's services by name: 0 when systemd does not run it, or it does not answer Prometheus, which asks some.
COMPONENTS = (
    'min by (component) (label_replace(node_systemd_unit_state{name=~"watchpost-.+[.]service", type!="oneshot", '
    'state="active"}, "component", "$1", "name", "watchpost-(.+)[.]service") or label_replace(label_replace('
    'up, "component", "$1", "job", "(.+)"), "component", "$1-$2", "job", "(.+)_(.+)"))'
)
#: What fires and calls for somebody, each once.
FIRING = (
    "max by (alertname, severity, service_name, service, slo, instance, job)"
    ' (ALERTS{alertstate="firing", severity!="none"})'
)

REQUESTS = "http_server_request_duration_seconds"


def failing(selector: str, by: str = "") -> str:
    """Return the PromQL of the share of a service's answers that are 500 or more; no value while nobody asks.

    Where nothing has failed yet there is no series of failures: it counts as 0.
    """
    grouped = f"sum by ({by})" if by else "sum"
    every = f"{grouped} (rate({REQUESTS}_count{{{selector}}}[$__rate_interval]))"
    only = f"{selector}, " if selector else ""
    failed = f'{grouped} (rate({REQUESTS}_count{{{only}http_response_status_code=~"5.."}}[$__rate_interval]))'
    return f"({failed} or 0 * {every}) / ({every} > 0)"


def quantile(share: float, histogram: str, selector: str, by: str = "") -> str:
    """Return the PromQL of a quantile of a histogram, `histogram` being its name without `_bucket`."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket{{{selector}}}[$__rate_interval])))"

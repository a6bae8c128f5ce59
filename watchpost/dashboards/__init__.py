"""Watchpost's dashboards for Grafana, as code: each question of an operator is one page, made of typed panels."""

from __future__ import annotations

from watchpost.dashboards import appliance, browser, logs, service, slo, start, traces
from watchpost.dashboards.look import Page


def pages() -> list[Page]:
    """Return all dashboards, the one to begin with first."""
    return [part.page() for part in (start, service, slo, traces, logs, browser, appliance)]

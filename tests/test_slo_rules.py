"""The rules of objectives, evaluated by Prometheus's own engine: what is counted, and which alert fires when."""

from __future__ import annotations

from dataclasses import dataclass, field

import promtool
import pytest

from watchpost.slo import rules, spec

#: At the fastest of the drills' clocks a second stands for a minute.
SCALE = 60
AVAILABLE = {"name": "available", "service": "shop", "objective": 0.99, "availability": {}}
FAST = {"name": "fast", "service": "shop", "objective": 0.99, "latency": {"threshold": "500ms"}}
COUNT = 'http_server_request_duration_seconds_count{service_name="shop", http_response_status_code="%s", worker="%s"}'
BUCKET = 'http_server_request_duration_seconds_bucket{service_name="shop", le="%s"}'
HOUR = 60


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return promtool.program(tmp_path_factory.mktemp("promtool"))


@dataclass
class Phase:
    """So many minutes with so many requests a minute, of which so many fail."""

    minutes: int
    requests: float
    errors: float = 0
    #: Alerts that must fire, and no others, at the given minutes of the phase.
    fires: dict[int, set[str]] = field(default_factory=dict)


PAGE, TICKET, BOTH = {"SloBurnFast"}, {"SloBurnSlow"}, {"SloBurnFast", "SloBurnSlow"}
# The longest windows hold only what there is: hours in the place of days. So tickets come sooner than after a month.
SCENARIOS = {
    "steady, half of the budget spent": [Phase(6 * HOUR, 100, 0.5, {HOUR: set(), 6 * HOUR: set()})],
    "fast burn": [
        Phase(4 * HOUR, 100),
        # 20 % are 14.4 % of an hour after 43 minutes; of all that there is, 1 % after 13.
        Phase(HOUR, 100, 20, {10: set(), 40: TICKET, 50: BOTH, 60: BOTH}),
    ],
    "burn that takes hours to be sure of": [
        Phase(6 * HOUR, 100),
        # 8 % are 6 % of six hours after four and a half.
        Phase(6 * HOUR, 100, 8, {30: set(), 4 * HOUR: TICKET, 5 * HOUR: BOTH}),
    ],
    # 2 % are less than a day may have, 3 %, and 1 % of all that there is after six hours.
    "slow burn": [Phase(6 * HOUR, 100), Phase(8 * HOUR, 100, 2, {HOUR: set(), 5 * HOUR: set(), 7 * HOUR: TICKET})],
    "outage and recovery": [
        Phase(6 * HOUR, 100),
        # All of ten minutes are 16.7 % of an hour.
        Phase(30, 100, 100, {10: BOTH, 30: BOTH}),
        # The short windows end it: of the page half an hour, of the ticket six hours after the cause is gone.
        Phase(8 * HOUR, 100, 0, {5: BOTH, 40: TICKET, 5 * HOUR: TICKET, 7 * HOUR: set()}),
    ],
    "no traffic": [Phase(3 * HOUR, 0, 0, {10: set(), 3 * HOUR: set()})],
    "no traffic after an outage": [Phase(HOUR, 100, 100), Phase(3 * HOUR, 0, 0, {10: BOTH, 3 * HOUR: TICKET})],
    "first error ever": [
        Phase(3 * HOUR, 0.2),
        Phase(5, 0.2, 0.2, {5: set()}),
        Phase(HOUR, 0.2, 0, {5: set(), 60: set()}),
    ],
    "an outage of a service that nearly nobody uses": [
        Phase(3 * HOUR, 1 / 30),  # two requests an hour
        # A few errors are no reason to wake anybody up: the fifth comes after two and a half hours.
        Phase(3 * HOUR, 1 / 30, 1 / 30, {HOUR: set(), 140: set(), 170: BOTH}),
    ],
}


def cumulated(phases, of):
    """A counter by the minute; whole events only."""
    exact, samples = 0.0, [0.0]
    for phase in phases:
        for _ in range(phase.minutes):
            exact += of(phase)
            samples.append(float(int(exact + 1e-9)))
    return samples


def fired(slo, at, alerts):
    """promtool's question: exactly these alerts fire at that second."""
    return {
        "expr": f'ALERTS{{alertstate="firing", slo="{slo["name"]}"}}',
        "eval_time": f"{at}s",
        "exp_samples": [
            {
                "labels": f'ALERTS{{alertname="{name}", alertstate="firing", service="{slo["service"]}", '
                f'severity="{"page" if name == "SloBurnFast" else "ticket"}", slo="{slo["name"]}"}}',
                "value": 1,
            }
            for name in sorted(alerts)
        ],
    }


@pytest.mark.parametrize("name", SCENARIOS)
def test_alerts_fire_when_they_should_and_only_then(program, tmp_path, monkeypatch, name):
    phases, questions, began = SCENARIOS[name], [], 0
    if phases[0].requests > 1:
        monkeypatch.setattr(rules, "EVALUATIONS", 1)  # with even traffic once in five minutes is enough, and faster
    for phase in phases:
        questions += [fired(AVAILABLE, began + minute, alerts) for minute, alerts in phase.fires.items()]
        began += phase.minutes
    bad = cumulated(phases, lambda phase: phase.errors)
    good = cumulated(phases, lambda phase: phase.requests - phase.errors)
    test = {
        "interval": "1s",
        "input_series": [
            {"series": COUNT % (200, "a"), "values": promtool.series(good)},
            {"series": COUNT % (500, "a"), "values": promtool.series(bad)},
        ],
        "promql_expr_test": questions,
    }
    groups = rules.rule_groups(spec.read([AVAILABLE], SCALE))
    said = promtool.evaluate(program, tmp_path, groups, [test])
    assert "SUCCESS" in said, said

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
    #: The alerts that fire, and no others, at the given minutes of the phase.
    fires: dict[int, set[str]] = field(default_factory=dict)
    #: The service was started anew before it: its counters begin at 0.
    restarted: bool = False


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
    # What a restart takes from a counter is neither good nor bad; what fails around it counts on.
    "counter reset, half of the budget spent": [
        Phase(3 * HOUR, 100, 0.5),
        *(Phase(20, 100, 0.5, {2: set(), 20: set()}, restarted=True) for _ in range(3)),
    ],
    "counter reset in a fast burn": [
        Phase(4 * HOUR, 100),
        Phase(25, 100, 20),
        Phase(35, 100, 20, {25: BOTH, 35: BOTH}, restarted=True),
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
        if phase.restarted:
            exact = 0.0
        for _ in range(phase.minutes):
            exact += of(phase)
            samples.append(float(int(exact + 1e-9)))
    return samples


def run(program, directory, monkeypatch, phases, groups_more, questions):
    """Have promtool go through phases; return what the questions come to."""
    if phases[0].requests > 1:
        monkeypatch.setattr(rules, "EVALUATIONS", 1)  # with even traffic once in five minutes is enough, and faster
    good = cumulated(phases, lambda phase: phase.requests - phase.errors)
    bad = cumulated(phases, lambda phase: phase.errors)
    groups = rules.rule_groups(spec.read([AVAILABLE], SCALE))
    more = [group | {"interval": groups[0]["interval"]} for group in groups_more]
    input_series = {COUNT % (200, "a"): good, COUNT % (500, "a"): bad}
    return promtool.ask(program, directory, groups + more, input_series, questions)


def moments(phases):
    """The minutes at which something is said of the alerts, and what."""
    began = 0
    for phase in phases:
        yield from ((began + minute, alerts) for minute, alerts in phase.fires.items())
        began += phase.minutes


def firing(name):
    return f'ALERTS{{alertstate="firing", alertname="{name}"}}'


@pytest.mark.parametrize("name", SCENARIOS)
def test_alerts_fire_when_they_should_and_only_then(program, tmp_path, monkeypatch, name):
    phases = SCENARIOS[name]
    asked = [(alert, at) for at, _ in moments(phases) for alert in ("SloBurnFast", "SloBurnSlow")]
    found = run(program, tmp_path, monkeypatch, phases, [], [(firing(alert), at) for alert, at in asked])
    fired = {at: set() for at, _ in moments(phases)}
    for (alert, at), value in zip(asked, found, strict=True):
        if value:
            fired[at].add(alert)
    assert fired == dict(moments(phases))


def test_objective_that_was_given_to_another_service_begins_anew(program, tmp_path):
    """What was recorded of the old one stays in Prometheus for a whole window, under the same name."""
    counts = {COUNT % (200, "a"): [n * 90.0 for n in range(61)], COUNT % (500, "a"): [n * 10.0 for n in range(61)]}
    of = '{slo="available", service="%s"}'
    old = {"slo:sli_total:rate5m" + of % "old": [1000.0] * 61, "slo:sli_good:rate5m" + of % "old": [1000.0] * 61}
    groups = rules.rule_groups(spec.read([AVAILABLE], SCALE))
    question = ("slo:error_ratio:rate30d" + of % "shop", 60)
    assert promtool.ask(program, tmp_path, groups, counts | old, [question]) == [pytest.approx(0.1)]


# --- the same by sloth's documented formulas: the ratio of each window by itself, and no least number of errors


def sloth(window):
    """The error ratio of a window on the drills' clock."""
    length = rules.duration(rules.WINDOWS[window] / SCALE)
    metric = 'http_server_request_duration_seconds_count{service_name="shop"%s}[' + length + "]"
    bad, all_events = metric % ', http_response_status_code=~"5.."', metric % ""
    return {"record": f"sloth:error_ratio:rate{window}", "expr": f"sum(rate({bad})) / sum(rate({all_events}))"}


def sloth_alert(name, *pairs):
    conditions = [
        f"(sloth:error_ratio:rate{short} > ({rate} * 0.01) and sloth:error_ratio:rate{long} > ({rate} * 0.01))"
        for long, short, rate in pairs
    ]
    return {"alert": name, "expr": " or ".join(conditions)}


SLOTH = {
    "name": "sloth",
    "rules": [
        *(sloth(window) for window in rules.WINDOWS),
        sloth_alert("SlothPage", ("1h", "5m", 14.4), ("6h", "30m", 6)),
        sloth_alert("SlothTicket", ("1d", "2h", 3), ("3d", "6h", 1)),
    ],
}


@pytest.mark.parametrize("name", [name for name, phases in SCENARIOS.items() if phases[0].requests > 1])
def test_alerts_fire_when_those_of_sloth_do_while_there_is_traffic(program, tmp_path, monkeypatch, name):
    phases = SCENARIOS[name]
    asked = [(alert, at) for at, _ in moments(phases) for alert in ("SlothPage", "SlothTicket")]
    found = run(program, tmp_path, monkeypatch, phases, [SLOTH], [(firing(alert), at) for alert, at in asked])
    expected = [
        ("SloBurnFast" if alert == "SlothPage" else "SloBurnSlow") in dict(moments(phases))[at] for alert, at in asked
    ]
    assert [value is not None for value in found] == expected


def test_single_error_in_hardly_any_traffic_pages_with_sloth_and_not_here(program, tmp_path, monkeypatch):
    phases = SCENARIOS["an outage of a service that nearly nobody uses"]
    first_error = phases[0].minutes + 32
    questions = [(firing("SlothPage"), first_error), (firing("SloBurnFast"), first_error)]
    assert run(program, tmp_path, monkeypatch, phases, [SLOTH], questions) == [1, None]


# --- the plain alert, and what alerts say

LATENCY_TEST = {
    "interval": "1m",
    "input_series": [
        # Of 100 requests a minute 94 take up to 500 ms, and all up to 1 s; for twenty minutes all do.
        {"series": BUCKET % "0.5", "values": "0+100x20 2094+94x29"},
        {"series": BUCKET % "1", "values": "0+100x50"},
        {"series": BUCKET % "+Inf", "values": "0+100x50"},
        {"series": 'http_server_request_duration_seconds_count{service_name="shop"}', "values": "0+100x50"},
    ],
}


def test_slow_requests_alert_after_five_minutes_and_say_how_slow_they_are(program, tmp_path):
    [group] = rules.rule_groups(spec.read([FAST | {"impact": "People wait."}]), "https://watch.example.org")
    # The 95th percentile is a sixth of the way from 0.5 to 1 s. Six of a hundred are bad in 30 of 50 minutes: 3.6 %,
    # of which those of the last five minutes are not all in yet.
    alert = {
        "exp_labels": {"slo": "fast", "service": "shop", "severity": "ticket"},
        "exp_annotations": {
            "summary": "shop is slow: the 95th percentile of fast is 583.3ms; 6% took longer than 500ms.",
            "description": "People wait.",
            "budget_left": "none of that of 30 days; overspent by 250.2%",
            "dashboard": "https://watch.example.org/grafana/d/watchpost-slo?var-slo=fast",
            "traceql": '{ resource.service.name = "shop" && duration > 500ms }',
        },
    }
    cases = [
        {"eval_time": "20m", "alertname": "SloLatencyHigh"},
        {"eval_time": "24m", "alertname": "SloLatencyHigh"},
        {"eval_time": "50m", "alertname": "SloLatencyHigh", "exp_alerts": [alert]},
    ]
    said = promtool.evaluate(program, tmp_path, [group], [LATENCY_TEST | {"alert_rule_test": cases}])
    assert "SUCCESS" in said, said


@pytest.mark.parametrize(("slow", "fires"), [(6, True), (4, False), (0, False)])
def test_slow_requests_alert_when_the_threshold_is_the_highest_bound_too(program, tmp_path, slow, fires):
    """Beyond it a percentile knows no value, and is given as that bound."""
    [group] = rules.rule_groups(spec.read([FAST | {"latency": {"threshold": "500ms", "buckets": [0.1, 0.5]}}]))
    of = 'http_server_request_duration_seconds_%s{service_name="shop"%s}'
    series = {
        of % ("bucket", ', le="0.5"'): f"0+{100 - slow}x20",
        of % ("bucket", ', le="+Inf"'): "0+100x20",
        of % ("count", ""): "0+100x20",
    }
    case = {"expr": f"count({firing('SloLatencyHigh')}) or vector(0)", "eval_time": "15m"}
    case["exp_samples"] = [{"labels": "{}", "value": int(fires)}]
    test = {"interval": "1m", "input_series": [{"series": name, "values": v} for name, v in series.items()]}
    said = promtool.evaluate(program, tmp_path, [group], [test | {"promql_expr_test": [case]}])
    assert "SUCCESS" in said, said


def recorded(**values):
    """Series of the objective, as if rules had recorded them."""
    of = '{slo="available", service="shop"}'
    return [{"series": f"slo:{name.replace('__', ':')}{of}", "values": f"{value}x5"} for name, value in values.items()]


BURNING = {"burn_rate__ratio1h": 20, "burn_rate__ratio5m": 20, "burn_rate__ratio6h": 0}
BURNED = {"burn_rate__ratio1h": 0, "burn_rate__ratio1d": 4, "burn_rate__ratio2h": 4}


@pytest.mark.parametrize(
    ("window", "left", "burn", "alert", "told"),
    [
        # left * window / burn rate of the last hour
        ("30d", 0.5, BURNING, "SloBurnFast", "50% of that of 30 days; at the last hour's rate it is gone in 18h 0m 0s"),
        ("7d", 0.5, BURNING, "SloBurnFast", "50% of that of 7 days; at the last hour's rate it is gone in 4h 12m 0s"),
        ("30d", 0.5, BURNED, "SloBurnSlow", "50% of that of 30 days; in the last hour nothing was spent"),
        ("30d", -2.5, BURNING, "SloBurnFast", "none of that of 30 days; overspent by 250%"),
        ("30d", -2.5, BURNED, "SloBurnSlow", "none of that of 30 days; overspent by 250%"),
    ],
)
def test_alert_says_what_is_left_of_the_budget_and_how_long_that_will_do(
    program, tmp_path, window, left, burn, alert, told
):
    [group] = rules.rule_groups(spec.read([AVAILABLE | {"window": window}]), "https://watch.example.org")
    own = ("slo:time_to_exhaustion:seconds", None)  # no record: the alerts
    group["rules"] = [rule for rule in group["rules"] if rule.get("record") in own]
    events = {f"sli_{side}__rate{w}": rate for w in ("1h", "1d") for side, rate in (("total", 2), ("good", 1))}
    series = recorded(budget_left__ratio=left, **burn, **events)
    case = {"eval_time": "1m", "alertname": alert, "exp_alerts": [{}]}
    test = {"interval": "1m", "input_series": series, "alert_rule_test": [case]}
    said = promtool.evaluate(program, tmp_path, [group], [test])
    assert f'budget_left="{told}"' in said, said


def test_page_says_how_fast_the_budget_is_spent(program, tmp_path):
    [group] = rules.rule_groups(spec.read([AVAILABLE]), "https://watch.example.org")
    test = {
        "interval": "1m",
        "input_series": [
            {"series": COUNT % (200, "a"), "values": "0+100x60 6080+80x59"},
            {"series": COUNT % (500, "a"), "values": "0x60 20+20x59"},
        ],
        "alert_rule_test": [
            {"eval_time": "1h", "alertname": "SloBurnFast"},
            {"eval_time": "2h", "alertname": "SloBurnFast", "exp_alerts": [{}]},
        ],
    }
    said = promtool.evaluate(program, tmp_path, [group], [test])
    assert "shop spends the error budget of available 20 times as fast as it may." in said, said
    assert 'description="What shop does is not as good as promised."' in said, said

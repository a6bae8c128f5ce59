"""What the rules count is what happened: compared with a count by hand, and with the mean of ratios."""

from __future__ import annotations

import random
from dataclasses import dataclass

import promtool
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from watchpost.slo import rules, spec

STEP = 15  # seconds between two samples, and two evaluations
BASE = 300 // STEP  # samples in the window from which the longer ones are added up
#: Histories that promtool judges at a time: a run of it takes a while, whatever it is given.
BATCH = 25
WINDOW = 30 * 86_400


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return promtool.program(tmp_path_factory.mktemp("promtool"))


def groups_of(slos, *records, time_scale=1):
    """The rules of objectives, as far as these records need them."""
    return [
        group | {"rules": [rule for rule in group["rules"] if rule.get("record") in records]}
        for group in rules.rule_groups(spec.read(slos, time_scale))
    ]


BUDGET = [f"slo:sli_{side}:rate{window}" for side in ("total", "good") for window in ("5m", "30d")]
BUDGET += ["slo:error_ratio:rate30d", "slo:burn_rate:ratio30d", "slo:budget_left:ratio"]


# --- any history


@dataclass(frozen=True)
class Series:
    """What one worker answers with one status: events by the step, from the step in which it begins."""

    status: int
    begins: int
    events: tuple[int, ...]
    resets: frozenset[int]
    ends: bool

    def samples(self, steps):
        """The counter, with the 0 in front that Prometheus puts there; a reset that shows loses nothing."""
        value, samples = 0, [None] * self.begins + [0]
        for number, events in enumerate(self.events):
            value = events if number in self.resets and events < value else value + events
            samples.append(value)
        return samples + [None if self.ends else value] * (steps - len(samples))


@st.composite
def a_series(draw, steps):
    begins = draw(st.integers(0, steps // 2))
    length = draw(st.integers(1, steps - begins - 1))
    events = draw(st.lists(st.one_of(st.just(0), st.integers(0, 200)), min_size=length, max_size=length))
    resets = draw(st.frozensets(st.integers(1, max(1, length - 1)), max_size=3))
    return Series(draw(st.sampled_from([200, 404, 500, 503])), begins, tuple(events), resets, draw(st.booleans()))


BUSY = 50  # steps in which something happens; then a silence, until all is in the sums
HISTORY = st.lists(a_series(BUSY), min_size=1, max_size=5)


# Shrinking would run promtool for minutes; the histories are small as they are.
@settings(
    max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(histories=st.lists(HISTORY, min_size=BATCH, max_size=BATCH))
def test_budget_is_what_a_count_by_hand_gives(program, tmp_path_factory, histories):
    steps = BUSY + BASE + 2
    end = (steps - 1) * STEP
    slos = [
        {"name": f"h{number}", "service": f"s{number}", "objective": 0.99, "availability": {}}
        for number in range(len(histories))
    ]
    input_series, questions = {}, []
    for number, history in enumerate(histories):
        for worker, series in enumerate(history):
            labels = f'service_name="s{number}", http_response_status_code="{series.status}", worker="{worker}"'
            input_series[f"http_server_request_duration_seconds_count{{{labels}}}"] = series.samples(steps)
        of = f'{{slo="h{number}"}}'
        questions += [
            (f"slo:sli_total:rate30d{of} * {WINDOW}", end),
            (f"(slo:sli_total:rate30d{of} - slo:sli_good:rate30d{of}) * {WINDOW}", end),
            (f"slo:budget_left:ratio{of}", end),
        ]
    groups = groups_of(slos, *BUDGET)
    found = promtool.ask(program, tmp_path_factory.mktemp("h"), groups, input_series, questions, STEP)
    for history, (total, bad, left) in zip(histories, zip(*[iter(found)] * 3, strict=True), strict=True):
        everything, failed = history, [series for series in history if series.status >= 500]
        assert_counted(total, everything)
        assert_counted(bad, failed)
        assert left == pytest.approx(1 - (bad / total / 0.01 if total else 0), abs=1e-9)


def assert_counted(found, series):
    """The bounds that rate() keeps, derived in _Rules._counts: n samples in the window, n = BASE."""
    true = sum(sum(each.events) for each in series)
    last = sum(sum(each.events[1 - BASE :]) for each in series if each.ends)
    assert true * (1 - 1 / BASE) - 1e-6 <= found <= true + (0.5 - 1.5 / BASE) * last + 1e-6, (found, true, last)


# --- workers that have been there for a while


def test_events_of_running_workers_are_counted_exactly(program, tmp_path):
    random.seed(7)
    quiet = [0] * BASE
    events = {status: quiet + [random.randrange(50) for _ in range(100)] + quiet for status in (200, 500)}
    input_series = {
        f'http_server_request_duration_seconds_count{{service_name="shop", http_response_status_code="{status}"}}': [
            10_000 + value for value in promtool.counter(counts)
        ]
        for status, counts in events.items()
    }
    slo = {"name": "a", "service": "shop", "objective": 0.99, "availability": {}}
    end = (len(events[200])) * STEP
    series = (f"slo:sli_total:rate30d * {WINDOW}", f"slo:sli_good:rate30d * {WINDOW}", "slo:budget_left:ratio")
    questions = [(each, end) for each in series]
    total, good, left = promtool.ask(program, tmp_path, groups_of([slo], *BUDGET), input_series, questions, STEP)
    bad, everything = sum(events[500]), sum(map(sum, events.values()))
    assert total == pytest.approx(everything, rel=1e-9)
    assert good == pytest.approx(everything - bad, rel=1e-9)
    assert left == pytest.approx(1 - bad / everything / 0.01, rel=1e-9)


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ({"good": "done"}, 0.1),
        ({"bad": "failed"}, 0.1),
        ({"good": "never_counted"}, 1),
        ({"bad": "never_counted"}, 0),
    ],
    ids=["good", "bad", "nothing good", "nothing bad"],
)
def test_ratio_is_of_what_the_queries_count(program, tmp_path, queries, expected):
    counts = {"started": 50, "done": 45, "failed": 5}
    input_series = {f"{name}_total": promtool.counter([each] * 3 * BASE) for name, each in counts.items()}
    ratio = {side: f"rate({name}_total[$window])" for side, name in {**queries, "total": "started"}.items()}
    slo = {"name": "a", "service": "jobs", "objective": 0.99, "ratio": ratio}
    windows = ("5m", "30d")
    records = [f"slo:{what}:rate{window}" for window in windows for what in ("sli_total", "sli_good", "error_ratio")]
    questions = [(f"slo:error_ratio:rate{window}", 3 * BASE * STEP) for window in windows]
    found = promtool.ask(program, tmp_path, groups_of([slo], *records), input_series, questions, STEP)
    assert found == [pytest.approx(expected, abs=1e-9)] * 2


@pytest.mark.parametrize(
    ("samples", "too_many"),
    [
        ([1000 + 10 * n for n in range(100)] + [None] * 2 * BASE, 10 * (1 - 1.5 / BASE)),
        ([None] * 10 + [10 * n for n in range(100)] + [990] * BASE, -10 * 0.5),
        ([0, 100] + [None] * 2 * BASE, 100 * (0.5 - 1.5 / BASE)),
    ],
    ids=["ends", "begins", "two samples"],
)
def test_ends_of_a_series_count_as_derived(program, tmp_path, samples, too_many):
    series = 'http_server_request_duration_seconds_count{service_name="shop", http_response_status_code="200"}'
    slo = {"name": "a", "service": "shop", "objective": 0.99, "availability": {}}
    question = (f"slo:sli_total:rate30d * {WINDOW}", (len(samples) - 1) * STEP)
    [total] = promtool.ask(program, tmp_path, groups_of([slo], *BUDGET), {series: samples}, [question], STEP)
    known = [value for value in samples if value is not None]
    assert total - (known[-1] - known[0]) == pytest.approx(too_many, abs=1e-6)


def test_first_error_ever_is_counted_when_its_series_begins_with_0_and_missed_otherwise(program, tmp_path):
    slos = [{"name": n, "service": n, "objective": 0.99, "availability": {}} for n in ("begun", "sudden")]
    steps = 3 * BASE
    input_series = {}
    for name, first in (("begun", 0), ("sudden", None)):
        metric = f'http_server_request_duration_seconds_count{{service_name="{name}", http_response_status_code='
        input_series[f'{metric}"200"}}'] = promtool.counter([5] * steps)
        input_series[f'{metric}"500"}}'] = [None] * BASE + [first] + [1] * (steps - BASE)
    questions = [
        (f'(slo:sli_total:rate30d{{slo="{name}"}} - slo:sli_good:rate30d{{slo="{name}"}}) * {WINDOW}', steps * STEP)
        for name in ("begun", "sudden")
    ]
    begun, sudden = promtool.ask(program, tmp_path, groups_of(slos, *BUDGET), input_series, questions, STEP)
    assert begun == pytest.approx(1, rel=1 / BASE) and sudden == 0


# --- the mean of ratios: what sloth's default rules make of the same objective, by its documented formulas:
# an error ratio over 5 minutes, and over the whole period the mean of its values

SLO = {"name": "a", "service": "shop", "objective": 0.99, "availability": {}}
SCALE, MINUTES = 60, 5  # a second stands for a minute; five of them for the window of 5 minutes
_COUNT = 'http_server_request_duration_seconds_count{service_name="shop"'
_BAD = 'http_response_status_code=~"5.."'
MEAN = {
    "name": "mean-of-ratios",
    "interval": "5s",
    "rules": [
        {
            "record": "mean:error_ratio:rate5m",
            "expr": f"sum(rate({_COUNT}, {_BAD}}}[5s])) / sum(rate({_COUNT}}}[5s]))",
        },
        {
            "record": "mean:error_ratio:rate30d",
            "expr": "sum_over_time(mean:error_ratio:rate5m[12h]) / count_over_time(mean:error_ratio:rate5m[12h])",
        },
        {"record": "mean:budget_left:ratio", "expr": "1 - mean:error_ratio:rate30d / 0.01"},
    ],
}
HOUR = 60


def both(program, tmp_path, monkeypatch, phases, errors_exist=True):
    """The budget left after phases of (minutes, requests a minute, share of bad ones): by hand, events, mean."""
    monkeypatch.setattr(rules, "EVALUATIONS", 1)  # once in five minutes, as there is nothing to see in between
    good, bad = [], []
    for minutes, requests, share in phases:
        good += [requests * (1 - share)] * minutes
        bad += [requests * share] * minutes
    counters: dict[int, list[float | None]] = {200: promtool.counter(good), 500: promtool.counter(bad)}
    if not errors_exist:  # until the first one
        counters[500] = [value or None for value in counters[500]]
        counters[500][counters[500].index(next(filter(None, counters[500]))) - 1] = 0
    input_series = {f'{_COUNT}, http_response_status_code="{status}"}}': values for status, values in counters.items()}
    groups = [*groups_of([SLO], *BUDGET, time_scale=SCALE), MEAN]
    questions = [("slo:budget_left:ratio", len(good)), ("mean:budget_left:ratio", len(good))]
    by_events, by_mean = promtool.ask(program, tmp_path, groups, input_series, questions)
    by_hand = 1 - sum(bad) / (sum(good) + sum(bad)) / 0.01
    return by_hand, by_events, by_mean


def test_mean_of_ratios_says_the_same_while_traffic_is_even(program, tmp_path, monkeypatch):
    by_hand, by_events, by_mean = both(program, tmp_path, monkeypatch, [(5 * HOUR, 100, 0.002), (HOUR, 100, 0.02)])
    assert by_hand == pytest.approx(0.5)
    assert by_events == pytest.approx(by_hand, abs=0.02) and by_mean == pytest.approx(by_hand, abs=0.02)


def test_mean_of_ratios_lets_a_quiet_nights_few_errors_overspend_the_budget(program, tmp_path, monkeypatch):
    # In five busy hours all is well; in a quiet one half of 60 requests fail.
    phases = [(5 * HOUR, 1000, 0.00001), (HOUR, 1, 0.5)]
    by_hand, by_events, by_mean = both(program, tmp_path, monkeypatch, phases)
    assert by_hand == pytest.approx(0.989, abs=0.001)
    assert by_events == pytest.approx(by_hand, abs=0.01)
    assert by_mean == pytest.approx(-7.3, abs=0.3)


def test_mean_of_ratios_hides_an_outage_at_the_busiest_hour(program, tmp_path, monkeypatch):
    # A rush of six minutes, of which a tenth fails, in six hours with next to nobody.
    phases = [(5 * HOUR, 1, 0.0001), (5, 10_000, 0.1), (HOUR - 5, 1, 0.0001)]
    by_hand, by_events, by_mean = both(program, tmp_path, monkeypatch, phases)
    assert by_hand == pytest.approx(-8.93, abs=0.01)
    assert by_events == pytest.approx(by_hand, abs=0.1)
    assert by_mean > 0.7


def test_mean_of_ratios_is_lost_for_a_whole_window_after_five_minutes_without_traffic(program, tmp_path, monkeypatch):
    phases = [(HOUR, 100, 0.005), (10, 0, 0), (HOUR, 100, 0.005)]
    by_hand, by_events, by_mean = both(program, tmp_path, monkeypatch, phases)
    assert by_hand == pytest.approx(0.5)
    assert by_events == pytest.approx(by_hand, abs=0.02)
    assert by_mean != by_mean, "0/0, which every sum keeps"


def test_mean_of_ratios_knows_no_good_times_before_the_first_error(program, tmp_path, monkeypatch):
    phases = [(5 * HOUR, 100, 0), (HOUR, 100, 0.03)]
    by_hand, by_events, by_mean = both(program, tmp_path, monkeypatch, phases, errors_exist=False)
    assert by_hand == pytest.approx(0.5)
    assert by_events == pytest.approx(by_hand, abs=0.02)
    assert by_mean == pytest.approx(-2, abs=0.2)

"""`watchpost gate` keeps what is bad from being delivered, and lets what is only noise pass."""

import json
import random
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace

import pytest
import yaml
from typer.testing import CliRunner

from watchpost.cli import command_line
from watchpost.delivery import gate
from watchpost.delivery.gate import baseline_of, compare
from watchpost.ledger import Run, Sent
from watchpost.slo import spec

OPERATIONS = ("create", "list", "read", "edit", "delete")


def requests(count=600, errors=0, unanswered=0, slow=0, median=0.02, seed=1):
    """Requests with log-normal latencies, as real ones have; the first ones are what the arguments say."""
    rng, sent = random.Random(seed), []
    for number in range(count):
        status = 0 if number < unanswered else 500 if number < unanswered + errors else 200
        seconds = 0.8 if number >= count - slow else rng.lognormvariate(0, 0.5) * median
        operation = OPERATIONS[number % len(OPERATIONS)]
        sent.append(
            Sent("GET", "/api/tasks", 200, status, f"{number:032x}", "b" * 16, True, "", operation, number, seconds)
        )
    return sent


def one(seconds, operation="a"):
    return Sent("GET", "/api/tasks", 200, 200, "a" * 32, "b" * 16, True, "", operation, 0.0, seconds)


def run_gate(tmp_path, sent, *flags):
    lines = [json.dumps(asdict(Run("r1", "https://x", 0.0)))] + [json.dumps(asdict(each)) for each in sent]
    (tmp_path / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    answer = CliRunner().invoke(command_line("gate"), ["gate", "--run", str(tmp_path), *flags])
    file = tmp_path / "gate.json"
    return answer, json.loads(file.read_text()) if file.exists() else None


def test_good_run_passes(tmp_path):
    answer, verdict = run_gate(tmp_path, requests())
    assert answer.exit_code == 0, answer.output
    assert verdict["ok"] and not verdict["failures"]


@pytest.mark.parametrize(
    ("sent", "broken", "number"),
    [
        (requests(errors=7), "availability", "98.833%"),
        (requests(unanswered=7), "availability", "98.833%"),
        (requests(slow=31), "P95", "800.0 ms"),
        (requests(count=99), "requests", "99"),
    ],
)
def test_run_that_breaks_a_limit_is_refused_with_the_number(tmp_path, sent, broken, number):
    answer, verdict = run_gate(tmp_path, sent)
    assert answer.exit_code == 1
    assert not verdict["ok"] and verdict["failures"][0].startswith(f"{broken} is {number}")
    assert f"Not delivered: {broken} is {number}" in answer.output


@pytest.mark.parametrize("sent", [requests(errors=6), requests(slow=30)])
def test_limit_that_is_just_kept_is_kept(tmp_path, sent):
    answer, _ = run_gate(tmp_path, sent)
    assert answer.exit_code == 0, answer.output


def test_unexpected_answer_counts_as_an_error_though_the_service_was_available(tmp_path):
    sent = [*requests(count=590), *(Sent("GET", "/x", 200, 404, "a", "b", True, seconds=0.01) for _ in range(10))]
    answer, verdict = run_gate(tmp_path, sent)
    assert answer.exit_code == 1
    assert [failure.split(" is ")[0] for failure in verdict["failures"]] == ["error rate"]


def test_limits_are_set_by_flags(tmp_path):
    assert run_gate(tmp_path, requests(errors=7), "--availability", "0.98", "--error-rate", "0.02")[0].exit_code == 0
    assert run_gate(tmp_path, requests(), "--p95", "10")[0].exit_code == 1


def test_limits_are_those_of_the_objectives_if_no_flag_says_otherwise(tmp_path, monkeypatch):
    slos = [
        {"name": "fast", "service": "taskboard", "objective": 0.99, "latency": {"threshold": "250ms"}},
        {"name": "most", "service": "taskboard", "objective": 0.9, "latency": {"threshold": "100ms"}},
        {"name": "up", "service": "taskboard", "objective": 0.95, "availability": {}},
        {"name": "other", "service": "shop", "objective": 0.999, "availability": {}},
    ]
    monkeypatch.setattr(gate, "read_file", lambda: spec.read(slos))
    assert gate.promised("taskboard") == (0.95, 0.25)
    _, verdict = run_gate(tmp_path, requests(errors=12))
    limits = {check["name"]: check["limit"] for check in verdict["checks"]}
    assert limits["availability"] == "at least 95.000%" and limits["P95"] == "at most 250 ms"
    assert gate.promised("nobody") == (None, None)


def test_objectives_of_the_inventory_stand_above_the_files(tmp_path):
    hosts = {"prometheus": {"hosts": {"vm": {"promise": 0.95}}}, "watchpost": {"children": {"prometheus": {}}}}
    slos = [{"name": "up", "service": "taskboard", "objective": "{{ promise }}", "availability": {}}]
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/watchpost.yml").write_text(yaml.safe_dump({"watchpost_slos": slos}))
    answer, verdict = run_gate(tmp_path, requests(errors=12), "--inventory", str(tmp_path), "--error-rate", "1")
    assert answer.exit_code == 0, answer.output
    limits = {check["name"]: check["limit"] for check in verdict["checks"]}
    assert limits["availability"] == "at least 95.000%" and limits["P95"] == "at most 500 ms"
    (tmp_path / "group_vars/watchpost.yml").write_text(yaml.safe_dump({"watchpost_slos": [slos[0] | {"window": "x"}]}))
    answer, _ = run_gate(tmp_path, requests(), "--inventory", str(tmp_path))
    assert answer.exit_code == 2 and "watchpost_slos[0].window" in answer.output


def test_inventory_that_is_not_there_is_wrong_usage(tmp_path):
    answer, _ = run_gate(tmp_path, requests(), "--inventory", "/none")
    assert answer.exit_code == 2 and "--inventory /none" in answer.output


def test_empty_run_is_no_good_run(tmp_path):
    answer, _ = run_gate(tmp_path, [])
    assert answer.exit_code == 1


def test_missing_ledger_is_wrong_usage(tmp_path):
    answer = CliRunner().invoke(command_line("gate"), ["gate", "--run", str(tmp_path)])
    assert answer.exit_code == 2 and "ledger.jsonl" in answer.output


def test_junit_has_a_case_a_check_and_the_failure_in_words(tmp_path):
    run_gate(tmp_path, requests(errors=30))
    suite = ET.parse(tmp_path / "gate.xml").getroot()
    cases = {case.get("name"): case for case in suite}
    assert suite.get("tests") == str(len(cases)) and suite.get("failures") == "2"
    assert "95.000%" in cases["availability"].find("failure").get("message")
    assert cases["P95"].find("failure") is None


def test_baseline_is_kept_of_a_good_run_only_and_a_regression_against_it_is_refused(tmp_path):
    keep = tmp_path / "baseline.json"
    assert run_gate(tmp_path, requests(errors=60), "--save-baseline", str(keep))[0].exit_code == 1
    assert not keep.exists()
    assert run_gate(tmp_path, requests(), "--save-baseline", str(keep))[0].exit_code == 0
    assert run_gate(tmp_path, requests(seed=2), "--baseline", str(keep))[0].exit_code == 0
    answer, verdict = run_gate(tmp_path, requests(seed=2, median=0.08), "--baseline", str(keep))
    assert answer.exit_code == 1
    assert all("against run r1" in failure for failure in verdict["failures"]) and len(verdict["failures"]) == 6


def test_more_errors_than_before_are_found_though_the_limit_is_kept(tmp_path):
    keep = tmp_path / "baseline.json"
    lenient = ("--availability", "0.9", "--error-rate", "0.1")
    assert run_gate(tmp_path, requests(), "--save-baseline", str(keep))[0].exit_code == 0
    answer, verdict = run_gate(tmp_path, requests(errors=20), *lenient, "--baseline", str(keep))
    assert answer.exit_code == 1 and verdict["failures"][0].startswith("errors against run r1")
    assert run_gate(tmp_path, requests(errors=2), *lenient, "--baseline", str(keep))[0].exit_code == 0


def worse(now, then, slower_by=1.0):
    """The checks that fail when a run is compared with an earlier one."""
    run = Run("r", "https://x", 0.0)
    return [
        check.name for check in compare(baseline_of(run, now), baseline_of(run, then), slower_by) if not check.passed
    ]


def test_chance_does_not_fail_builds():
    """Of 60 pairs of runs that do not differ, or by just what is allowed, none is told: the level is 1 in 1000."""
    for seed in range(60):
        then, now = requests(200, 1, seed=2 * seed), requests(200, 1, seed=2 * seed + 1)
        slower = requests(200, 1, seed=2 * seed + 1, median=0.03)
        assert not worse(now, then) and not worse(slower, then, slower_by=1.5), seed


def test_difference_that_is_real_but_small_passes():
    then, now = requests(count=5000), requests(count=5000, seed=2, median=0.024)
    assert not worse(now, then, 1.5)
    assert len(worse(now, then, 1.02)) == 6, "each operation, and the slowest"


def test_some_slow_requests_are_found_though_the_median_is_the_same():
    then, now = requests(), requests(seed=2)
    now = [replace(each, seconds=0.4) if number % 7 == 0 else each for number, each in enumerate(now)]
    assert worse(now, then, 1.5) == ["slow requests against run r"]
    assert not worse(requests(seed=2), then, 1.5)


def test_the_more_is_compared_the_surer_each_comparison_must_be():
    def runs(operations):
        then = [one(seconds=0.02 + 0.001 * n, operation=op) for op in operations for n in range(30)]
        now = [
            one(seconds=0.034 + 0.001 * n if op == "a" else 0.02, operation=op) for op in operations for n in range(30)
        ]
        return now, then

    assert "a against run r" in worse(*runs("a"))
    assert "a against run r" not in worse(*runs([*"abcdefgh", *map(str, range(2000))]))


def test_operation_with_few_requests_is_not_judged_by_itself():
    then, now = [one(seconds=0.02) for _ in range(9)], [one(seconds=0.9) for _ in range(9)]
    assert not worse(now, then)
    assert "a against run r" in worse(now + now, then + then)


def test_few_requests_of_each_of_many_operations_raise_no_more_alarms_than_many():
    alarms = 0
    for seed in range(150):
        rng = random.Random(seed)
        then, now = ([one(rng.lognormvariate(0, 0.5), op) for op in "abcdefg" for _ in range(15)] for _ in range(2))
        alarms += "slow requests against run r" in worse(now, then)
    assert alarms <= 2, "1 in 1000 is the level of all tests together"


def test_run_of_another_scenario_is_no_baseline(tmp_path):
    keep = tmp_path / "baseline.json"
    assert run_gate(tmp_path, requests(), "--save-baseline", str(keep))[0].exit_code == 0
    keep.write_text(keep.read_text().replace('"scenario": ""', '"scenario": "120 creates"'))
    answer, _ = run_gate(tmp_path, requests(), "--baseline", str(keep))
    assert answer.exit_code == 2 and "did something else: 120 creates" in answer.output
    both = ("--baseline", str(keep), "--save-baseline", str(keep))
    assert run_gate(tmp_path, requests(), *both)[0].exit_code == 0, "who adds to it begins anew"
    assert [each.scenario for each in gate.read_baselines(keep)] == [""]


@pytest.mark.parametrize(("text", "complaint"), [("[{}]", "run"), ("nothing", "Invalid JSON"), (None, "No such file")])
def test_baseline_that_cannot_be_read_is_refused(tmp_path, text, complaint):
    keep = tmp_path / "baseline.json"
    if text is not None:
        keep.write_text(text)
    answer, _ = run_gate(tmp_path, requests(), "--baseline", str(keep))
    assert answer.exit_code == 2 and "baseline.json" in answer.output and complaint in answer.output


def test_run_is_only_worse_when_it_is_worse_than_each_of_those_that_are_kept(tmp_path):
    keep = ("--baseline", str(tmp_path / "good.json"), "--save-baseline", str(tmp_path / "good.json"))
    assert run_gate(tmp_path, requests(), *keep)[0].exit_code == 0, "the first has nothing to be compared with"
    slower = requests(seed=2, median=0.06)
    assert run_gate(tmp_path, slower, *keep)[0].exit_code == 1
    assert run_gate(tmp_path, slower, "--save-baseline", keep[1])[0].exit_code == 0, "the machine is so slow at times"
    assert run_gate(tmp_path, requests(seed=3, median=0.06), *keep)[0].exit_code == 0
    assert run_gate(tmp_path, requests(seed=4, median=0.2), *keep)[0].exit_code == 1


def test_baseline_keeps_the_last_good_runs(tmp_path):
    file = tmp_path / "good.json"
    for number in range(gate.KEPT + 2):
        gate.keep(file, baseline_of(Run(f"r{number}", "https://x", 0.0, scenario="s"), requests(40)))
    assert [each.run for each in gate.read_baselines(file)] == [f"r{number}" for number in range(2, gate.KEPT + 2)]
    gate.keep(file, baseline_of(Run("other", "https://x", 0.0, scenario="another"), requests(40)))
    assert [each.run for each in gate.read_baselines(file)] == ["other"]


def test_baseline_that_cannot_be_kept_is_named(tmp_path):
    answer, _ = run_gate(tmp_path, requests(), "--save-baseline", str(tmp_path / "nowhere/baseline.json"))
    assert answer.exit_code == 2 and "nowhere/baseline.json: No such file" in answer.output

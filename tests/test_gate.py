"""`watchpost gate` keeps what is bad from being delivered, and lets what is only noise pass."""

import json
import random
import xml.etree.ElementTree as ET
from dataclasses import asdict

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
        (requests(slow=31), "P95", "800 ms"),
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
    answer, verdict = run_gate(tmp_path, requests(seed=2, median=0.04), "--baseline", str(keep))
    assert answer.exit_code == 1
    assert all("against run r1" in failure for failure in verdict["failures"]) and len(verdict["failures"]) == 5


def test_more_errors_than_before_are_found_though_the_limit_is_kept(tmp_path):
    keep = tmp_path / "baseline.json"
    lenient = ("--availability", "0.9", "--error-rate", "0.1")
    assert run_gate(tmp_path, requests(), "--save-baseline", str(keep))[0].exit_code == 0
    answer, verdict = run_gate(tmp_path, requests(errors=20), *lenient, "--baseline", str(keep))
    assert answer.exit_code == 1 and verdict["failures"][0].startswith("errors against run r1")
    assert run_gate(tmp_path, requests(errors=2), *lenient, "--baseline", str(keep))[0].exit_code == 0


def test_noise_does_not_fail_builds():
    """60 pairs of runs that do not differ, with no allowance for a small difference: the level is 1 in 1000 runs."""
    alarms = 0
    for seed in range(60):
        baseline = baseline_of("old", requests(count=200, errors=1, seed=2 * seed))
        alarms += not all(check.passed for check in compare(requests(200, 1, seed=2 * seed + 1), baseline, 1.0))
    assert alarms <= 1


def test_difference_that_is_real_but_small_passes():
    baseline = baseline_of("old", requests(count=5000))
    assert all(check.passed for check in compare(requests(count=5000, seed=2, median=0.024), baseline, 1.5))
    assert not all(check.passed for check in compare(requests(count=5000, seed=2, median=0.024), baseline, 1.1))


@pytest.mark.parametrize(("text", "complaint"), [("{}", "run"), ("nothing", "Invalid JSON"), (None, "No such file")])
def test_baseline_that_cannot_be_read_is_refused(tmp_path, text, complaint):
    keep = tmp_path / "baseline.json"
    if text is not None:
        keep.write_text(text)
    answer, _ = run_gate(tmp_path, requests(), "--baseline", str(keep))
    assert answer.exit_code == 2 and "baseline.json" in answer.output and complaint in answer.output


def test_baseline_that_cannot_be_kept_is_named(tmp_path):
    answer, _ = run_gate(tmp_path, requests(), "--save-baseline", str(tmp_path / "nowhere/baseline.json"))
    assert answer.exit_code == 2 and "nowhere/baseline.json: No such file" in answer.output

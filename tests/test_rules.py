"""Every alert is complete, tested both ways, and has a runbook; every recording rule is named as is the custom."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "molecule/prometheus/tests"))
import rules

ALERTS = rules.alerts()
SLO_ALERTS = rules.slo_alerts()  # when they fire: test_slo_rules.py
SLO_RULES = [rule for group in rules.slo_groups() for rule in group["rules"]]
RECORDS = sorted({rule["record"] for rule in [*rules.rules(), *SLO_RULES] if "record" in rule})
CASES = [case for test in rules.cases()["tests"] for case in test["alert_rule_test"]]
SECTIONS = ["Symptom", "What it means", "How to check", "How to mend"]


@pytest.mark.parametrize("name", ALERTS)
def test_alert_has_a_severity_and_says_what_it_is_and_what_it_means(name):
    assert ALERTS[name]["labels"] in ({"severity": severity} for severity in ("page", "ticket", "none"))
    assert set(ALERTS[name]["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("name", ALERTS)
def test_alert_is_shown_to_fire_and_to_keep_quiet(name):
    outcomes = {bool(case.get("exp_alerts")) for case in CASES if case["alertname"] == name}
    assert outcomes == ({True} if name == "Watchdog" else {True, False})


@pytest.mark.parametrize("name", SLO_ALERTS)
def test_alert_on_an_objective_says_whom_it_concerns_and_where_to_look(name):
    alert = SLO_ALERTS[name]
    assert set(alert["labels"]) == {"severity", "slo", "service"} and alert["labels"]["severity"] in ("page", "ticket")
    assert set(alert["annotations"]) - {"traceql"} == {"summary", "description", "budget_left", "dashboard"}


def test_examples_of_slow_answers_are_slow_traces_and_those_of_failed_ones_are_left_to_the_messages():
    alerts = [rule for group in rules.slo_groups() for rule in group["rules"] if "alert" in rule]
    examples = {rule["labels"]["slo"]: rule["annotations"].get("traceql") for rule in alerts}
    assert examples["tasks-available"] is None
    assert examples["tasks-fast"] == '{ resource.service.name = "taskboard" && duration > 500ms }'


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    assert {page.stem for page in rules.RUNBOOKS.glob("*.md")} == {*ALERTS, *SLO_ALERTS}


@pytest.mark.parametrize("name", [*ALERTS, *SLO_ALERTS])
def test_runbook_says_all_that_one_needs(name):
    text = (rules.RUNBOOKS / f"{name}.md").read_text()
    assert re.findall(r"^#+ (.*)", text, re.MULTILINE) == [name, *SECTIONS]
    assert re.search(r"^    \S", text.split("## How to check")[1], re.MULTILINE), "no command to check with"
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (rules.RUNBOOKS / link).exists(), f"{link} leads nowhere"


def test_documented_exporters_are_such_that_their_host_can_be_down():
    """HostDown asks for two targets or more of one `instance`."""
    text = (rules.PROJECT / "docs/other-systems.md").read_text()
    [example] = re.findall(r"^    prometheus_scrape_configs:\n(?:     .*\n)+", text, re.MULTILINE)
    jobs = yaml.safe_load(textwrap.dedent(example))["prometheus_scrape_configs"]
    instances = [t["labels"]["instance"] for job in jobs for t in job["static_configs"]]
    assert len(jobs) > 1 and len(set(instances)) == 1


@pytest.mark.parametrize("name", RECORDS)
def test_recording_rule_is_named_level_metric_operation(name):
    assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", name)


def test_no_rule_is_written_twice():
    recorded = [
        (rule.get("record"), str(rule.get("labels"))) for rule in [*rules.rules(), *SLO_RULES] if "record" in rule
    ]
    assert len(set(recorded)) == len(recorded)

"""Watchpost's rules, and promtool's tests of them with what is the same in every case filled in."""

from pathlib import Path

import yaml

from watchpost.slo import rules as slo_rules
from watchpost.slo import spec

PROJECT = Path(__file__).resolve().parents[3]
FILES = sorted((PROJECT / "roles/prometheus/files/rules").glob("*.yml"))
SLOS = PROJECT / "group_vars/all/slo.yml"
RUNBOOKS = PROJECT / "docs/runbooks"
CASES = Path(__file__).with_name("rules_test.yml")


def rules():
    """All recording and alerting rules, as they stand in the role."""
    return [rule for file in FILES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def alerts():
    """The alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def slo_groups(public_url="https://localhost"):
    """The groups of rules that the objectives of group_vars/all/slo.yml become."""
    return slo_rules.rule_groups(spec.read(yaml.safe_load(SLOS.read_text())["watchpost_slos"]), public_url)


def slo_alerts():
    """The alerting rules of the objectives by name; of several objectives the last."""
    return {rule["alert"]: rule for group in slo_groups() for rule in group["rules"] if "alert" in rule}


def cases():
    """The tests of the rules, as they are written."""
    return yaml.safe_load(CASES.read_text())


def promtool_tests(directory, runbook_base):
    """What promtool is given: the cases, for the rules in a directory."""
    tests, known = cases(), alerts()
    tests["rule_files"] = [f"{directory}/*.yml"]
    for test in tests["tests"]:
        test.setdefault("interval", "1m")
        for case in test["alert_rule_test"]:
            rule = known[case["alertname"]]
            constant = {name: text for name, text in rule["annotations"].items() if "{{" not in text}
            constant["runbook_url"] = f"{runbook_base}/{rule['alert']}.md"
            for alert in case.get("exp_alerts", ()):
                alert["exp_labels"] = rule["labels"] | alert.get("exp_labels", {})
                alert["exp_annotations"] = constant | alert.get("exp_annotations", {})
    return yaml.safe_dump(tests)

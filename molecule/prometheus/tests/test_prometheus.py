"""Prometheus takes OTLP metrics, scrapes the services, alerts, and lets in only those whom the registry names."""

from urllib.parse import urlencode

import pytest
import rules
from conftest import wait_until
from otlp import JSON, Probe

PROMTOOL = "/opt/watchpost/prometheus/current/bin/promtool"


@pytest.fixture
def query(ask):
    """Ask Prometheus's API for data."""

    def query(path, **parameters):
        answer = ask("prometheus", "http", f"/api/v1/{path}?{urlencode(parameters)}")
        assert answer.status == 200, answer
        return answer.json["data"]

    return query


@pytest.fixture
def probe(ask):
    """A counter that Prometheus has taken."""
    probe = Probe()
    body = probe.counter("molecule.tasks", 7)
    sent = ask("prometheus", "http", "/api/v1/otlp/v1/metrics", method="POST", headers=JSON, body=body)
    assert sent.status == 200, sent
    return probe


def test_otlp_metric_is_found_by_its_resource(probe, query):
    labels = 'service_instance_id="worker-7",service_version="1.2.3",deployment_environment_name="test"'
    found = query("query", query=f'molecule_tasks_total{{service_name="{probe.service}",{labels}}}')["result"]
    assert [sample["value"][1] for sample in found] == ["7"]


def test_first_event_of_a_series_is_an_increase(ask, query):
    """Objectives count by rate(), which sees none before a first sample: a 0 is put where OTLP says that it began."""
    probe = Probe()
    body = probe.counter("molecule.errors", 1)
    assert ask("prometheus", "http", "/api/v1/otlp/v1/metrics", method="POST", headers=JSON, body=body).status == 200
    increase = f'increase(molecule_errors_total{{service_name="{probe.service}"}}[5m])'
    [counted] = query("query", query=increase)["result"]
    assert float(counted["value"][1]) > 0


def test_exemplar_leads_to_the_trace(probe, query):
    now = probe.nanoseconds / 1e9
    selector = f'molecule_tasks_total{{service_name="{probe.service}"}}'
    [series] = query("query_exemplars", query=selector, start=now - 60, end=now + 60)
    assert series["exemplars"][0]["labels"]["trace_id"] == probe.trace_id


def test_every_service_that_names_prometheus_as_a_caller_is_scraped(query, endpoints, components):
    expected = {
        component
        for component in components
        if any("prometheus" in endpoint["callers"] for endpoint in endpoints[component].values())
    }

    def up():
        targets = query("targets", state="active")["activeTargets"]
        return {target["labels"]["job"] for target in targets if target["health"] == "up"}

    wait_until(lambda: up() == expected, seconds=40)


def test_watchdog_reaches_alertmanager(ask):
    def names():
        return {alert["labels"]["alertname"] for alert in ask("alertmanager", "http", "/api/v2/alerts").json}

    # Prometheus sends an alert once a minute; an Alertmanager that was away when it was sent waits for the next.
    wait_until(lambda: "Watchdog" in names(), seconds=120)


def test_rules_do_as_they_should(host):
    test = host.check_output("mktemp")
    runbooks = f"https://{host.ansible.get_variables()['ansible_host']}/runbooks"
    cases = rules.promtool_tests("/etc/watchpost/prometheus/current/rules", runbooks)
    host.check_output("printf %%s %s > %s", cases, test)
    done = host.run("%s test rules %s", PROMTOOL, test)
    assert done.rc == 0, done.stdout + done.stderr


def test_component_that_is_no_caller_is_refused(send):
    assert send("prometheus", "http", identity="prometheus").body.startswith("HTTP/1.1 302")
    assert not send("prometheus", "http", identity="node_exporter").body.startswith("HTTP/")


def test_retention_is_on(query):
    flags = query("status/config")["yaml"]
    assert "time: 5w" in flags
    assert "size: 3GiB" in flags or "size: 3GB" in flags


def test_refused_rule_is_named_and_the_old_rules_keep_running(assert_refused):
    rule = {"alert": "Broken", "expr": "sum by ("}
    assert_refused("prometheus", "extra.yml", prometheus_rule_groups=[{"name": "mine", "rules": [rule]}])


def test_checker_refuses_a_bad_web_configuration(host):
    # Nobody can spoil web.yml by a variable, so the checker is given a file that is none.
    assert host.run("%s check web-config /etc/hostname", PROMTOOL).rc != 0

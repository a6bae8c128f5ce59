"""node_exporter tells of the host, to those only whom the registry names, and not of its own sandbox."""

import re

import pytest


@pytest.fixture
def metrics(ask):
    answer = ask("node_exporter", "http", "/metrics")
    assert answer.status == 200
    return answer.body


def test_every_collector_succeeds(metrics):
    outcome = dict(re.findall(r'node_scrape_collector_success{collector="(\w+)"} (\d)', metrics))
    # A container may not ask for the state of the clock, which is its host's.
    assert {name for name, value in outcome.items() if value == "0"} <= {"timex"}
    assert {"cpu", "filesystem", "meminfo", "systemd"} <= set(outcome)


def test_free_space_is_that_of_the_host(metrics, host):
    size = int(host.check_output("df --block-size=1 --output=size / | tail -n 1"))
    found = re.findall(r'node_filesystem_size_bytes{.*mountpoint="([^"]+)"} (\S+)', metrics)
    assert {mountpoint: float(value) for mountpoint, value in found} == {"/": pytest.approx(size)}


def test_state_of_a_service_is_told(metrics):
    assert re.search(r'node_systemd_unit_state{name="watchpost-node-exporter.service",state="active",.*} 1', metrics)


def test_component_that_is_no_caller_is_refused(send):
    assert send("node_exporter", "http", identity="operator").body.startswith("HTTP/1.1 200")
    assert not send("node_exporter", "http", identity="node_exporter").body.startswith("HTTP/")


def test_unknown_collector_is_named_and_the_old_ones_keep_running(assert_refused):
    assert_refused("node_exporter", "no_such_collector", node_exporter_collectors=["no_such_collector"])

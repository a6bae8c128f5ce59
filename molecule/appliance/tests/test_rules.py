"""Every metric that a rule reads is one that the appliance has: an alert with a misspelt name never fires."""

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from conftest import ENDPOINTS, PKI, unit_name, wait_until
from otlp import JSON, Probe
from test_browser import browser, grafana, page, target  # noqa: F401 - fixtures

from watchpost.dashboards.run import Reader

sys.path.insert(0, str(Path(__file__).parents[2] / "prometheus/tests"))
import rules

#: Metrics that a well appliance does not have, and when they come.
COMES_LATER = {
    "alertmanager_notifications_failed_total": "with a receiver that is told of alerts",
    "loki_boltdb_shipper_compact_tables_operation_total": "with the first compaction that fails",
    "loki_compactor_apply_retention_operation_total": "with the first retention that fails",
    "loki_ingester_wal_corruptions_total": "with the first damaged entry that Loki finds when it starts",
    "tempo_distributor_ingester_append_failures_total": "with the first batch that Tempo cannot keep",
    "loki_discarded_samples_total": "with the first line that Loki throws away",
    "loki_request_duration_seconds_count": "with the first request that Loki answers with an error",
    "prometheus_http_requests_total": "with the first request that Prometheus answers with an error",
    "watchpost_client_held_back_bytes_total": "with the first client that is held back",
    "tempo_distributor_attributes_truncated_total": "with the first attribute that Tempo cuts",
    "tempo_discarded_spans_total": "with the first span that Tempo throws away",
    "node_timex_offset_seconds": "on a host with a clock of its own: a container may not ask for it",
    "node_timex_sync_status": "on a host with a clock of its own: a container may not ask for it",
    "watchpost:traces_kept:ratio_rate5m": "with sampling, which is off by default",
}
#: The same for what begins so.
COMES_LATER_BY_PREFIX = {
    "otelcol_exporter_enqueue_failed_": "with the first that finds no place in a queue",
    "job_instance_exporter_signal:otelcol_exporter_enqueue_failed_": "with the first that finds no place in a queue",
    "otelcol_processor_tail_sampling_": "with sampling, which is off by default",
    "prometheus_remote_storage_": "with a target of prometheus_remote_write",
}
#: The same for what is looked for by such a matcher.
COMES_LATER_BY_MATCHER = {
    'http_response_status_code=~"5.."': "with the first error of the application",
}


def selectors(node):
    """Name and matchers of each selector in what Prometheus makes of an expression."""
    if isinstance(node, dict):
        if node.get("type") in ("vectorSelector", "matrixSelector"):
            yield node["name"], [f"{m['name']}{m['type']}{json.dumps(m['value'])}" for m in node["matchers"]]
        for part in node.values():
            yield from selectors(part)
    elif isinstance(node, list):
        for part in node:
            yield from selectors(part)


# Runs on the host: asks Prometheus's API for several things over one connection.
ASK_ALL = """
import http.client, json, ssl, sys
pki, port, paths = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
context = ssl.create_default_context(cafile=pki + "/ca.crt")
context.load_cert_chain(pki + "/operator/tls.crt", pki + "/operator/tls.key")
connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
answers = []
for path in paths:
    connection.request("GET", "/api/v1/" + path)
    answers.append(json.loads(connection.getresponse().read())["data"])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def prometheus(host):
    """Ask Prometheus's API the same of each of several expressions."""

    def prometheus(path, expressions):
        paths = [f"{path}?{urlencode({'query': expression})}" for expression in expressions]
        port = ENDPOINTS["prometheus"]["http"]["port"]
        return json.loads(host.check_output("python3 -c %s %s %s %s", ASK_ALL, PKI, str(port), json.dumps(paths)))

    return prometheus


@pytest.fixture(scope="module")
def read_by_rules(prometheus):
    """What the rules read, as selector and name; not of agents, which tell the same from other hosts."""
    slos = [rule for group in rules.slo_groups() for rule in group["rules"]]
    trees = prometheus("parse_query", [rule["expr"] for rule in [*rules.rules(), *slos]])
    found = {"{" + ",".join(matchers) + "}": name for name, matchers in selectors(trees)}
    return {selector: name for selector, name in found.items() if 'job="agent"' not in selector}


def test_objective_on_page_loads_counts_what_a_browser_does(page, grafana):  # noqa: F811 - fixtures
    def loads():
        return grafana.instant('slo:sli_total:rate5m{slo="page-loads"} > 0', time.time())

    # A batch in the page, the Collector's counts of spans every 15 s, and an evaluation every 15 s.
    wait_until(loads, seconds=60)


def test_every_metric_that_a_rule_reads_exists(prometheus, read_by_rules, ask):
    span = Probe().span("counted")  # without a trace nobody counts traces
    assert ask("otel_collector", "local_http", "/v1/traces", method="POST", headers=JSON, body=span).status == 200
    missing = [
        selector
        for selector, name in read_by_rules.items()
        if name not in COMES_LATER and not name.startswith(tuple(COMES_LATER_BY_PREFIX))
        if not any(matcher in selector for matcher in COMES_LATER_BY_MATCHER)
    ]
    deadline = time.monotonic() + 60  # what is recorded of what is recorded comes at the third evaluation
    while True:
        answers = prometheus("query", [f"count(last_over_time({selector}[1h]))" for selector in missing])
        missing = [selector for selector, answer in zip(missing, answers, strict=True) if not answer["result"]]
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(5)  # until the next evaluation
    assert not missing, "rules read what nothing tells"


def test_no_exception_is_made_for_what_no_rule_reads(read_by_rules):
    read = set(read_by_rules.values())
    assert set(COMES_LATER) <= read
    assert all(any(name.startswith(prefix) for name in read) for prefix in COMES_LATER_BY_PREFIX)
    assert all(any(matcher in selector for selector in read_by_rules) for matcher in COMES_LATER_BY_MATCHER)


def test_service_that_ends_again_and_again_is_told_to_alertmanager(host, ask, grafana):  # noqa: F811 - a fixture
    """The whole way of an alert, from the fault to Alertmanager, and to the page where a person looks first."""
    unit = unit_name("tempo")
    for _ in range(5):
        before = host.check_output("systemctl show --property=NRestarts --value %s", unit)
        host.check_output("systemctl kill --signal=KILL %s", unit)
        deadline = time.monotonic() + 20
        while host.check_output("systemctl show --property=NRestarts --value %s", unit) == before:
            assert time.monotonic() < deadline, "systemd does not start it again"
            time.sleep(0.3)  # systemd waits a second
    deadline = time.monotonic() + 120  # two scrapes, an evaluation, Prometheus's turn to send
    while True:
        alerts = ask("alertmanager", "http", "/api/v2/alerts").json
        found = [alert for alert in alerts if alert["labels"]["alertname"] == "ServiceRestarting"]
        if found:
            break
        assert time.monotonic() < deadline, [alert["labels"] for alert in alerts]
        time.sleep(2)  # between two questions
    assert found[0]["labels"]["name"] == unit and found[0]["labels"]["severity"] == "page"
    public = host.ansible.get_variables()["ansible_host"]
    assert found[0]["annotations"]["runbook_url"] == f"https://{public}/runbooks/ServiceRestarting.md"
    assert unit in found[0]["annotations"]["summary"]
    look = Reader(grafana, time.time() - 600, time.time())
    (panel,) = [p for p in look.dashboard("watchpost-start")["panels"] if p["title"] == "What fires"]
    assert "ServiceRestarting" in json.dumps([answer.frames for answer in look.panel(panel, {})])

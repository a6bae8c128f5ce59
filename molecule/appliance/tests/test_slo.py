"""Errors that people meet spend the budget: from the application's fault to the figures in Prometheus and the alert."""

import json
import time
from urllib.parse import urlencode

import pytest
from conftest import ENDPOINTS, run_playbook, wait_until

SCALE = 20  # a minute stands for twenty
OBJECTIVE = {
    "name": "drill",
    "service": "taskboard",
    "objective": 0.99,
    "availability": {"where": 'http_request_method="PATCH"'},
}
VARIABLES = {
    "watchpost_slos": [OBJECTIVE],
    "watchpost_slo_time_scale": SCALE,
    "taskboard_metric_interval_seconds": 1,
    "taskboard_faults": {"error": {"share": 0.3, "route": "/api/tasks/<int:task_id>"}},
}

# Runs on the host: edits a task for so many seconds; prints how many answers there were, by status.
EDIT = """
import collections, http.client, json, ssl, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
pki = "/etc/watchpost/pki"
context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
context.load_cert_chain(f"{pki}/operator/tls.crt", f"{pki}/operator/tls.key")
def ask(method, path, fields):
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    connection.request(method, path, json.dumps(fields), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()
task = json.loads(ask("POST", "/api/tasks", {"title": "spent"})[1])["id"]
ended, answers = time.monotonic() + seconds, collections.Counter()
while time.monotonic() < ended:
    answers[ask("PATCH", f"/api/tasks/{task}", {"title": "spent"})[0]] += 1
    time.sleep(0.05)  # a load that a small host bears
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def faulty():
    """The appliance with one objective, a fast clock, and an application that fails; afterwards as it was."""
    run = run_playbook("site.yml", **VARIABLES)
    assert run.code == 0, run.output
    yield
    run = run_playbook("site.yml")
    assert run.code == 0, run.output


def test_errors_spend_the_budget_as_counted_and_page(faulty, host, ask):
    def value(expression):
        answer = ask("prometheus", "http", f"/api/v1/query?{urlencode({'query': expression})}").json
        return float(answer["data"]["result"][0]["value"][1])

    sent = json.loads(host.check_output("python3 -c %s %s 60", EDIT, str(ENDPOINTS["taskboard"]["https"]["port"])))
    total, bad = sum(sent.values()), sent.get("500", 0)
    assert bad > 20, sent

    def page():
        alerts = ask("alertmanager", "http", "/api/v2/alerts").json
        return [alert for alert in alerts if alert["labels"]["alertname"] == "SloBurnFast"]

    [alert] = wait_until(page, seconds=30)
    assert {"slo": "drill", "service": "taskboard", "severity": "page"}.items() <= alert["labels"].items()
    assert alert["annotations"]["runbook_url"].endswith("/runbooks/SloBurnFast.md")
    assert "%" in alert["annotations"]["budget_left"], "its template found the figure"

    time.sleep(300 / SCALE + 5)  # until all is in the sums, and the last export came
    window = 30 * 86_400 / SCALE
    assert value(f"slo:sli_total:rate30d * {window}") == pytest.approx(total, rel=0.05)
    assert value("slo:error_ratio:rate30d") == pytest.approx(bad / total, rel=0.02)
    assert value("slo:budget_left:ratio") == pytest.approx(1 - bad / total / 0.01, rel=0.02)


def test_objective_that_is_gone_from_the_file_is_gone_from_prometheus(faulty, ask):
    groups = ask("prometheus", "http", "/api/v1/rules").json["data"]["groups"]
    assert [group["name"] for group in groups if group["name"].startswith("slo-")] == ["slo-drill"]

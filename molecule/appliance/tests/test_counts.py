"""Requests sent are requests counted in Prometheus, though workers are replaced and killed while they are sent."""

import json
import time
from urllib.parse import quote

import pytest
import yaml
from conftest import ENDPOINTS, PROJECT, unit_name

INTERVAL = yaml.safe_load((PROJECT / "roles/taskboard/defaults/main.yml").read_text())[
    "taskboard_metric_interval_seconds"
]
#: Seconds for an export on its way: into the Collector's queue, out of its batch, into Prometheus.
DELIVERY = 3

# Runs on the host: edits of tasks that succeed, that name no task and that are wrong, from four sides, while a command
# is run at the given seconds. Prints the answers by status, "None" for no answer, and how many were answered in the
# window before the command's last run.
FIRE = """
import collections, concurrent.futures, http.client, json, ssl, subprocess, sys, time
port, command, moments, seconds, window = sys.argv[1:]
pki = "/etc/watchpost/pki"
context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
context.load_cert_chain(f"{pki}/operator/tls.crt", f"{pki}/operator/tls.key")
answers, began = [], time.monotonic()
def ask(method, path, fields):
    connection = http.client.HTTPSConnection("127.0.0.1", int(port), timeout=30, context=context)
    try:
        connection.request(method, path, json.dumps(fields), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()
task = json.loads(ask("POST", "/api/tasks", {"title": "under fire"})[1])["id"]
def shoot(_):
    while time.monotonic() < began + float(seconds):
        for path, fields in ((task, {}), (2**62, {}), (task, {"title": ""})):
            status, _ = ask("PATCH", f"/api/tasks/{path}", fields)
            answers.append((time.monotonic(), status))
            time.sleep(0.02)  # a load that a small host bears
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    sides = pool.map(shoot, range(4))
    for moment in json.loads(moments):
        time.sleep(max(0, began + moment - time.monotonic()))
        last = time.monotonic()
        subprocess.run(command, shell=True, check=True)
    list(sides)
ask("DELETE", f"/api/tasks/{task}", {})
sent = collections.Counter(str(status) for _, status in answers)
at_stake = sum(last - float(window) < at <= last for at, status in answers if status)
print(json.dumps({"sent": sent, "at_stake": at_stake}))
"""


@pytest.fixture
def counted(ask):
    """The edits that Prometheus has counted, by status; those of workers that are gone too."""
    series = 'http_server_request_duration_seconds_count{http_request_method="PATCH"}'
    query = f"sum by (http_response_status_code) (last_over_time({series}[3h]))"

    def counted():
        answer = ask("prometheus", "http", f"/api/v1/query?query={quote(query)}").json
        return {each["metric"]["http_response_status_code"]: int(each["value"][1]) for each in answer["data"]["result"]}

    return counted


@pytest.fixture
def fire(host, counted):
    """Send; return what was sent, what was at stake, and what was counted of it by now."""

    def fire(command, moments, seconds):
        time.sleep(INTERVAL + DELIVERY)  # until all that was sent before is counted
        before = counted()
        port = ENDPOINTS["taskboard"]["https"]["port"]
        arguments = (str(port), command, json.dumps(moments), str(seconds), str(INTERVAL + DELIVERY))
        told = json.loads(host.check_output("python3 -c %s" + " %s" * 5, FIRE, *arguments))
        unanswered = told["sent"].pop("None", 0)

        def since():
            now = counted()
            return {status: now.get(status, 0) - before.get(status, 0) for status in ("200", "404", "422")}

        return told["sent"], unanswered, told["at_stake"], since

    return fire


def test_every_request_is_counted_though_workers_are_replaced(fire):
    sent, unanswered, _, counted = fire(f"systemctl reload {unit_name('taskboard')}", [4, 8], 14)
    assert unanswered == 0 and min(sent.values()) > 50, sent
    deadline = time.monotonic() + 4 * INTERVAL
    while counted() != sent and time.monotonic() < deadline:
        time.sleep(1)  # until the last export is there
    assert counted() == sent


def test_killed_worker_takes_at_most_an_interval_of_counts_with_it(fire):
    kill = (
        f"kill -KILL $(pgrep --parent $(systemctl show --property=MainPID --value {unit_name('taskboard')}) | head -1)"
    )
    sent, unanswered, at_stake, counted = fire(kill, [2.5 * INTERVAL], 3 * INTERVAL)
    assert unanswered <= 4, "no more than were being worked on"
    assert at_stake < sum(sent.values()) / 1.5, "the bound says something"
    time.sleep(INTERVAL + DELIVERY)  # until all that still lives is counted
    lost = sum(sent.values()) - sum(counted().values())
    assert -unanswered <= lost <= at_stake

"""`watchpost alert` says who was told of a test alert, who was not, and ends it.

Grafana stands behind a mock transport; a real Alertmanager tells receivers in molecule/alertmanager.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from watchpost import verify_target
from watchpost.alert import requests_of
from watchpost.cli import command_line

PROXY = "/grafana/api/datasources/proxy/uid/alertmanager"
CONFIGURATION = (Path(__file__).parent.parent / "roles/alertmanager/templates/alertmanager.yml.j2").read_text()
GROUPED_BY = re.search(r"group_by: \[(.+)\]", CONFIGURATION)[1].split(", ")
METRICS = """# TYPE alertmanager_notification_requests_total counter
alertmanager_notification_requests_total{integration="slack",receiver_name="team"} 7
alertmanager_notification_requests_failed_total{integration="slack",receiver_name="team"} 2
alertmanager_notifications_total{integration="slack",receiver_name="team"} 99
"""


@dataclass
class Alertmanager:
    """A stand-in for Grafana before Alertmanager: each receiver takes, refuses or ignores what it is sent."""

    receivers: dict[str, str]
    posted: list = field(default_factory=list)
    silenced: bool = False

    def groups(self):
        """The groups of alerts: each is told of once, for a time that is longer than these tests'."""
        return {tuple(alert["labels"].get(name) for name in GROUPED_BY) for alert in self.posted}

    def __call__(self, request):
        path = request.url.path
        if path == "/grafana/login":
            return httpx.Response(200, json={})
        if path == f"{PROXY}/api/v2/alerts" and request.method == "POST":
            self.posted += json.loads(request.content)
            return httpx.Response(200)
        if path == f"{PROXY}/api/v2/alerts":
            names = [{"name": name} for name in self.receivers or {"nobody": ""}]
            status = {"silencedBy": ["0123"] if self.silenced else []}
            return httpx.Response(
                200, json=[{"labels": self.posted[-1]["labels"], "receivers": names, "status": status}]
            )
        assert path == f"{PROXY}/metrics"
        lines = ""
        for name, answer in self.receivers.items():
            sent = 0 if answer == "ignores" else len(self.groups())
            for what, count in (("", 3 + sent), ("_failed", 1 + (sent if answer == "refuses" else 0))):
                kind = f'integration="webhook",receiver_name="{name}"'
                lines += f"alertmanager_notification_requests{what}_total{{{kind}}} {count}\n"
        return httpx.Response(200, text=lines)


@pytest.fixture
def command(monkeypatch):
    """Run the command against an Alertmanager."""

    def command(alertmanager, *options):
        target = verify_target.Target("https://appliance", "the-password", None)
        client = httpx.Client(base_url=target.url, transport=httpx.MockTransport(alertmanager))
        monkeypatch.setattr(verify_target.Target, "client", lambda *_: client)
        monkeypatch.setattr(verify_target, "find", lambda *_: target)
        return CliRunner().invoke(command_line("alert"), ["alert", "--timeout", "0.1", *options])

    return command


def test_requests_are_read_from_alertmanagers_metrics():
    [(name, requests)] = requests_of(METRICS).items()
    assert (name, requests.kind, requests.made, requests.failed) == ("team", "slack", 7, 2)


def test_who_was_told_is_said_and_the_alert_is_ended(command):
    alertmanager = Alertmanager({"team": "takes", "on-call": "takes"})
    answer = command(alertmanager, "--severity", "ticket", "--service", "shop")
    assert answer.exit_code == 0, answer.output
    assert answer.output.count("told") == 2
    first, last = alertmanager.posted
    assert first["labels"] == last["labels"]
    assert first["labels"].items() >= {"alertname": "WatchpostTest", "severity": "ticket", "service": "shop"}.items()
    assert first["startsAt"] < last["endsAt"] < first["endsAt"]


def test_second_test_is_told_too(command):
    alertmanager = Alertmanager({"team": "takes"})
    for _ in range(2):
        done = command(alertmanager)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("answer", "said"), [("refuses", "refused"), ("ignores", "no answer yet")])
def test_receiver_that_was_not_told_is_named_and_fails_the_command(command, answer, said):
    done = command(Alertmanager({"team": "takes", "on-call": answer}))
    assert done.exit_code == 1
    [line] = [line for line in done.output.splitlines() if "on-call" in line]
    assert said in line
    assert "journalctl -u watchpost-alertmanager" in done.output


def test_alert_that_nobody_is_meant_for_fails_the_command(command):
    done = command(Alertmanager({}))
    assert done.exit_code == 1
    assert "Nobody is told of a page" in done.output


def test_silenced_test_is_no_verdict(command):
    alertmanager = Alertmanager({"team": "takes"}, silenced=True)
    done = command(alertmanager)
    assert done.exit_code == 2
    assert "silenced by 0123" in done.stderr
    assert len(alertmanager.posted) == 2, "it was not ended"

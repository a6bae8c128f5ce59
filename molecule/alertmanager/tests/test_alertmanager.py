"""Alertmanager lists the alerts that it is sent, and never runs a configuration that it refuses."""

import json

JSON = {"Content-Type": "application/json"}


def test_alert_is_listed_with_its_receiver(ask):
    alert = {"labels": {"alertname": "Probe", "job": "molecule"}, "annotations": {"summary": "a probe"}}
    sent = ask("alertmanager", "http", "/api/v2/alerts", method="POST", headers=JSON, body=json.dumps([alert]))
    assert sent.status == 200, sent
    found = ask("alertmanager", "http", "/api/v2/alerts").json
    [probe] = [alert for alert in found if alert["labels"]["alertname"] == "Probe"]
    assert probe["status"]["state"] in ("active", "unprocessed")
    assert [receiver["name"] for receiver in probe["receivers"]] == ["nobody"]


def test_no_cluster_is_looked_for(ask):
    assert ask("alertmanager", "http", "/api/v2/status").json["cluster"]["status"] == "disabled"


def test_component_that_is_no_caller_is_refused(send):
    assert send("alertmanager", "http", identity="operator").body.startswith("HTTP/1.1")
    assert not send("alertmanager", "http", identity="alertmanager").body.startswith("HTTP/")


def test_refused_configuration_is_named_and_the_old_one_keeps_running(assert_refused):
    assert_refused("alertmanager", "amtool", "often", alertmanager_repeat_interval="often")


def test_refused_web_configuration_never_goes_live(assert_refused):
    # Nobody can spoil web.yml by a variable, so the program is pointed to a file that is none.
    command = ["{bin}/alertmanager", "--config.file={config}/alertmanager.yml", "--web.config.file=/etc/hostname"]
    assert_refused("alertmanager", "web.Config", __alertmanager_command=[*command, "--cluster.listen-address="])

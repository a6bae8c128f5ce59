"""What a build server calls after a deploy, on a real appliance: traffic, verify, gate, report.

That faults are stopped at their stage, and the deploy itself, is for drills/test_delivery.py.
"""

import json
import os
import re
import subprocess
import sys

from conftest import PROJECT
from test_appliance import HOST

#: A short run; the machine of the tests does other things meanwhile, so what it says of latencies is not judged.
SETTINGS = {"WATCHPOST_TRAFFIC_CREATES": "40", "WATCHPOST_GATE_LEAST": "50", "WATCHPOST_GATE_P95": "5000"}


def test_delivery_is_judged_and_reported_with_what_the_appliance_knows(tmp_path):
    place = {"WATCHPOST_RUN": str(tmp_path), "WATCHPOST_INVENTORY": str(HOST.inventory)}
    for words in (("pipeline", "traffic", "verify", "gate"), ("report",)):
        command = [sys.executable, "-m", "watchpost", *words]
        done = subprocess.run(
            command, cwd=PROJECT, env=os.environ | SETTINGS | place, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((tmp_path / "stages.json").read_text())
    assert [(each["stage"], each["passed"]) for each in stages] == [(n, True) for n in ("traffic", "verify", "gate")]
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# Delivered") and "Not known" not in report, report
    sent = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()[1:]]
    found = json.loads((tmp_path / "verify.json").read_text())
    assert found["traces"] == len(sent) and not found["missing"]
    for component in ("grafana", "tempo", "loki", "prometheus", "alertmanager", "node_exporter", "taskboard"):
        assert re.search(rf"{component}\W+v?\d+\.\d+", report), component
    lines = {level: int(count) for count, level in re.findall(r"(\d+) (info|warn|error)\b", report)}
    assert sum(lines.values()) >= len(sent), "each request is a line, at least"
    assert (tmp_path / "report.html").read_text().count("<svg") == 3, "two of latencies, one of budgets"
    assert len(list((tmp_path / "dashboards").glob("watchpost-*.json"))) == 7

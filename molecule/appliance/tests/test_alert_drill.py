"""The short form of the drill of alerts; `make drills` has the page's end and the ticket on latency too."""

import os
from pathlib import Path

import yaml

from drills.alerting import drilled
from drills.harness import Appliance
from watchpost.testhost import Host

HOST = Host(yaml.safe_load(Path(os.environ["MOLECULE_FILE"]).read_text())["platforms"][0]["name"])


def test_errors_page_somebody_and_spend_the_budget_that_the_ledger_says(tmp_path, ask):
    with drilled(Appliance(HOST), tmp_path) as world:
        groups = [group["name"] for group in ask("prometheus", "http", "/api/v1/rules").json["data"]["groups"]]
        # Those of the file are gone, as they are not among the drill's.
        assert sorted(name for name in groups if "slo-" in name) == ["slo-drill-available", "slo-drill-fast"]
        world.errors_page(good_seconds=15)
        # Beside other scenarios the last second before a scrape weighs more: windows are 20 times as short as in life.
        world.budget_is_what_the_ledger_says("drill-available", "error", within=0.05)

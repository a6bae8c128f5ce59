"""The short form of the drill of alerts; `make drills` has the page's end and the ticket on latency too."""

import os
from pathlib import Path

import yaml

from drills.alerting import drilled
from drills.harness import Appliance
from watchpost.testhost import Host

HOST = Host(yaml.safe_load(Path(os.environ["MOLECULE_FILE"]).read_text())["platforms"][0]["name"])


def test_errors_page_somebody_and_spend_the_budget_that_the_ledger_says(tmp_path):
    with drilled(Appliance(HOST), tmp_path) as world:
        world.errors_page(good_seconds=15)
        # Beside other scenarios the last second before a scrape weighs more: windows are 20 times as short as in life.
        world.budget_is_what_the_ledger_says("drill-available", "error", within=0.05)

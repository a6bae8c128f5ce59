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
        world.budget_is_what_the_ledger_says("drill-available", "error")

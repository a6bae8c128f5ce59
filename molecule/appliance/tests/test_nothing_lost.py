"""The shortest of the drills; `make drills` has them all, and those that prove that such a test can fail."""

import os
import random
import time
from pathlib import Path

import yaml

from drills.harness import Appliance, Drill, Outcome
from watchpost.testhost import Host

HOST = Host(yaml.safe_load(Path(os.environ["MOLECULE_FILE"]).read_text())["platforms"][0]["name"])


def test_nothing_acknowledged_is_lost_when_the_collector_and_loki_are_killed(capsys):
    seed = time.time_ns()
    drill = Drill(Appliance(HOST), Outcome("kill"), random.Random(seed))
    with drill.appliance.load() as running:
        for component in ("otel_collector", "loki", "otel_collector"):
            drill.pause(2, 5)
            drill.kill(running, component)
        drill.pause(2, 3)
    with capsys.disabled():
        print(f"\nrandom moments from {seed}; seconds until ready again: {drill.outcome.ready}")
    drill.assert_nothing_lost(running)

"""What is down for a while, planned or not, costs time and no data."""

import contextlib
import time

import pytest

from drills.harness import ENGINES, IN_MEMORY, NO_RETRY, exporters, say
from watchpost import testhost
from watchpost.load_send import Signal

#: Seconds in which a queue of ten minutes must have reached an engine that is back: between two tries the Collector
#: waits for 30 s at most.
DRAINED = 180


@pytest.mark.parametrize("engine", ENGINES)
def test_stopped_collector_keeps_what_a_stopped_engine_could_not_take(drill, engine):
    with drill.appliance.stopped(engine), drill.appliance.load(seconds=15) as running:
        drill.pause(4, 8)
        drill.outcome.ready.append(drill.appliance.restart("otel_collector"))
        drill.pause(2, 4)
    drill.assert_nothing_lost(running, DRAINED)


@pytest.mark.parametrize("component", ["otel_collector", *ENGINES])
def test_orderly_restart_under_load_loses_nothing(drill, component):
    with drill.appliance.load() as running:
        for _ in range(2):
            drill.pause(2, 5)
            drill.outcome.ready.append(drill.appliance.restart(component))
        drill.pause(2, 3)
    drill.assert_nothing_lost(running)


def test_without_a_queue_on_disk_a_stopped_collector_loses(drill):
    with drill.appliance.collector_with(**exporters(drill.appliance, IN_MEMORY)):
        with drill.appliance.stopped("loki"), drill.appliance.load(seconds=10, signals=(Signal.LOGS,)) as running:
            drill.pause(4, 5)
            drill.appliance.restart("otel_collector")
        drill.settle(running, timeout=40)
    assert drill.outcome.lost


def test_long_outage_of_all_engines_loses_nothing(drill, outage):
    with drill.appliance.load(seconds=outage + 60, rate=100) as running:
        with contextlib.ExitStack() as stack:
            for engine in ENGINES:
                stack.enter_context(drill.appliance.stopped(engine))
            say(f"{', '.join(ENGINES)} are down for {outage:g} s")
            time.sleep(outage)
        drill.pause(5, 10)
    drill.assert_nothing_lost(running, DRAINED)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_retries_an_outage_loses(drill, engine):
    with drill.appliance.collector_with(**exporters(drill.appliance, NO_RETRY)):
        with drill.appliance.stopped(engine), drill.appliance.load(signals=(ENGINES[engine],)) as running:
            drill.pause(4, 5)
        drill.settle(running, timeout=20)
    assert drill.outcome.lost


def test_reboot_under_load_loses_nothing(drill):
    with drill.appliance.load(rate=100) as running:
        drill.pause(5, 8)
        began = time.monotonic()
        testhost.reboot(drill.appliance.host)
        say(f"rebooted, SSH answers after {time.monotonic() - began:.1f} s")
        drill.outcome.ready.append(drill.appliance.wait_until_ready())
        drill.pause(3, 5)
    drill.assert_nothing_lost(running, DRAINED)

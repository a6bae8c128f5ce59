"""What is down for a while, planned or not, costs time and no data."""

import contextlib
import time

import pytest

from drills.harness import ENGINES, IN_MEMORY, NO_RETRY, Running, exporters, say
from watchpost import testhost
from watchpost.load import ingest_client
from watchpost.load_read import Reader
from watchpost.load_send import Load, Sender, Signal, Telemetry

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


def begin_many_series(drill, runs):
    """Send the first points of new series, several of each at once, and restart Prometheus once it has them all."""
    begun = []
    with ingest_client(drill.appliance.target) as client:
        for _ in range(runs):
            load = Load(Sender(client), Telemetry(), (Signal.METRICS,), rate=800, seconds=0.15, connections=8)
            begun.append(Running(load, time.time()))
            load.run()
    assert not missing(drill, begun), "not even there before"
    drill.outcome.ready.append(drill.appliance.restart("prometheus"))
    drill.outcome.acknowledged += sum(running.acknowledged() for running in begun)
    drill.outcome.lost += missing(drill, begun)


def missing(drill, begun):
    """Return how many points of several runs are not found."""
    with drill.appliance.stores() as stores:
        readers = [(Reader(stores, running.load.telemetry, running.began), running.ledgers) for running in begun]
        return sum(count.lost for reader, ledgers in readers for count in reader.wait(ledgers, 5))


def test_first_points_of_new_series_outlast_a_restart_of_prometheus(drill):
    begin_many_series(drill, 60)
    assert drill.outcome.acknowledged and not drill.outcome.lost
    drill.assert_ready_in_time()


def test_with_requests_to_prometheus_at_once_a_restart_loses_first_points(drill):
    """By chance: Prometheus must log one request's points before it logs the series that another one has begun."""
    with drill.appliance.collector_with(exporters={"otlp_http/prometheus": {"sending_queue": {"num_consumers": 10}}}):
        for _ in range(5):
            if not drill.outcome.lost:
                begin_many_series(drill, 60)
    assert drill.outcome.lost


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
    assert not drill.outcome.refused, "the queue has no place for so long an outage"


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
